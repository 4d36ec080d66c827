"""Shuffled patches: the same patches at other places."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from good_rt.method.patches import shuffled_patches


@given(
    st.integers(0, 99), st.integers(1, 3), st.integers(5, 19), st.integers(5, 17), st.integers(1, 5)
)
def test_every_patch_is_there_once(
    seed: int, channels: int, height: int, width: int, per_side: int
) -> None:
    images = torch.arange(2 * channels * height * width).float().view(2, channels, height, width)
    shuffled = shuffled_patches(images, torch.Generator().manual_seed(seed), per_side)
    rows, columns = height // per_side, width // per_side

    def patches(image: torch.Tensor) -> set[tuple[float, ...]]:
        return {
            tuple(patch.flatten().tolist())
            for strip in image[:, : per_side * rows].split(rows, dim=1)
            for patch in strip[:, :, : per_side * columns].split(columns, dim=2)
        }

    for before, after in zip(images, shuffled, strict=True):
        assert len(patches(before)) == per_side**2
        assert patches(before) == patches(after)
        assert torch.equal(before[:, per_side * rows :], after[:, per_side * rows :])
        assert torch.equal(before[:, :, per_side * columns :], after[:, :, per_side * columns :])


def test_the_orders_differ_and_depend_on_the_generator() -> None:
    images = torch.rand(1, 1, 32, 32).expand(8, 1, 32, 32)
    first, again = (shuffled_patches(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert len({image.numpy().tobytes() for image in first}) == 8
