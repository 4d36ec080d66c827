"""Rows of small images with text below them: generated images in the order of the score, and the
detector's mistakes.

Images of more than `THUMBNAIL` pixels a side are shrunk, so that a report stays small whatever the
images are.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from good_rt.errors import GoodRtError

THUMBNAIL = 64
"""Pixels of a thumbnail's longer side."""


@dataclass(frozen=True)
class PictureLabel:
    """Lines of text below an image, and whether the detector refuses it, which colours them."""

    lines: Sequence[str]
    refused: bool


@dataclass(frozen=True)
class PictureRows:
    """Images in rows, some of them with text below.

    Attributes:
        title: Short title.
        caption: A sentence about them; may stand without images.
        images: (N, H, W, C) uint8, in the order shown.
        labels: Text below every ``every``-th image, from the first.
        columns: Images in a row, a multiple of ``every``.
        every: Images between two labels.
    """

    title: str
    caption: str
    images: NDArray[np.uint8]
    labels: Sequence[PictureLabel]
    columns: int
    every: int = 1

    def __post_init__(self) -> None:
        labelled = -(-len(self.images) // self.every)
        if self.columns % self.every or len(self.labels) != labelled:
            raise GoodRtError(
                f"{self.title!r}: {len(self.images)} images in {self.columns} columns need "
                f"{labelled} labels, one for {self.every} images; there are {len(self.labels)}"
            )


@dataclass(frozen=True)
class PictureRow:
    """One row, for the template: its image, how many of the columns it fills, its labels."""

    uri: str
    width: int
    height: int
    filled: int
    labels: Sequence[PictureLabel]


@dataclass(frozen=True)
class DrawnRows:
    """What the template shows of `PictureRows`; ``pixelated`` where images are not shrunk."""

    title: str
    caption: str
    columns: int
    every: int
    pixelated: bool
    rows: Sequence[PictureRow]


def draw_rows(pictures: PictureRows) -> DrawnRows:
    """The rows as PNG images inside the page.

    Args:
        pictures: The images.
    """
    small = thumbnails(pictures.images)
    rows = []
    for start in range(0, len(small), pictures.columns):
        images = small[start : start + pictures.columns]
        strip = np.concatenate(list(images), axis=1)
        first, last = (-(-place // pictures.every) for place in (start, start + len(images)))
        rows.append(
            PictureRow(
                png_uri(strip),
                strip.shape[1],
                strip.shape[0],
                len(images),
                pictures.labels[first:last],
            )
        )
    return DrawnRows(
        pictures.title,
        pictures.caption,
        pictures.columns,
        pictures.every,
        small.shape == pictures.images.shape,
        rows,
    )


def thumbnails(images: NDArray[np.uint8], side: int = THUMBNAIL) -> NDArray[np.uint8]:
    """Images of at most ``side`` pixels a side, (N, h, w, C) uint8; smaller ones as they are.

    Args:
        images: (N, H, W, C) uint8.
        side: Pixels of the longer side.
    """
    height, width = images.shape[1:3]
    if max(height, width) <= side or not len(images):
        return images
    size = tuple(max(1, round(length * side / max(height, width))) for length in (width, height))
    small = [
        np.asarray(_image(image).resize(size, Image.Resampling.LANCZOS), np.uint8)
        for image in images
    ]
    return np.stack(small).reshape(len(images), size[1], size[0], images.shape[3])


def png_uri(image: NDArray[np.uint8]) -> str:
    """An image (H, W, C) uint8 as a data URI."""
    buffer = io.BytesIO()
    _image(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _image(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
