"""What every source of labelled images is: a listing that is cheap, and contents that come one at a
time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from good_rt.data.image_files import decode_image
from good_rt.errors import GoodRtError

PARTS = ("train", "held_out", "test")
PART_NAMES = {
    "train": "train",
    "training": "train",
    "held_out": "held_out",
    "heldout": "held_out",
    "val": "held_out",
    "valid": "held_out",
    "validation": "held_out",
    "dev": "held_out",
    "test": "test",
    "testing": "test",
}
"""What folders, shards and splits are called, and the part that is meant."""


@dataclass(frozen=True)
class ListedImage:
    """One image of a source's listing.

    Attributes:
        name: Its name in the source.
        label: Its label, where it has one.
        part: The part that the source puts it into, where it comes in parts.
    """

    name: str
    label: int | None = None
    part: str | None = None


@dataclass(frozen=True)
class Item:
    """One image with its content.

    Attributes:
        row: Its position in the listing.
        name: Its name in the source.
        content: A file's bytes, or (H, W, C) uint8 pixels.
    """

    row: int
    name: str
    content: bytes | NDArray[np.uint8]

    def digest(self) -> str:
        """A hash of only the content: copies under other names have the same."""
        digest = hashlib.sha256()
        if isinstance(self.content, np.ndarray):
            digest.update(f"{self.content.shape}".encode())
            digest.update(np.ascontiguousarray(self.content).data)
        else:
            digest.update(self.content)
        return digest.hexdigest()[:32]

    def image(self, channels: int, size: int) -> NDArray[np.uint8]:
        """(size, size, channels) uint8. Files are converted and resized; arrays must have that
        shape.

        Args:
            channels: 1 (grey) or 3 (RGB).
            size: Height and width.

        Raises:
            GoodRtError: the image is damaged or has another shape; it names the image.
        """
        if not isinstance(self.content, np.ndarray):
            return decode_image(self.content, self.name, channels, (size, size), fit=True)
        if self.content.shape != (size, size, channels):
            found = "x".join(map(str, self.content.shape))
            raise GoodRtError(
                f"{self.name}: images are {found}, the classifier takes {size}x{size}x{channels}; "
                "convert them"
            )
        return self.content


class ImageSource(Protocol):
    """Labelled images in one place.

    ``classes`` are the labels' names, None where labels are mere numbers. ``listing`` says cheaply
    whether the source is still the same: a hash of names and sizes. ``items`` reads contents one at
    a time in the listing's order, those of ``rows`` or all; it raises GoodRtError that names what
    cannot be read.
    """

    @property
    def path(self) -> Path: ...
    @property
    def kind(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def entries(self) -> Sequence[ListedImage]: ...
    @property
    def listing(self) -> str: ...
    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]: ...


def hash_of(words: Iterator[str]) -> str:
    """One hash of many words in their order."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def part_in(name: str) -> str | None:
    """The part that a shard's or file's name speaks of: images-train-0001.tar is of ``train``; None
    if of none."""
    found = {
        PART_NAMES[word]
        for word in re.split(r"[^a-z]+", name.lower().replace("held_out", "heldout"))
        if word in PART_NAMES
    }
    return found.pop() if len(found) == 1 else None


def numbered(labels: Sequence[str]) -> list[int] | None:
    """The labels as numbers when all of them are whole numbers."""
    if not all(re.fullmatch(r"\d{1,9}", label) for label in labels):
        return None
    return [int(label) for label in labels]
