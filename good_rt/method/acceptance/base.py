"""What a criterion of acceptance is, and the register of all.

Candidates are judged in the order of their indices, each by itself and beside those that were kept
before, so that a set is the same however it was interrupted. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from good_rt.config.settings import AcceptConfig


@dataclass(frozen=True, eq=False)
class Candidate:
    """A generated image to be judged.

    Attributes:
        label: Its class.
        energy: ℓ_img.
        knn_distance: ℓ_feat.
        p_value: Share of held-out ID images with at least its guided discrepancy, in (0, 1].
        feature: (D,) of unit norm.
    """

    label: int
    energy: float
    knn_distance: float
    p_value: float
    feature: NDArray[np.float32]


@dataclass
class Kept:
    """The images that were kept so far.

    Attributes:
        count: How many are to be kept.
        classes: Number of classes.
        features: (D,) of unit norm of each.
        labels: Class of each.
    """

    count: int
    classes: int
    features: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, label: int, feature: NDArray[np.float32]) -> None:
        self.features.append(feature)
        self.labels.append(label)

    @property
    def is_full(self) -> bool:
        return len(self.labels) >= self.count


Criterion = Callable[[AcceptConfig, Candidate, Kept], bool]
"""Whether a candidate may be kept."""
CRITERIA: dict[str, Criterion] = {}
"""Every criterion by the name that rejections are counted under, in the order of judging."""


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Decorator that enters a criterion.

    Args:
        name: Its key in `CRITERIA`: the setting that turns it on.
    """

    def enter(function: Criterion) -> Criterion:
        CRITERIA[name] = function
        return function

    return enter


def rejection(config: AcceptConfig, candidate: Candidate, kept: Kept) -> str | None:
    """The name of the first criterion that a candidate does not meet; None for one to keep.

    Args:
        config: The criteria's settings.
        candidate: What is judged.
        kept: What was kept before.
    """
    for name, meets in CRITERIA.items():
        if not meets(config, candidate, kept):
            return name
    return None
