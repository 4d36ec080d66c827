"""In-distribution data: labelled images in the parts ``train``, ``held_out`` and ``test``, kept apart by their files.

``train`` fills the feature bank and the fine-tuning; ``held_out`` was never trained on: it standardises, fits the
gate and calibrates; ``test`` is looked at by the evaluation alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.labelled import LabelledImages, load_npz


@dataclass(frozen=True)
class IdData:
    """The parts of an ID data folder, each read when it is asked for: train.npz, held_out.npz, test.npz."""

    folder: Path

    def part(self, name: str, classes: int, channels: int, size: int) -> LabelledImages:
        """One part, checked against what the classifier takes. Raises GoodRtError that names what does not fit."""
        path = self.folder / f"{name}.npz"
        data = load_npz(path)
        if data.labels is None:
            raise GoodRtError(f"{path} has no labels; add an array `labels` with a class index for each image")
        if data.images.shape[1:] != (size, size, channels):
            found = "x".join(map(str, data.images.shape[1:]))
            raise GoodRtError(
                f"{path}: images are {found}, the classifier takes {size}x{size}x{channels}; convert them"
            )
        if data.labels.min() < 0 or data.labels.max() >= classes:
            found = f"{data.labels.min()} to {data.labels.max()}"
            raise GoodRtError(f"{path}: labels run from {found}, the classifier has {classes} classes (from 0)")
        return data


def halves(data: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Two disjoint halves, every other image each: one standardises and fits the gate, one calibrates the p-value."""
    return data.take(slice(0, None, 2)), data.take(slice(1, None, 2))


def spread(data: LabelledImages, count: int) -> LabelledImages:
    """At most ``count`` images, evenly spaced over the data."""
    if count >= len(data):
        return data
    return data.take(np.linspace(0, len(data) - 1, count).round().astype(np.int64))


def from_uint8(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in about [-1, 1] -> (N, H, W, C) uint8; what is outside is clamped."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()
