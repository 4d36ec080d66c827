"""Reads Fashion-MNIST's IDX files (Debian: ``apt-get install dataset-fashion-mnist``) and splits
them for the demo.

In-distribution (ID) are the classes 0 to 7. The classes 8 (bag) and 9 (ankle boot) are the near-OOD
test set: `load` does not hand them to anything but the script that writes that test set.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker")
HELD_OUT = 600
"""Images a class that the models' training never sees: they fit the gate and calibrate the
threshold."""


@dataclass(frozen=True)
class Split:
    """Images (N, 32, 32) uint8 and labels (N,) uint8."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def where(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> Split:
        return Split(self.images[mask], self.labels[mask])


def _read_idx(path: Path) -> NDArray[np.uint8]:
    with gzip.open(path) as file:
        raw = file.read()
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", dims, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _part(source: Path, name: str) -> Split:
    images = np.pad(_read_idx(source / f"{name}-images-idx3-ubyte.gz"), ((0, 0), (2, 2), (2, 2)))
    return Split(images, _read_idx(source / f"{name}-labels-idx1-ubyte.gz"))


def load(source: Path = SOURCE) -> dict[str, Split]:
    """The ID splits ``train`` (5,400 a class), ``held_out`` (600 a class) and ``test`` (1,000 a
    class)."""
    train, test = _part(source, "train"), _part(source, "t10k")
    train, test = train.where(train.labels < 8), test.where(test.labels < 8)
    order = np.random.default_rng(0).permutation(len(train.labels))
    train = train.where(order)
    rank = np.zeros(len(train.labels), np.int64)
    for label in range(8):
        members = np.flatnonzero(train.labels == label)
        rank[members] = np.arange(len(members))
    return {
        "train": train.where(rank >= HELD_OUT),
        "held_out": train.where(rank < HELD_OUT),
        "test": test,
    }


def near_ood(source: Path = SOURCE) -> Split:
    """The test images of the held-out classes 8 and 9, for the final evaluation alone."""
    test = _part(source, "t10k")
    return test.where(test.labels >= 8)
