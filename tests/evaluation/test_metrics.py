"""The detection metrics against scikit-learn, pytorch-ood, scipy and a naive bootstrap, and their
invariants."""

from __future__ import annotations

import numpy as np
import pytest
from frechet import frechet_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.stats import binomtest
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve

from good_rt.errors import GoodRtError
from good_rt.evaluation.metrics import (
    binomial_interval,
    bootstrap,
    detection_metrics,
    mean_metrics,
    recall_threshold,
    roc_points,
)

Floats = NDArray[np.float64]
few = st.lists(st.integers(-6, 6), min_size=1, max_size=40).map(
    lambda values: np.array(values, np.float64)
)
"""Short and full of ties."""


def _labelled(id_scores: Floats, ood_scores: Floats) -> tuple[NDArray[np.bool_], Floats]:
    is_ood = np.repeat([False, True], [id_scores.size, ood_scores.size])
    return is_ood, np.concatenate([id_scores, ood_scores])


def _reference(id_scores: Floats, ood_scores: Floats) -> dict[str, float]:
    """All five figures by scikit-learn alone."""
    is_ood, scores = _labelled(id_scores, ood_scores)
    values = {"auroc": roc_auc_score(is_ood, scores)}
    for name, positive, sign in (("in", ~is_ood, -1), ("out", is_ood, 1)):
        precision, recall, _ = precision_recall_curve(positive, sign * scores)
        values[f"aupr_{name}"] = auc(recall, precision)
        false_positive, true_positive, _ = roc_curve(
            positive, sign * scores, drop_intermediate=False
        )
        rate = false_positive[np.argmax(true_positive >= 0.95)]
        values["fpr95" if name == "in" else "fpr95_ood"] = rate
    return values


@given(few, few)
def test_agrees_with_scikit_learn_on_ties(id_scores: Floats, ood_scores: Floats) -> None:
    metrics = detection_metrics(id_scores, ood_scores)
    for name, value in _reference(id_scores, ood_scores).items():
        assert getattr(metrics, name) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("decimals", [12, 1])
def test_agrees_with_scikit_learn_on_many_scores(decimals: int) -> None:
    rng = np.random.default_rng(3)
    id_scores, ood_scores = (
        rng.normal(size=3000).round(decimals),
        rng.normal(1.3, 1.5, 1100).round(decimals),
    )
    metrics = detection_metrics(id_scores.astype(np.float32), ood_scores.astype(np.float32))
    for name, value in _reference(
        id_scores.astype(np.float32), ood_scores.astype(np.float32)
    ).items():
        assert getattr(metrics, name) == pytest.approx(value, abs=1e-12), name


def test_agrees_with_pytorch_ood() -> None:
    """Its FPR95TPR takes OOD as the positive class: our fpr95_ood. With the roles swapped it is our
    fpr95."""
    metrics_module = pytest.importorskip("pytorch_ood.metrics", exc_type=ImportError)
    import torch

    rng = np.random.default_rng(4)
    id_scores, ood_scores = rng.normal(size=2000).round(2), rng.normal(1, 1.2, 700).round(2)
    ours = detection_metrics(id_scores, ood_scores)
    is_ood, scores = _labelled(id_scores, ood_scores)
    labels = torch.from_numpy(np.where(is_ood, -1, 0))
    theirs = metrics_module.OODMetrics().update(torch.from_numpy(scores), labels).compute()
    assert ours.auroc == pytest.approx(theirs["AUROC"], abs=1e-12)
    assert ours.aupr_in == pytest.approx(theirs["AUPR-IN"], abs=1e-12)
    assert ours.aupr_out == pytest.approx(theirs["AUPR-OUT"], abs=1e-12)
    assert ours.fpr95_ood == pytest.approx(theirs["FPR95TPR"], abs=1e-12)
    swapped = metrics_module.OODMetrics().update(torch.from_numpy(-scores), -1 - labels).compute()
    assert ours.fpr95 == pytest.approx(swapped["FPR95TPR"], abs=1e-12)


