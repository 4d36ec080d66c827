"""The interface of a source of labelled images: a cheap listing, and contents read one at a
time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
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
        content: A file's bytes, or (H, W, C) uint8 pixels; or why it cannot be read.
    """

    row: int
    name: str
    content: bytes | NDArray[np.uint8] | GoodRtError

    def digest(self) -> str:
        """A hash of only the content: copies under other names have the same.

        Raises:
            GoodRtError: the image cannot be read.
        """
        content, digest = self.readable(), hashlib.sha256()
        if isinstance(content, np.ndarray):
            digest.update(f"{content.shape}".encode())
            digest.update(np.ascontiguousarray(content).data)
        else:
            digest.update(content)
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
        content = self.readable()
        if not isinstance(content, np.ndarray):
            return decode_image(content, self.name, channels, (size, size), fit=True)
        if content.shape != (size, size, channels):
            actual = "x".join(map(str, content.shape))
            raise GoodRtError(
                f"{self.name}: images are {actual}, the classifier takes {size}x{size}x{channels}; "
                "convert them"
            )
        return content

    def readable(self) -> bytes | NDArray[np.uint8]:
        """The content.

        Raises:
            GoodRtError: the image cannot be read.
        """
        if isinstance(self.content, GoodRtError):
            raise self.content
        return self.content


class ImageSource(Protocol):
    """Labelled images in one place.

    ``classes`` are the labels' names, None where labels are mere numbers. ``listing`` says cheaply
    whether the source is still the same: a hash of names and sizes. ``left_out`` has a line for
    each reason why something that lies there is not used. ``items`` reads contents one at a time in
    the listing's order, those of ``rows`` or all; an image that cannot be read has the error as its
    content, and a source that cannot be read on raises GoodRtError.
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
    @property
    def left_out(self) -> tuple[str, ...]: ...
    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]: ...


def content_or_error(read: Callable[[], bytes]) -> bytes | GoodRtError:
    """What ``read`` returns, or the error that it raises."""
    try:
        return read()
    except GoodRtError as error:
        return error


def hash_of(words: Iterator[str]) -> str:
    """One hash of many words in their order."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def part_in(name: str) -> str | None:
    """The part that a shard's or file's name speaks of: images-train-0001.tar is of ``train``; None
    if of none."""
    parts = {
        PART_NAMES[word]
        for word in re.split(r"[^a-z]+", name.lower().replace("held_out", "heldout"))
        if word in PART_NAMES
    }
    return parts.pop() if len(parts) == 1 else None


def numbered(labels: Sequence[str]) -> list[int] | None:
    """The labels as numbers when all of them are whole numbers."""
    if not all(re.fullmatch(r"\d{1,9}", label) for label in labels):
        return None
    return [int(label) for label in labels]
