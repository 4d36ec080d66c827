"""Images whose patches have changed places: outliers that cost nothing.

They keep an ID image's textures and lose its shape (after Hendrycks et al. and ASCOOD, which train
with shuffled pixels or patches).
"""

from __future__ import annotations

import torch
from torch import Tensor

PER_SIDE = 4
"""Patches along each side of an image."""


def shuffled_patches(
    images: Tensor, generator: torch.Generator, per_side: int = PER_SIDE
) -> Tensor:
    """The images (N, C, H, W), each with its patches in an order of its own.

    Rows and columns that do not fill a patch stay where they are.

    Args:
        images: (N, C, H, W).
        generator: Draws the orders.
        per_side: Patches along each side, at most its pixels.
    """
    count, channels = images.shape[:2]
    height, width = (side // per_side for side in images.shape[2:])
    patches = images[:, :, : per_side * height, : per_side * width].reshape(
        count, channels, per_side, height, per_side, width
    )
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (N, patches, C, height, width)
    order = torch.rand(count, per_side**2, generator=generator).argsort(dim=1)
    patches = patches[torch.arange(count)[:, None], order]
    patches = patches.unflatten(1, (per_side, per_side)).permute(0, 3, 1, 4, 2, 5)
    shuffled = images.clone()
    shuffled[:, :, : per_side * height, : per_side * width] = patches.reshape(
        count, channels, per_side * height, per_side * width
    )
    return shuffled
