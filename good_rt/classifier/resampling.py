"""Resizing as a matrix: PIL's own filters, which the classifier libraries prepare their images
with.

Resizing is linear and separable, so that rows · image · rowsᵀ resizes and crops at once, can be
differentiated, and becomes two plain matrix products in every runtime.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from good_rt.errors import GoodRtError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
"""By name; all but nearest are widened when an image shrinks (antialiasing)."""


def resampling_matrix(source: int, size: int, crop: int, interpolation: str) -> Tensor:
    """(crop, source) float32: resizes a line of pixels and crops its middle.

    Args:
        source: Pixels of the line.
        size: Pixels after resizing.
        crop: Pixels that are kept.
        interpolation: A key of `FILTERS`.

    Raises:
        GoodRtError: the interpolation is unknown, or ``crop`` is not between 1 and ``size``.
    """
    if interpolation not in FILTERS:
        raise GoodRtError(
            f"unknown interpolation {interpolation!r}; known are {', '.join(FILTERS)}"
        )
    if not 0 < crop <= size:
        raise GoodRtError(
            f"cannot crop {crop} pixels out of {size}; the size after resizing must be at least as "
            "large"
        )
    lines = Image.fromarray(np.eye(source, dtype=np.float32))
    matrix = np.asarray(lines.resize((size, source), FILTERS[interpolation])).T
    first = round((size - crop) / 2)
    return torch.from_numpy(np.ascontiguousarray(matrix[first : first + crop]))
