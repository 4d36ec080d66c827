"""The weights of GOOD's unified score: the more a discrepancy of features tells generated images
from ID images, measured by a Kullback-Leibler divergence, the more it weighs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from good_rt.method.combination.base import FitValues, combination, constant
from good_rt.method.schedule import FloatArray

RATE = 0.5
"""a of w = 1 − exp(−a·KL), as in GOOD."""
BINS = 20
"""Bins of the histograms that the divergence is estimated from."""
PRIOR_COUNT = 0.5
"""ID images that are added to every bin, so that the divergence is finite."""


@dataclass(frozen=True)
class KlWeighted:
    """Σ_j v_j·(a_j − low_j)/(high_j − low_j): with J = 2, (1 − w)·ã_img + w·ã_feat with w =
    1 − exp(−½·KL(generated ‖ ID)) of the feature-level discrepancy, both ã min-max normalised.

    GOOD (arXiv 2510.17131, Sec. 3.4) takes w, low and high from whole test sets instead, and
    normalises the image level only. Of J − 1 feature-level discrepancies each has a share of w in
    proportion to its divergence, and w is of their sum. v_1 = 1 − w is above 0, so that the score
    increases in the first discrepancy, and does not fall in any.

    Attributes:
        divergences: KL of each discrepancy but the first, in nats, at least 0.
        low: The smallest standardised value of each discrepancy on ID and generated images.
        high: The largest.
    """

    divergences: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def normalised_weights(self) -> tuple[float, ...]:
        """v: the weights of the normalised discrepancies, of sum 1."""
        total = sum(self.divergences)
        first = math.exp(-RATE * total)
        shares = (value / total if total > 0 else 0.0 for value in self.divergences)
        return (first, *((1 - first) * share for share in shares))

    @property
    def _slopes(self) -> tuple[float, ...]:
        ranges = (high - low for high, low in zip(self.high, self.low, strict=True))
        return tuple(v / width for v, width in zip(self.normalised_weights, ranges, strict=True))

    @property
    def weights(self) -> tuple[float, ...]:
        total = sum(self._slopes)
        return tuple(slope / total for slope in self._slopes)

    def __call__(self, standardised: Tensor) -> Tensor:
        above_low = standardised - constant(self.low, standardised)
        return (above_low * constant(self._slopes, standardised)).sum(dim=1)


def kl_divergence(ood: FloatArray, ood_weights: FloatArray, known: FloatArray) -> float:
    """KL(OOD ‖ ID) of values in nats, at least 0, at most log(2·N + `BINS`).

    Both are counted in `BINS` bins between quantiles of ID and OOD values, both sides of the same
    weight: the estimate is the same for every increasing function of the values, as the divergence
    itself is, and no outlier widens the bins.

    Args:
        ood: (M,) values of OOD images.
        ood_weights: (M,) their weights.
        known: (N,) values of ID images.
    """
    values = np.concatenate([known, ood])
    weights = np.concatenate(
        [np.full(len(known), 0.5 / len(known)), 0.5 * ood_weights / ood_weights.sum()]
    )
    order = np.argsort(values, kind="stable")
    levels = np.arange(1, BINS) / BINS
    # rounding must not move a level that a sum of weights meets exactly
    ranks = np.searchsorted(np.cumsum(weights[order]) + 1e-9, levels)
    edges = np.unique(values[order][ranks])

    def counted(of: FloatArray, weighted: FloatArray) -> FloatArray:
        bins = np.searchsorted(edges, of)
        return np.bincount(bins, weighted, len(edges) + 1).astype(np.float64)

    p = counted(ood, ood_weights / ood_weights.sum())
    q = counted(known, np.ones(len(known))) + PRIOR_COUNT
    q /= q.sum()
    seen = p > 0
    return max(0.0, float((p[seen] * np.log(p[seen] / q[seen])).sum()))


@combination("kl", generated=True)
def fit_kl(values: FitValues) -> KlWeighted:
    """The divergence of every discrepancy but the first, and the range of each.

    The first discrepancy is the image-level one, the energy.
    """
    known = values.id.numpy()
    ood, ood_weights = (part.numpy() for part in values.generated("kl"))
    both = np.concatenate([known, ood])
    return KlWeighted(
        tuple(
            kl_divergence(ood[:, column], ood_weights, known[:, column])
            for column in range(1, known.shape[1])
        ),
        tuple(both.min(axis=0).tolist()),
        tuple(both.max(axis=0).tolist()),
    )
