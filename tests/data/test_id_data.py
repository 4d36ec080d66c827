"""ID data: the parts and their checks, halves that share nothing, and pixels there and back without
a loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from good_rt.data.batches import half_rows
from good_rt.data.id_data import IdData, spaced
from good_rt.data.pixels import from_uint8, to_uint8
from good_rt.demo import assets
from good_rt.errors import GoodRtError


def test_parts_are_the_files(id_dir: Path) -> None:
    for name in ("train", "held_out", "test"):
        data = IdData(id_dir).part(name, 8, 1, 32)
        shipped = assets.load_images(name)
        assert data.labels is not None and shipped.labels is not None
        np.testing.assert_array_equal(data.images, shipped.images[: len(data)])
        np.testing.assert_array_equal(data.labels, shipped.labels[: len(data)])


def test_demo_names_the_demo_unless_such_a_folder_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert IdData.of("demo") == IdData.of(Path("demo")) == IdData(assets.DATA)
    (tmp_path / "demo").mkdir()
    assert IdData.of("demo") == IdData(Path("demo"))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((4, 32, 32, 1), None, "has no labels"),
        ((8, 32, 32, 3), [*range(8)], "images are 32x32x3, the classifier takes 32x32x1"),
        ((8, 28, 28, 1), [*range(8)], "images are 28x28x1"),
        ((4, 32, 32, 1), [0, 1, 2, 8], "labels run from 0 to 8, the classifier has 8 classes"),
        ((4, 32, 32, 1), [0, 1, 2, -1], "labels run from -1 to 2"),
    ],
)
def test_what_the_classifier_does_not_take_is_refused(
    tmp_path: Path, images: tuple[int, ...], labels: list[int] | None, message: str
) -> None:
    extra = {} if labels is None else {"labels": np.array(labels)}
    np.savez(tmp_path / "train.npz", images=np.zeros(images, np.uint8), **extra)
    with pytest.raises(GoodRtError, match=rf"train\.npz.*{message}"):
        IdData(tmp_path).part("train", 8, 1, 32)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    images = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None], (8, 32, 32))
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(8))
    with pytest.raises(GoodRtError, match=r"held_out\.npz does not exist"):
        IdData(tmp_path).part("held_out", 8, 1, 32)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "train.npz",
        images=np.zeros((7, 32, 32), np.uint8),
        labels=np.delete(np.arange(8), 3),
    )
    with pytest.raises(
        GoodRtError, match=r"has images of 7 of the classifier's 8 classes, none of class 3; give"
    ):
        IdData(tmp_path).part("train", 8, 1, 32)


@pytest.mark.parametrize("part", ["held_out", "test"])
def test_halves_share_nothing_and_are_all(part: str) -> None:
    data = IdData.of("demo")
    first, second = half_rows(data, part)
    assert sorted([*first, *second]) == sorted(data.rows(part))
    assert abs(len(first) - len(second)) <= 1


@given(st.integers(1, 60), st.integers(1, 70))
def test_spaced_indices_reach_from_end_to_end(size: int, count: int) -> None:
    count = min(size, count)
    indices = spaced(size, count)
    assert len(set(indices)) == count and indices[0] == 0
    assert count == 1 or indices[-1] == size - 1


@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3])),
    )
)
def test_pixels_come_back_exactly(images: NDArray[np.uint8]) -> None:
    tensor = from_uint8(images)
    assert tensor.dtype == torch.float32
    assert tuple(tensor.shape) == (images.shape[0], images.shape[3], *images.shape[1:3])
    assert float(tensor.min()) >= -1 and float(tensor.max()) <= 1
    np.testing.assert_array_equal(to_uint8(tensor), images)


def test_what_is_outside_is_clamped() -> None:
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).view(1, 1, 1, 5)
    assert to_uint8(values).ravel().tolist() == [0, 0, 128, 255, 255]
