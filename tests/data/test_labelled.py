""".npz files of images: read as they were written, never unpickled, and refused by name when they
are others."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from good_rt.data.labelled import LabelledImages, load_npz
from good_rt.errors import GoodRtError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def test_read_as_written(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "rgb.npz", images=IMAGES, labels=np.arange(5, dtype=np.uint8))
    data = load_npz(tmp_path / "rgb.npz")
    assert data.labels is not None and data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.images, IMAGES)
    np.testing.assert_array_equal(data.labels, np.arange(5))
    np.savez(tmp_path / "grey.npz", images=IMAGES[..., 0])
    grey = load_npz(tmp_path / "grey.npz")
    assert grey.labels is None
    np.testing.assert_array_equal(grey.images, IMAGES[..., :1])
    assert len(grey) == 5


def test_taking_keeps_images_and_labels_together() -> None:
    taken = LabelledImages(IMAGES, np.arange(5)).take(np.array([4, 1]))
    np.testing.assert_array_equal(taken.images, IMAGES[[4, 1]])
    np.testing.assert_array_equal(taken.labels, [4, 1])
    assert LabelledImages(IMAGES).take(slice(0, 2)).labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": IMAGES.astype(np.float32)},
            r"images must be uint8 .*, not float32 \(5, 4, 6, 3\)",
        ),
        ({"images": IMAGES[0, 0]}, r"not uint8 \(6, 3\)"),
        ({"images": IMAGES[:0]}, "with N > 0"),
        ({"pictures": IMAGES}, "KeyError.*images"),
        ({"images": IMAGES, "labels": np.arange(4)}, r"5 images but labels of shape \(4,\)"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "is not an .npz file of images .*pickle"),
    ],
)
def test_other_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[np.generic]], message: str
) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(GoodRtError, match=rf"odd\.npz.*{message}"):
        load_npz(tmp_path / "odd.npz")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=IMAGES)
    whole = buffer.getvalue()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", b"no zip", whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(GoodRtError, match=r"bad\.npz is not an \.npz file of images"):
            load_npz(tmp_path / "bad.npz")
    with pytest.raises(GoodRtError, match=r"is not an \.npz file of images"):
        load_npz(tmp_path)
    with pytest.raises(GoodRtError, match=r"gone\.npz does not exist"):
        load_npz(tmp_path / "gone.npz")
