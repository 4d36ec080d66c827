"""How well a score tells out-of-distribution (OOD) images from in-distribution (ID) ones, with
intervals.

Everything here takes plain numpy scores where higher means more OOD, so it stands at the end of the
data's way and needs no torch. Tied scores are handled exactly: all curves have one point per
distinct score.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from good_rt.errors import GoodRtError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

RECALL_PERCENT = 95
"""The recall at which both false positive rates are taken, in percent: an integer keeps the rank
exact."""

LOWER_IS_BETTER = frozenset({"fpr95", "fpr95_ood"})

_BLOCK = 1 << 20
"""Resampled counts held at once: arrays of 8 MB, which numpy lays on huge pages, so that most of
the time is not spent on page faults (measured: half the time of blocks that fit a core's cache)."""


@dataclass(frozen=True)
class DetectionMetrics:
    """Threshold-free figures of one score on one pair of ID and OOD sets, each in [0, 1].

    Attributes:
        auroc: Probability that an OOD image scores higher than an ID image, ties counting half.
        aupr_in: Area under precision against recall with ID as the positive class, by the
            trapezoidal rule, as ``sklearn.metrics.auc(recall, precision)`` and pytorch-ood have it
            (not the step-wise ``average_precision_score``). A score that is one large tie is
            flattered by it.
        aupr_out: The same with OOD as the positive class.
        fpr95: FPR at 95 % **ID recall**: the share of OOD accepted as ID at the smallest threshold
            that accepts at least 95 % of ID. ID is the positive class, as in ODIN and the energy
            paper: "FPR95" in good-rt.
        fpr95_ood: FPR at 95 % **OOD recall**: the share of ID refused at the largest threshold
            that detects at least 95 % of OOD. OOD is the positive class, as in pytorch-ood's
            ``FPR95TPR``.
    """

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95: float
    fpr95_ood: float


METRICS = tuple(field.name for field in fields(DetectionMetrics))


def detection_metrics(id_scores: ArrayLike, ood_scores: ArrayLike) -> DetectionMetrics:
    """The figures of one score on a pair of ID and OOD sets.

    Args:
        id_scores: (N,) finite, higher = more OOD.
        ood_scores: (M,) finite.

    Raises:
        GoodRtError: either is empty, not a vector, or not finite.
    """
    id_groups, ood_groups, groups = _groups(id_scores, ood_scores)
    values = _from_counts(
        np.bincount(id_groups, minlength=groups), np.bincount(ood_groups, minlength=groups)
    )
    return DetectionMetrics(*map(float, values))


def bootstrap(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    *,
    resamples: int = 200,
    seed: int,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals (low, high) of every figure of `DetectionMetrics`, by name.

    ID and OOD images are resampled separately, each with replacement. The scores are sorted once: a
    resample is then only a count for each distinct score, which is exact and costs O(N + M). The
    draws depend only on the seed and the set sizes, so that rows with the same seed can be
    compared. With perfectly separated scores the interval has no width, as a bootstrap cannot see
    what the sample does not hold.

    Args:
        id_scores: (N,) finite, higher = more OOD.
        ood_scores: (M,) finite.
        resamples: Number of resamples.
        seed: Seed of the draws.
        level: Probability of the intervals.

    Raises:
        GoodRtError: the scores are not as in `detection_metrics`, or there is no resample.
    """
    draws = bootstrap_draws(id_scores, ood_scores, resamples=resamples, seed=seed)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(METRICS, low, high, strict=True)}


def bootstrap_draws(
    id_scores: ArrayLike, ood_scores: ArrayLike, *, resamples: int = 200, seed: int
) -> Floats:
    """The figures of every resample, (resamples, 5) in the order of `METRICS`.

    The draws choose images by their position. So two scores of the same images, in the same order
    and with the same seed, are resampled in pairs, and differences of their draws are draws of
    their difference.

    Args:
        id_scores: (N,) finite, higher = more OOD.
        ood_scores: (M,) finite.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Raises:
        GoodRtError: the scores are not as in `detection_metrics`, or there is no resample.
    """
    if resamples < 1:
        raise GoodRtError(f"bootstrap needs at least one resample, not {resamples}")
    id_groups, ood_groups, groups = _groups(id_scores, ood_scores)
    id_rng, ood_rng = (np.random.default_rng((seed, stream)) for stream in (0, 1))
    block = max(1, _BLOCK // groups)
    values = [
        _from_counts(
            _resample(id_groups, groups, rows, id_rng), _resample(ood_groups, groups, rows, ood_rng)
        )
        for rows in (min(block, resamples - start) for start in range(0, resamples, block))
    ]
    return np.concatenate(values)


def roc_points(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[Floats, Floats]:
    """The ROC curve with ID as the positive class: shares of OOD and of ID accepted, (G + 1,) each.

    It has one point per distinct score, from (0, 0), nothing accepted, to (1, 1);
    `DetectionMetrics.fpr95` is the first abscissa whose ordinate reaches 0.95.

    Args:
        id_scores: (N,) finite, higher = more OOD.
        ood_scores: (M,) finite.

    Raises:
        GoodRtError: the scores are not as in `detection_metrics`.
    """
    id_groups, ood_groups, groups = _groups(id_scores, ood_scores)
    ood_accepted, id_accepted = (
        np.concatenate([[0.0], np.bincount(members, minlength=groups).cumsum() / len(members)])
        for members in (ood_groups, id_groups)
    )
    return ood_accepted, id_accepted


def recall_threshold(id_scores: ArrayLike) -> float:
    """The smallest ID score t such that at least 95 % of the ID scores are at most t.

    Args:
        id_scores: (N,) finite.
    """
    scores = _checked(id_scores, "ID")
    rank = _rank(len(scores))
    return float(np.partition(scores, rank - 1)[rank - 1])


def binomial_interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval (low, high) of a share (Clopper & Pearson, 1934).

    It covers the true share with at least probability ``level``.

    Args:
        count: Successes.
        n: Independent trials.
        level: Probability of the interval.

    Raises:
        GoodRtError: not 0 <= count <= n with n > 0.
    """
    if not (n > 0 and 0 <= count <= n):
        raise GoodRtError(
            f"a binomial interval needs 0 <= count <= n with n > 0, not {count} of {n}"
        )
    from scipy.special import betaincinv  # heavy, and comes with scikit-learn

    tail = (1 - level) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def mean_metrics(rows: list[DetectionMetrics]) -> DetectionMetrics:
    """The mean over OOD sets, each set with the same weight whatever its size."""
    return DetectionMetrics(*map(float, np.mean([astuple(row) for row in rows], axis=0)))


def _checked(scores: ArrayLike, what: str) -> Floats:
    array = np.asarray(scores, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise GoodRtError(
            f"the {what} scores must be a vector of at least one number, not of shape {array.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise GoodRtError(
            f"{bad.size} of {array.size} {what} scores are not finite (the first: {array[bad[0]]} "
            f"at {bad[0]}): check the images and weights that they come from"
        )
    return array


def _groups(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[Counts, Counts, int]:
    """Index of each score, (N,) and (M,), among the distinct scores in rising order, and their
    number.
    """
    id_array, ood_array = _checked(id_scores, "ID"), _checked(ood_scores, "OOD")
    distinct, indices = np.unique(np.concatenate([id_array, ood_array]), return_inverse=True)
    return indices[: id_array.size], indices[id_array.size :], distinct.size


def _resample(members: Counts, groups: int, rows: int, rng: np.random.Generator) -> Counts:
    """Counts (rows, groups) of independent draws with replacement, as many as there are members."""
    draws = members[rng.integers(members.size, size=(rows, members.size), dtype=np.uint32)]
    draws += groups * np.arange(rows)[:, None]
    return np.bincount(draws.ravel(), minlength=rows * groups).reshape(rows, groups)


def _from_counts(ids: Counts, oods: Counts) -> Floats:
    """Counts (..., G) of ID and OOD at each distinct score, rising -> the figures (..., 5) in the
    order of METRICS."""
    ids_up, oods_up = ids.cumsum(-1), oods.cumsum(-1)
    n, m = ids_up[..., -1:], oods_up[..., -1:]
    # Twice the Mann-Whitney U is a whole number, so that ties cost no rounding.
    auroc = _dot(oods, 2 * ids_up - ids) / (2 * n * m)[..., 0]
    falling = (..., slice(None, None, -1))
    ids_down, oods_down = (n - ids_up + ids)[falling], (m - oods_up + oods)[falling]
    aupr_in = _aupr(ids, ids_up, oods_up)
    aupr_out = _aupr(oods[falling], oods_down, ids_down)
    fpr95 = _false_positives(ids_up, oods_up)
    fpr95_ood = _false_positives(oods_down, ids_down)
    return np.stack([auroc, aupr_in, aupr_out, fpr95, fpr95_ood], axis=-1)


def _aupr(positives: Counts, true_positives: Counts, false_positives: Counts) -> Floats:
    """Trapezoids under precision against recall, from cumulated counts in the order of acceptance.

    The curve starts at recall 0 and precision 1. The least float makes the precision 1 where a
    resample has accepted nothing yet, and is lost in rounding everywhere else.
    """
    least = np.finfo(np.float64).tiny
    precision = (true_positives + least) / (true_positives + false_positives + least)
    area = _dot(positives[..., 1:], precision[..., 1:] + precision[..., :-1])
    area += positives[..., 0] * (precision[..., 0] + 1)
    return area / (2 * true_positives[..., -1])


def _dot(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.einsum("...i,...i->...", a, b))


def _false_positives(true_positives: Counts, false_positives: Counts) -> Floats:
    """Share of the negatives accepted where the positives' recall first reaches 95 %, from
    cumulated counts."""
    first = np.argmax(true_positives >= _rank(int(true_positives[..., -1].flat[0])), axis=-1)
    return (
        np.take_along_axis(false_positives, first[..., None], -1)[..., 0] / false_positives[..., -1]
    )


def _rank(n: int) -> int:
    """The least count whose share of n is at least 95 %."""
    return -(-RECALL_PERCENT * n // 100)
