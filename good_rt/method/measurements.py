"""What a detector measures in images: logits and discrepancies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Measurements:
    """Logits and discrepancies of N images.

    Attributes:
        logits: (N, K).
        discrepancies: (N,) by name.
        features: (N, D), where they are kept.
    """

    logits: NDArray[np.float32]
    discrepancies: Mapping[str, NDArray[np.float64]]
    features: NDArray[np.float32] | None = None

    def values(self, names: Sequence[str]) -> NDArray[np.float64]:
        """(N, J) of these discrepancies."""
        return np.stack([self.discrepancies[name] for name in names], axis=1)

    def take(self, rows: slice | NDArray[np.int64]) -> Measurements:
        """What the images of these rows measure."""
        return Measurements(
            self.logits[rows],
            {name: values[rows] for name, values in self.discrepancies.items()},
            None if self.features is None else self.features[rows],
        )
