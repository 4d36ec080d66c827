"""Combinations of tail probabilities: how rare each discrepancy is among ID images.

They need no weights and no common scale. −log p of a discrepancy is read off held-out ID images;
the score is calibrated as a whole afterwards, so that dependence between them does no harm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from good_rt.method.combination.base import FitValues, combination, constant, equal_weights

SHARES = (0.9, 0.7, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02)
"""Shares of ID images above the knots between which −log p is interpolated; beyond the last its
slope stays, as an exponential tail's does."""


@dataclass(frozen=True)
class TailProbabilities:
    """−log p_j of every discrepancy, piecewise linear, and its sum or maximum.

    Attributes:
        knots: (J, S) values that the shares of ID images exceed.
        slopes: (J, S) slope from each knot on; before the first knot it is the first one's.
        largest: The maximum over the discrepancies instead of the sum.
    """

    knots: tuple[tuple[float, ...], ...]
    slopes: tuple[tuple[float, ...], ...]
    largest: bool

    @property
    def weights(self) -> tuple[float, ...]:
        return equal_weights(len(self.knots))

    def __call__(self, standardised: Tensor) -> Tensor:
        knots, slopes = (constant(part, standardised) for part in (self.knots, self.slopes))
        steps = torch.cat([slopes[:, :1], slopes[:, 1:] - slopes[:, :-1]], dim=1)
        beyond = standardised[:, :, None] - knots
        rising = torch.cat([beyond[:, :, :1], beyond[:, :, 1:].clamp_min(0)], dim=2)
        surprise = (rising * steps).sum(dim=2) - math.log(SHARES[0])
        return surprise.amax(dim=1) if self.largest else surprise.sum(dim=1)


def _fit(values: FitValues, largest: bool) -> TailProbabilities:
    surprise = -np.log(np.array(SHARES))
    knots, slopes = [], []
    for column in values.id.numpy().T:
        points = np.quantile(column, 1 - np.array(SHARES))
        # equal quantiles of values with ties would make a slope infinite
        gaps = np.maximum(np.diff(points), 1e-3)
        points = np.concatenate([points[:1], points[0] + np.cumsum(gaps)])
        rises = np.diff(surprise) / gaps
        knots.append(tuple(points.tolist()))
        slopes.append((*rises.tolist(), float(rises[-1])))
    return TailProbabilities(tuple(knots), tuple(slopes), largest)


@combination("fisher")
def fit_fisher(values: FitValues) -> TailProbabilities:
    """Σ_j −log p_j, Fisher's combination."""
    return _fit(values, largest=False)


@combination("min_p")
def fit_min_p(values: FitValues) -> TailProbabilities:
    """max_j −log p_j: the smallest tail probability."""
    return _fit(values, largest=True)
