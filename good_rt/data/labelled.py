"""Images with labels as they lie on disk: uint8 in .npz files. It needs only numpy, so that the
demo's images can be read without the toolkit; good_rt.data.pixels turns them into tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from good_rt.errors import GoodRtError


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory.

    Attributes:
        images: (N, H, W, C) uint8.
        labels: (N,) int64, where known.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: slice | NDArray[np.int64]) -> LabelledImages:
        """The chosen images with their labels."""
        return LabelledImages(
            self.images[index], None if self.labels is None else self.labels[index]
        )


def load_npz(path: Path) -> LabelledImages:
    """Reads images (N, H, W, C) uint8 and their labels from an .npz file; never unpickles.

    Args:
        path: Has ``images`` (N, H, W) or (N, H, W, C) uint8, and ``labels`` (N,) where known.

    Raises:
        GoodRtError: the file is missing, damaged, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["images"]
            labels = file["labels"].astype(np.int64) if "labels" in file else None
    except FileNotFoundError:
        raise GoodRtError(
            f"{path} does not exist; give an .npz file with uint8 images (N, H, W[, C])"
        ) from None
    except Exception as error:  # zipfile, zlib and numpy raise many kinds on damaged files
        raise GoodRtError(
            f"{path} is not an .npz file of images ({type(error).__name__}: {error})"
        ) from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise GoodRtError(
            f"{path}: images must be uint8 (N, H, W[, C]) with N > 0, not {images.dtype} "
            f"{images.shape}"
        )
    if labels is not None and labels.shape != (len(images),):
        raise GoodRtError(f"{path}: {len(images)} images but labels of shape {labels.shape}")
    return LabelledImages(images if images.ndim == 4 else images[..., None], labels)
