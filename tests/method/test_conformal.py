"""The conformal p-value: its guarantee by permutation (exact) and by simulation, ties, order, and
what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from refusals import divided, refusal_interval, refusals
from scipy.stats import binom

from good_rt.config.settings import DetectorConfig
from good_rt.errors import GoodRtError
from good_rt.method.conformal import check_alpha, conformal_p_value, largest_accepted
from good_rt.method.measurements import Measurements

scores = st.integers(2, 40).flatmap(
    lambda n: arrays(
        np.float64, n, elements=st.floats(-100, 100) | st.sampled_from([0.0, 1.0, 2.0])
    )
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(scores, st.floats(0.01, 0.99))
def test_the_guarantee_is_exact_over_permutations(
    values: NDArray[np.float64], alpha: float
) -> None:
    """Among n+1 exchangeable scores each is equally likely to be the new one: at most ⌊α(n+1)⌋ of
    them are refused."""
    p = [conformal_p_value(np.delete(values, i), values[i : i + 1])[0] for i in range(len(values))]
    assert sum(value <= alpha for value in p) <= alpha * len(values) + 1e-9


@given(scores, st.floats(0.01, 0.99))
def test_what_is_above_the_largest_accepted_score_is_refused(
    calibration: NDArray[np.float64], alpha: float
) -> None:
    if alpha * (len(calibration) + 1) < 1:
        with pytest.raises(GoodRtError, match="calibration images"):
            largest_accepted(calibration, alpha)
        return
    line = largest_accepted(calibration, alpha)
    asked = np.unique([*calibration, *(calibration + 1e-9), *(calibration - 1e-9)])
    np.testing.assert_array_equal(conformal_p_value(calibration, asked) <= alpha, asked > line)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_at_most_alpha_of_exchangeable_inputs_is_refused(alpha: float) -> None:
    rng = np.random.default_rng(1)
    refused = sum(
        int((conformal_p_value(rng.normal(size=500), rng.normal(size=1)) <= alpha).sum())
        for _ in range(4000)
    )
    assert refused <= binom.ppf(0.9999, 4000, alpha)
    assert refused >= binom.ppf(0.0001, 4000, alpha - 1 / 501)


@given(scores, scores)
def test_it_counts_and_falls_with_the_score(
    calibration: NDArray[np.float64], new: NDArray[np.float64]
) -> None:
    p = conformal_p_value(calibration, new)
    n = len(calibration)
    np.testing.assert_allclose(p, [(1 + sum(c >= s for c in calibration)) / (n + 1) for s in new])
    assert (np.diff(p[np.argsort(new)]) <= 0).all()
    assert p.min() >= 1 / (n + 1) and p.max() <= 1
    # only the order of the scores matters
    np.testing.assert_array_equal(p, conformal_p_value(8 * calibration, 8 * new))
    np.testing.assert_array_equal(p, conformal_p_value(calibration[::-1], new))


def test_ties_count_against_refusal() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    np.testing.assert_allclose(
        conformal_p_value(calibration, np.array([0.0, 2.0, 3.0, 9.0])), [1.0, 0.8, 0.4, 0.2]
    )


@pytest.mark.parametrize("calibration", [[], [1.0, np.nan], [np.inf]])
def test_without_finite_scores_there_is_no_p_value(calibration: list[float]) -> None:
    with pytest.raises(GoodRtError, match="at least one score, all finite"):
        conformal_p_value(np.array(calibration), np.array([1.0]))


@given(st.integers(1, 2000), st.floats(0.0005, 0.999))
def test_an_alpha_is_taken_where_something_could_be_refused(size: int, alpha: float) -> None:
    if abs(alpha * (size + 1) - 1) < 1e-9:
        return
    smallest = conformal_p_value(np.zeros(size), np.array([1.0]))[0]
    if smallest <= alpha:
        check_alpha(alpha, size)
    else:
        with pytest.raises(GoodRtError, match=r"needs at least \d+ calibration images"):
            check_alpha(alpha, size)


def test_the_needed_number_of_images_is_named_and_suffices() -> None:
    with pytest.raises(GoodRtError, match="at least 99 calibration images"):
        check_alpha(0.01, 50)
    check_alpha(0.01, 99)
    for alpha in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(GoodRtError, match="alpha must be between 0 and 1"):
            check_alpha(alpha, 1000)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_refusals_lie_where_chance_lets_them(alpha: float) -> None:
    rng, sizes, inside = np.random.default_rng(2), (400, 900), []
    low, high = refusal_interval(alpha, *sizes)
    for _ in range(1000):
        calibration, test = (rng.normal(size=size) for size in sizes)
        inside.append(low <= (conformal_p_value(calibration, test) <= alpha).mean() <= high)
    assert 0.94 <= np.mean(inside) <= 0.985  # counts are whole, so a little more than 0.95
    plain = binom(900, alpha).interval(0.95)
    assert low < plain[0] / 900 and plain[1] / 900 < high


def measurements(values: NDArray[np.float64]) -> Measurements:
    """Images of one class with these discrepancies (N, J)."""
    names = DetectorConfig().discrepancies
    of = dict(zip(names, values.T, strict=False))
    return Measurements(np.zeros((len(values), 1), np.float32), of)


def test_each_split_divides_the_images() -> None:
    rows = {"held_out": np.arange(10.0), "test": np.arange(10.0, 17.0)}
    measured = {name: measurements(values[:, None]) for name, values in rows.items()}
    for pooled in (False, True):
        splits = [
            [part.discrepancies["mahalanobis"] for part in parts]
            for parts in divided(measured, pooled, 3)
        ]
        assert [[len(part) for part in parts] for parts in splits] == [[5, 5, 7]] * 3
        for parts in splits:
            np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(17))
            assert pooled or (parts[2] >= 10).all()
        assert not np.array_equal(splits[0][0], splits[1][0])


def test_refusals_of_pooled_images_are_beta_binomial() -> None:
    rng = np.random.default_rng(3)
    sizes = {"held_out": 800, "test": 900}
    measured = {name: measurements(rng.normal(size=(size, 2))) for name, size in sizes.items()}
    for alpha, row in refusals(measured, pooled=True, splits=300)["alphas"].items():
        assert row["mean"] == pytest.approx(row["expected"], abs=0.003), alpha
        assert 0.9 <= row["inside"] <= 1, alpha
