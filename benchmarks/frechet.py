"""The Fréchet distance of two sets of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from good_rt.errors import GoodRtError


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """‖μ₁−μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of two sets of features (Heusel et al., arXiv 1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is
    symmetric.

    Args:
        first: (N, D) features.
        second: (M, D) features.

    Raises:
        GoodRtError: a set has fewer than two rows, or the columns differ.
    """
    sets = [np.asarray(features, np.float64) for features in (first, second)]
    if (
        any(features.ndim != 2 or len(features) < 2 for features in sets)
        or sets[0].shape[1] != sets[1].shape[1]
    ):
        shapes = " and ".join(str(features.shape) for features in sets)
        raise GoodRtError(
            "the Fréchet distance takes (N, D) and (M, D) features of at least two rows, not "
            f"{shapes}"
        )
    means = [features.mean(0) for features in sets]
    covariances = [
        np.cov(features, rowvar=False).reshape(features.shape[1], -1) for features in sets
    ]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0))
    spread = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum()
    return float(np.square(means[0] - means[1]).sum() + spread)
