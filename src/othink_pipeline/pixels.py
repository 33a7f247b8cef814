"""How large pictures are when a model sees them."""

from __future__ import annotations

from typing import Any


def limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set the limits that pictures are scaled to; None leaves one as it is."""
    size = processor.image_processor.size
    if min_pixels is not None:
        size["shortest_edge"] = min_pixels
    if max_pixels is not None:
        size["longest_edge"] = max_pixels
