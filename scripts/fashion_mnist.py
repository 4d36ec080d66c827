"""Reads Fashion-MNIST's IDX files (Debian: ``apt-get install dataset-fashion-mnist``) and splits
them by class.

Two classes are the near-OOD test set, and the other eight in-distribution (ID): in the demo, 8
(bag) and 9 (ankle boot) are near; benchmarks/quality.py holds out others. `load` hands the near
classes to nothing but the code that writes or measures that test set.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = Path("/usr/share/datasets/fashion-mnist")
NAMES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
DEMO_NEAR = (8, 9)
"""The demo's near-OOD classes."""
HELD_OUT = 600
"""Images a class that the models' training never sees: they fit the score and calibrate the
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


def id_classes(near: tuple[int, ...] = DEMO_NEAR) -> tuple[int, ...]:
    """The in-distribution classes; their places are the labels of the ID splits."""
    return tuple(label for label in range(len(NAMES)) if label not in near)


def load(source: Path = SOURCE, near: tuple[int, ...] = DEMO_NEAR) -> dict[str, Split]:
    """The ID splits ``train`` (5,400 a class), ``held_out`` (600 a class) and ``test`` (1,000 a
    class)."""
    known = id_classes(near)
    train, test = (_relabelled(_part(source, name), known) for name in ("train", "t10k"))
    order = np.random.default_rng(0).permutation(len(train.labels))
    train = train.where(order)
    rank = np.zeros(len(train.labels), np.int64)
    for label in range(len(known)):
        members = np.flatnonzero(train.labels == label)
        rank[members] = np.arange(len(members))
    return {
        "train": train.where(rank >= HELD_OUT),
        "held_out": train.where(rank < HELD_OUT),
        "test": test,
    }


def near_ood(source: Path = SOURCE, near: tuple[int, ...] = DEMO_NEAR) -> Split:
    """The test images of the near-OOD classes, only for the final evaluation."""
    test = _part(source, "t10k")
    return test.where(np.isin(test.labels, near))


def _relabelled(split: Split, known: tuple[int, ...]) -> Split:
    """The images of the classes ``known``, labelled by their places in it."""
    chosen = split.where(np.isin(split.labels, known))
    return Split(chosen.images, np.searchsorted(known, chosen.labels).astype(np.uint8))
