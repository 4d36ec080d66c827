"""What a criterion of acceptance is, and the register of all.

Candidates are judged in the order of their indices, each by itself and beside those that were kept
before, so that a set is the same however it was interrupted. NumPy only.
"""

from __future__ import annotations

from collections import Counter
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
        per_class: How many of each class were kept.
    """

    count: int
    classes: int
    per_class: Counter[int] = field(default_factory=Counter)
    _features: NDArray[np.float32] | None = None

    def add(self, label: int, feature: NDArray[np.float32] | None = None) -> None:
        """Adds an image; its feature (D,) where a gap between images is asked for."""
        if feature is not None:
            if self._features is None:  # once for all, since a copy for each would be quadratic
                self._features = np.empty((max(self.count, 1), len(feature)), np.float32)
            self._features[self.number] = feature
        self.per_class[label] += 1

    @property
    def number(self) -> int:
        return self.per_class.total()

    @property
    def features(self) -> NDArray[np.float32] | None:
        """(n, D) of unit norm; None where there are none."""
        return None if self._features is None else self._features[: self.number]

    @property
    def is_full(self) -> bool:
        return self.number >= self.count


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
