"""Training pictures that show almost what a test picture shows: another size, quality or edge.

By their pixels they differ, so that no split refuses them, and yet a model has seen them. Two are
near when both of these hold, as measured on photographs, charts, scenes, diagrams, pages of text
and easy-vqa (``docs/data_sources.md`` has the rates): the perceptual hash, which says where it is
brighter and where darker, differs in few bits; and no part of a tiny thumbnail differs much, which
tells a red ball from a grey one in the same place.

Legend: B training pictures of a block, T test pictures, C pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from othink_pipeline.data.pictures import decode

Array = np.ndarray[Any, np.dtype[Any]]

HASH_SIDE = 16
"""The hash has so many bits squared: with 64 a chart is near every tenth other one."""

MAX_BITS = 20
"""Of the 256."""

THUMBNAIL_PX = 8

MAX_LEVELS = 40
"""Of 255, in any colour of any pixel of the thumbnail."""

BLOCK_PICTURES = 16
"""So many training pictures are compared at once: with 8,000 of the test 50 MB at most."""

COLUMNS = ("id", "like", "bits")


class Look(NamedTuple):
    """What a picture is remembered by: 224 bytes."""

    bits: Array
    """Its hash [4], uint64."""
    thumbnail: Array
    """[192], uint8."""


class NearDuplicates(NamedTuple):
    """What was found."""

    pairs: pd.DataFrame
    """A row for each picture of ``train`` or ``validation`` that has one: ``id`` of its first
    example, ``like``, that of the nearest test picture, and ``bits`` in which the hashes differ."""
    test_examples: int
    """Test examples whose pictures have one."""


def look_at(picture: bytes) -> Look:
    """What an encoded picture is remembered by.

    Raises:
        UnusableError: as ``decode``.
    """
    import imagehash

    image = decode(picture)
    bits = np.packbits(imagehash.phash(image, HASH_SIDE).hash).view(np.uint64)
    small = image.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return Look(bits, np.asarray(small).reshape(-1))


class Gallery:
    """The pictures of a task, each looked at once, as its examples go by."""

    def __init__(self) -> None:
        self._looks: dict[bool, dict[str, Look]] = {True: {}, False: {}}  # of the test?
        self._first_ids: dict[str, str] = {}
        self._test_examples: Counter[str] = Counter()

    def watch(self, examples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The examples as they are: ``key`` must tell their pictures apart."""
        for example in examples:
            key, is_test = example["key"], example["split"] == "test"
            if key not in self._looks[is_test]:
                self._looks[is_test][key] = look_at(example["image"])
                self._first_ids[key] = example["id"]
            self._test_examples[key] += is_test
            yield example

    def find(self) -> NearDuplicates:
        """Compare each training picture with each of the test, block by block."""
        train, test = self._looks[False], self._looks[True]
        found: list[dict[str, Any]] = []
        concerned: set[str] = set()
        if train and test:
            keys, test_keys = list(train), list(test)
            ours, theirs = _stack(train.values()), _stack(test.values())
            for start in range(0, len(keys), BLOCK_PICTURES):
                some = slice(start, start + BLOCK_PICTURES)
                rows, places, bits = _near(Look(ours.bits[some], ours.thumbnail[some]), theirs)
                concerned.update(test_keys[place] for place in np.unique(places))
                near, firsts = np.unique(rows, return_index=True)
                for row, first in zip(near, firsts, strict=True):
                    pair = (keys[start + row], test_keys[places[first]])
                    ids = [self._first_ids[key] for key in pair]
                    found.append(dict(zip(COLUMNS, (*ids, int(bits[first])), strict=True)))
        pairs = pd.DataFrame(found, columns=list(COLUMNS)).sort_values("bits", kind="stable")
        return NearDuplicates(pairs, sum(self._test_examples[key] for key in concerned))


def _stack(looks: Iterable[Look]) -> Look:
    """Hashes [N x 4] and thumbnails [N x 192], below one another."""
    bits, thumbnails = zip(*looks, strict=True)
    return Look(np.stack(bits), np.stack(thumbnails))


def _near(block: Look, test: Look) -> tuple[Array, Array, Array]:
    """Pairs that are near, the nearest first: place in the block, in the test, differing bits.

    Each is [C]. A quarter of the hash sorts out nearly all of the B x T pairs.
    """
    differ = np.bitwise_count(block.bits[:, None, 0] ^ test.bits[:, 0])  # [B x T]
    rows, places = np.nonzero(differ <= MAX_BITS)
    bits = np.bitwise_count(block.bits[rows] ^ test.bits[places]).sum(-1, dtype=int)
    close = bits <= MAX_BITS
    rows, places, bits = rows[close], places[close], bits[close]
    levels = np.abs(block.thumbnail[rows].astype(np.int16) - test.thumbnail[places])
    close = levels.max(-1, initial=0) <= MAX_LEVELS
    rows, places, bits = rows[close], places[close], bits[close]
    order = np.argsort(bits, kind="stable")
    return rows[order], places[order], bits[order]
