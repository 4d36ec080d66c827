"""The largest discrepancy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from good_rt.method.combination.base import FitValues, combination, equal_weights


@dataclass(frozen=True)
class Maximum:
    """max_j a_j.

    Attributes:
        weights: Equal weights.
    """

    weights: tuple[float, ...]

    def __call__(self, standardised: Tensor) -> Tensor:
        return standardised.amax(dim=1)


@combination("max")
def fit_maximum(values: FitValues) -> Maximum:
    """The maximum; nothing is fitted."""
    return Maximum(equal_weights(values.id.shape[1]))
