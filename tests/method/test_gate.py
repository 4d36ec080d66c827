"""The gate's invariants, and its fit on known data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from good_rt.errors import GoodRtError
from good_rt.method.gate import combine, fit, gate

value = st.floats(-50, 50)
weight = st.floats(0.01, 0.99)
curvature = st.floats(-5, 5)


@given(value, value, weight, curvature)
def test_the_gate_is_a_weight_and_gives_the_score(image, feature, pi, c):
    a, b = np.array([image]), np.array([feature])
    w = gate(a, b, pi, c)
    assert (w >= -1e-9).all()
    assert (w <= 1 + 1e-9).all()
    np.testing.assert_allclose(w * b + (1 - w) * a, combine(a, b, pi, c), atol=1e-6)


@given(value, value, weight, curvature, st.floats(0.001, 10))
def test_the_score_increases_in_both_discrepancies(image, feature, pi, c, step):
    here = combine(np.array(image), np.array(feature), pi, c)
    assert combine(np.array(image + step), np.array(feature), pi, c) >= here - 1e-9
    assert combine(np.array(image), np.array(feature + step), pi, c) >= here - 1e-9


def samples(ood_energy, ood_distance, n=2000):
    rng = np.random.default_rng(0)
    return (
        rng.normal(-7, 2, n),
        rng.normal(0.3, 0.1, n),
        rng.normal(ood_energy, 2, n),
        rng.normal(ood_distance, 0.1, n),
    )


def test_the_fit_trusts_the_discrepancy_that_separates():
    assert fit(*samples(-1, 0.3)).pi < 0.25  # energy alone tells
    assert fit(*samples(-7, 0.6)).pi > 0.75  # distance alone tells
    both = fit(*samples(-3, 0.5))
    assert 0.25 < both.pi < 0.75


def test_weights_say_what_the_fit_is_for():
    """A few images that distance alone tells weigh as much as many that energy alone tells, as if
    they were as many."""
    *known, energy, distance = samples(-1, 0.3)
    other_energy, other_distance = samples(-7, 0.6)[2:]
    few = (
        np.concatenate([energy, other_energy[:200]]),
        np.concatenate([distance, other_distance[:200]]),
    )
    many = (
        np.concatenate([energy, np.tile(other_energy[:200], 10)]),
        np.concatenate([distance, np.tile(other_distance[:200], 10)]),
    )
    weighted = fit(*known, *few, np.concatenate([np.full(2000, 1 / 2000), np.full(200, 1 / 200)]))
    assert weighted.pi == pytest.approx(fit(*known, *many).pi, abs=1e-3)
    assert weighted.pi > fit(*known, *few).pi + 0.02


def test_the_fit_learns_a_soft_maximum_and_a_soft_minimum():
    """OOD that is far in either discrepancy needs the maximum, ID that is far in either needs the
    minimum."""
    rng = np.random.default_rng(0)
    near = lambda: rng.normal(0, 1, 2000)  # noqa: E731
    either = np.stack([np.concatenate([near() + 3, near()]), np.concatenate([near(), near() + 3])])
    assert fit(near(), near(), *either).c > 0.5
    assert fit(*either, near() + 3, near() + 3).c < -0.5


@given(value, value, weight)
def test_the_score_has_no_step_at_c_0(image, feature, pi):
    a, b = np.array([image]), np.array([feature])
    for c in (-1.01e-6, -0.99e-6, 0.0, 0.99e-6, 1.01e-6):
        expected = (1 - pi) * a + pi * b + c / 2 * pi * (1 - pi) * (b - a) ** 2
        np.testing.assert_allclose(combine(a, b, pi, c), expected, atol=1e-6)


def test_a_score_of_one_image_does_not_depend_on_others():
    score = fit(*samples(-3, 0.5))
    energy, distance = np.array([-7.0, -2.0, 0.0]), np.array([0.2, 0.5, 0.9])
    together = score(energy, distance)
    np.testing.assert_array_equal(
        together, [score(energy[i : i + 1], distance[i : i + 1])[0] for i in range(3)]
    )


def test_degenerate_data_is_refused():
    one = np.ones(5)
    with pytest.raises(GoodRtError, match="same for all ID images"):
        fit(one, one, one, one)
    with pytest.raises(GoodRtError, match="finite OOD energies"):
        fit(np.arange(5.0), np.arange(5.0), np.array([1.0, np.nan]), np.arange(2.0))