def test_the_two_fpr_conventions() -> None:
    """ID at 1 to 100 and OOD at 95, 96 and 200: the threshold that keeps 95 ID images lets one OOD
    in three pass."""
    metrics = detection_metrics(np.arange(1, 101), np.array([95, 96, 200]))
    assert metrics.fpr95 == pytest.approx(1 / 3)
    assert metrics.fpr95_ood == pytest.approx(
        6 / 100
    )  # 95 to 100 score at least as high as the lowest OOD image
    assert recall_threshold(np.arange(1, 101)) == 95


@given(few, few)
def test_swapping_the_roles_mirrors_the_figures(id_scores: Floats, ood_scores: Floats) -> None:
    one, other = detection_metrics(id_scores, ood_scores), detection_metrics(ood_scores, id_scores)
    assert other.auroc == pytest.approx(1 - one.auroc, abs=1e-15)
    mirrored = detection_metrics(-ood_scores, -id_scores)
    assert mirrored.auroc == one.auroc
    assert (mirrored.aupr_in, mirrored.aupr_out) == pytest.approx(
        (one.aupr_out, one.aupr_in), abs=1e-15
    )
    assert (mirrored.fpr95, mirrored.fpr95_ood) == (one.fpr95_ood, one.fpr95)


@given(few, few)
def test_rising_maps_change_nothing(id_scores: Floats, ood_scores: Floats) -> None:
    before = detection_metrics(id_scores, ood_scores)
    for rising in (np.exp, lambda x: 3 * x - 7, lambda x: x**3):
        assert detection_metrics(rising(id_scores), rising(ood_scores)) == before


@given(few)
def test_identical_sets_are_told_apart_by_chance(scores: Floats) -> None:
    assert detection_metrics(scores, scores).auroc == 0.5


def test_one_large_tie_and_perfect_separation() -> None:
    tie = detection_metrics(np.zeros(10), np.zeros(4))
    assert (tie.auroc, tie.fpr95, tie.fpr95_ood) == (0.5, 1, 1)
    perfect = detection_metrics(np.arange(10), np.arange(10, 14))
    assert (perfect.auroc, perfect.aupr_in, perfect.aupr_out, perfect.fpr95, perfect.fpr95_ood) == (
        1,
        1,
        1,
        0,
        0,
    )
    assert set(bootstrap(np.arange(10), np.arange(10, 14), seed=0).values()) == {
        (1.0, 1.0),
        (0.0, 0.0),
    }


@given(few, few)
def test_roc_points_hold_auroc_and_fpr(id_scores: Floats, ood_scores: Floats) -> None:
    ood_accepted, id_accepted = roc_points(id_scores, ood_scores)
    metrics = detection_metrics(id_scores, ood_scores)
    assert (ood_accepted[0], id_accepted[0], ood_accepted[-1], id_accepted[-1]) == (0, 0, 1, 1)
    assert auc(ood_accepted, id_accepted) == pytest.approx(metrics.auroc, abs=1e-12)
    assert ood_accepted[np.argmax(id_accepted >= 0.95)] == metrics.fpr95
    assert np.mean(ood_scores <= recall_threshold(id_scores)) == metrics.fpr95


def test_bootstrap_is_the_naive_one() -> None:
    """The same draws, carried out by hand on the scores themselves."""
    rng = np.random.default_rng(5)
    id_scores, ood_scores = rng.normal(size=300).round(1), rng.normal(1, 1, 80).round(1)
    id_rng, ood_rng = np.random.default_rng((9, 0)), np.random.default_rng((9, 1))
    id_draws = id_rng.integers(300, size=(40, 300), dtype=np.uint32)
    ood_draws = ood_rng.integers(80, size=(40, 80), dtype=np.uint32)
    naive = [
        detection_metrics(id_scores[a], ood_scores[b])
        for a, b in zip(id_draws, ood_draws, strict=True)
    ]
    for name, interval in bootstrap(id_scores, ood_scores, resamples=40, seed=9).items():
        expected = np.quantile([getattr(one, name) for one in naive], [0.025, 0.975])
        np.testing.assert_allclose(interval, expected, atol=1e-12, err_msg=name)


