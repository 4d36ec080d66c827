"""Rows of pictures: the pixels that were given, shrunk where they are large, and their labels."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from good_rt.demo import assets
from good_rt.errors import GoodRtError
from good_rt.evaluation.picture_rows import (
    THUMBNAIL,
    PictureLabel,
    PictureRow,
    PictureRows,
    draw_rows,
    thumbnails,
)

IMAGES = assets.load_images("photos").images[:10]


def labels(count: int) -> list[PictureLabel]:
    return [PictureLabel((f"{i}", f"p 0.{i}"), i > 1) for i in range(count)]


def pixels(row: PictureRow) -> np.ndarray:
    prefix, _, content = row.uri.partition(",")
    assert prefix == "data:image/png;base64"
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert image.shape[:2] == (row.height, row.width)
    return image


def test_small_images_are_shown_pixel_by_pixel() -> None:
    drawn = draw_rows(PictureRows("t", "c", IMAGES, labels(10), 4))
    assert drawn.pixelated and [row.filled for row in drawn.rows] == [4, 4, 2]
    shown = [image for row in drawn.rows for image in np.split(pixels(row), row.filled, axis=1)]
    np.testing.assert_array_equal(np.stack(shown), IMAGES[..., 0])
    assert [label.lines[0] for row in drawn.rows for label in row.labels] == list("0123456789")


def test_every_few_images_have_a_label() -> None:
    drawn = draw_rows(PictureRows("t", "c", IMAGES, labels(5), 4, every=2))
    assert [[label.lines[0] for label in row.labels] for row in drawn.rows] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
    ]


def test_large_colour_images_are_shrunk() -> None:
    large = np.stack(
        [np.asarray(Image.fromarray(image[..., 0]).resize((224, 224))) for image in IMAGES]
    )
    colour = np.stack([large, large // 2, 255 - large], axis=-1)
    drawn = draw_rows(PictureRows("t", "c", colour, labels(10), 10))
    assert not drawn.pixelated and len(drawn.rows[0].uri) < 10 * 3 * THUMBNAIL**2
    shown = pixels(drawn.rows[0])
    assert shown.shape == (THUMBNAIL, 10 * THUMBNAIL, 3)
    reference = Image.fromarray(colour[3]).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(shown[:, 3 * THUMBNAIL : 4 * THUMBNAIL], np.asarray(reference))


def test_thumbnails_keep_the_shape_of_the_picture() -> None:
    wide = np.zeros((2, 50, 200, 1), np.uint8)
    assert thumbnails(wide).shape == (2, 16, THUMBNAIL, 1)
    assert thumbnails(wide[:, :, :60]) is not None and thumbnails(wide[:, :, :60]).shape[2] == 60


def test_nothing_to_show_has_no_rows() -> None:
    none = PictureRows("t", "0 of 9 images", np.zeros((0, 1, 1, 3), np.uint8), [], 4)
    assert draw_rows(none).rows == []


def test_labels_must_fit() -> None:
    with pytest.raises(GoodRtError, match=r"'t': 10 images in 4 columns need 10 labels.* are 9"):
        PictureRows("t", "c", IMAGES, labels(9), 4)
