"""How large pictures are made for a model."""

from __future__ import annotations

import math
from typing import Any

from othink_pipeline.core.blocks import ConfigurationError

BY_PIXELS = {"Qwen2VLImageProcessor"}
"""Image processors that keep a picture's proportions, between two numbers of pixels: Qwen2-VL's,
which Qwen2.5-VL and Qwen3-VL use as well."""
BY_TILES = {"Idefics3ImageProcessor", "SmolVLMImageProcessor"}
"""Those that scale its longer edge to a fixed length and cut it into square tiles."""


def limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set between how many pixels pictures are scaled to; None leaves a bound as it is.

    It is saved with the processor. Models that cut pictures into tiles scale the longer edge of
    every picture to the most whole tiles whose square has at most ``max_pixels``, to one at least.

    Raises:
        ConfigurationError: bounds that this processor cannot keep, or a processor of another kind.
    """
    if min_pixels is None and max_pixels is None:
        return  # also for a processor that is not known
    images = processor.image_processor
    kind = type(images).__name__.removesuffix("Pil")
    if kind in BY_PIXELS:
        size = _between(images.size, min_pixels, max_pixels)
        images.size = type(images.size)(**size)
        processor.video_processor.size = type(processor.video_processor.size)(**size)
    elif kind in BY_TILES:
        if min_pixels is not None:
            raise ConfigurationError(
                f"model.min_pixels = {min_pixels}: {kind} scales every picture to the same length, "
                "whatever its size. Set model.min_pixels: null"
            )
        if max_pixels is not None:
            tile = images.max_image_size["longest_edge"]
            edge = tile * max(1, math.isqrt(max_pixels) // tile)
            images.size = type(images.size)(longest_edge=edge)
    else:
        raise ConfigurationError(
            f"model.max_pixels = {max_pixels}, model.min_pixels = {min_pixels}: {kind} has bounds "
            f"of its own; these are known: {', '.join(sorted(BY_PIXELS | BY_TILES))}. Set both to "
            "null and the picture size in the model's preprocessor_config.json"
        )


def _between(size: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, int]:
    least = size["shortest_edge"] if min_pixels is None else min_pixels
    most = size["longest_edge"] if max_pixels is None else max_pixels
    if least > most:
        raise ConfigurationError(
            f"model.min_pixels = {least}, model.max_pixels = {most}: the first must not be larger; "
            "a bound that is null comes from the model's files. Set both"
        )
    return {"shortest_edge": least, "longest_edge": most}