def test_bootstrap_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    id_scores, ood_scores = rng.normal(size=120), rng.normal(1, 1, 50)
    at_once = bootstrap(id_scores, ood_scores, resamples=30, seed=1)
    monkeypatch.setattr("good_rt.evaluation.metrics._BLOCK", 1000)
    in_blocks = bootstrap(id_scores, ood_scores, resamples=30, seed=1)
    assert at_once == in_blocks
    assert at_once != bootstrap(id_scores, ood_scores, resamples=30, seed=2)


def test_bootstrap_covers_the_true_auroc() -> None:
    """AUROC of N(0, 1) against N(1, 1) is Φ(1/√2) = 0.7602; 95 % intervals miss it about once in 20
    times."""
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(100):
        low, high = bootstrap(
            rng.normal(size=200), rng.normal(1, 1, 100), resamples=100, seed=seed
        )["auroc"]
        hits += low <= 0.760250 <= high
    assert 86 <= hits <= 100


@settings(max_examples=50)
@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.9, 0.95, 0.99]))
def test_binomial_interval_is_scipys_exact_one(count: int, n: int, level: float) -> None:
    count = min(count, n)
    expected = binomtest(count, n).proportion_ci(level, "exact")
    assert binomial_interval(count, n, level) == pytest.approx(
        (expected.low, expected.high), abs=1e-10
    )


@pytest.mark.parametrize(("count", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_binomial_interval_refuses_impossible_counts(count: int, n: int) -> None:
    with pytest.raises(GoodRtError, match="0 <= count <= n"):
        binomial_interval(count, n)


@pytest.mark.parametrize(
    ("id_scores", "ood_scores", "message"),
    [
        ([], [1.0], "ID scores must be a vector"),
        ([1.0], [[1.0]], "OOD scores must be a vector"),
        ([1.0, np.nan], [1.0], "1 of 2 ID scores are not finite .*nan at 1"),
        ([1.0], [np.inf, np.nan], "2 of 2 OOD scores are not finite .*inf at 0"),
    ],
)
def test_bad_scores_are_named(
    id_scores: list[float], ood_scores: list[float], message: str
) -> None:
    with pytest.raises(GoodRtError, match=message):
        detection_metrics(id_scores, ood_scores)
    with pytest.raises(GoodRtError, match=message):
        bootstrap(id_scores, ood_scores, seed=0)


def test_bootstrap_needs_a_resample() -> None:
    with pytest.raises(GoodRtError, match="at least one resample"):
        bootstrap([0.0], [1.0], resamples=0, seed=0)


def test_the_mean_of_metrics() -> None:
    one, two = detection_metrics([0, 1, 2], [1, 3]), detection_metrics([0, 1, 2], [5])
    assert mean_metrics([one, two]).auroc == pytest.approx((one.auroc + two.auroc) / 2)


def test_frechet_distance_is_that_of_scipys_matrix_root() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        rng.normal(size=(300, 5)),
        rng.normal(0.4, 1.7, (200, 5)) @ rng.normal(size=(5, 5)),
    )
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = np.square(first.mean(0) - second.mean(0)).sum()
    expected = gap + np.trace(
        sum(covariances) - 2 * np.real(sqrtm(covariances[0] @ covariances[1]))
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 2) == pytest.approx(4 * 5)


def test_frechet_distance_says_what_it_cannot_compare() -> None:
    with pytest.raises(GoodRtError, match=r"\(3, 2\) and \(3, 4\)"):
        frechet_distance(np.ones((3, 2)), np.ones((3, 4)))
