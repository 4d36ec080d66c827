"""The combinations: what holds of each, and what each is fitted to."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from good_rt.config.settings import CombinationName, DiscrepancyName, FeatureDiscrepancyName
from good_rt.errors import GoodRtError
from good_rt.method.combination import COMBINATIONS, Combination, FitValues
from good_rt.method.combination.gate import Gate
from good_rt.method.combination.kl import BINS, KlWeighted, kl_divergence
from good_rt.method.combination.linear import Linear
from good_rt.method.combination.tail import SHARES
from good_rt.method.discrepancy import DISCREPANCIES

NEEDS_GENERATED = ("gate", "kl", "logistic")
value = st.floats(-50, 50)
count = st.integers(2, 4)
curvature = st.floats(-5, 5)
Array = NDArray[np.float64]


def normal(*means: float, images: int = 1000, seed: int = 0) -> Tensor:
    """Standardised discrepancies (images, J) around these means."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(means, 1, (images, len(means))))


def fit(name: str, *ood_means: float, weights: Tensor | None = None) -> Combination:
    """The combination of ID images around 0 and OOD images around these means."""
    known, ood = normal(*np.zeros(len(ood_means))), normal(*ood_means, seed=1)
    return COMBINATIONS[name](FitValues(known, ood, weights))


FITTED = {name: fit(name, 1.0, 2.0, 0.5) for name in COMBINATIONS}


@st.composite
def gates(draw: st.DrawFn) -> tuple[Gate, Tensor]:
    """A gate of two or three discrepancies, and one image's discrepancies (1, J)."""
    size = draw(st.integers(2, 3))
    powers = np.array(draw(st.lists(st.floats(0.01, 1), min_size=size, max_size=size)))
    image = draw(st.lists(value, min_size=size, max_size=size))
    weights = tuple((powers / powers.sum()).tolist())
    return Gate(weights, draw(curvature)), torch.tensor([image], dtype=torch.float64)


def test_the_settings_list_every_combination_and_discrepancy() -> None:
    assert sorted(get_args(CombinationName)) == sorted(COMBINATIONS)
    assert get_args(DiscrepancyName) == tuple(DISCREPANCIES)
    features = tuple(name for name in DISCREPANCIES if name != "energy")
    assert get_args(FeatureDiscrepancyName) == features


@pytest.mark.parametrize("name", list(COMBINATIONS))
@given(image=st.lists(value, min_size=3, max_size=3), step=st.floats(0.001, 10))
def test_the_score_increases_in_every_discrepancy(
    name: str, image: list[float], step: float
) -> None:
    here = torch.tensor([image], dtype=torch.float64)
    for column in range(3):
        moved = here.clone()
        moved[0, column] += step
        assert FITTED[name](moved) >= FITTED[name](here) - 1e-9
    assert FITTED[name](here + step) > FITTED[name](here)


@pytest.mark.parametrize("name", list(COMBINATIONS))
def test_a_score_of_one_image_does_not_depend_on_others(name: str) -> None:
    images = 3 * normal(0.0, 0.0, 0.0, images=20)
    alone = torch.cat([FITTED[name](image) for image in images.split(1)])
    together = FITTED[name](images)
    assert together.shape == (20,)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    reversed_order = FITTED[name](images.flip(0)).flip(0)
    torch.testing.assert_close(together, reversed_order, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(COMBINATIONS))
def test_weights_are_shares(name: str) -> None:
    weights = FITTED[name].weights
    assert len(weights) == 3 and sum(weights) == pytest.approx(1)
    assert all(0 <= weight <= 1 for weight in weights)


@pytest.mark.parametrize("name", list(COMBINATIONS))
def test_one_discrepancy_is_ranked_as_it_is(name: str) -> None:
    combine, images = fit(name, 2.0), normal(0.0, images=50, seed=2)
    assert combine.weights == (1.0,)
    assert torch.equal(combine(images).argsort(), images[:, 0].argsort())


@pytest.mark.parametrize("name", list(COMBINATIONS))
def test_float32_scores_are_those_of_float64(name: str) -> None:
    """As in detector.onnx."""
    images = 20 * normal(0.0, 0.0, 0.0, images=200)
    expected = FITTED[name](images)
    found = FITTED[name](images.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(COMBINATIONS))
def test_nan_propagates(name: str) -> None:
    images = normal(0.0, 0.0, 0.0, images=3)
    images[1, 2] = torch.nan
    assert FITTED[name](images).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", list(COMBINATIONS))
def test_combinations_that_need_generated_images_say_so_in_one_line(name: str) -> None:
    values = FitValues(normal(0.0, 0.0))
    if name not in NEEDS_GENERATED:
        assert len(COMBINATIONS[name](values).weights) == 2
        return
    with pytest.raises(GoodRtError) as caught:
        COMBINATIONS[name](values)
    expected = f"the combination {name} is fitted on generated images; give some, or choose sum"
    assert str(caught.value) == expected


def test_the_sum_is_the_mean_and_the_maximum_the_largest() -> None:
    images = normal(0.0, 1.0, -1.0, images=30)
    torch.testing.assert_close(FITTED["sum"](images), images.mean(dim=1))
    torch.testing.assert_close(FITTED["max"](images), images.max(dim=1).values)


@pytest.mark.parametrize("name", NEEDS_GENERATED)
def test_the_fit_trusts_the_discrepancy_that_separates(name: str) -> None:
    assert fit(name, 3.0, 0.0).weights[0] > 0.75
    assert fit(name, 0.0, 3.0).weights[1] > 0.75
    assert 0.25 < fit(name, 2.0, 2.0).weights[0] < 0.75
    weights = fit(name, 0.0, 3.0, 0.0).weights
    assert weights[1] == max(weights) > 0.6


def test_the_logistic_weights_ignore_a_discrepancy_that_falls_on_ood() -> None:
    weights = fit("logistic", 2.0, -1.0).weights
    assert weights == (1.0, 0.0)


def test_the_logistic_fit_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    known, ood = normal(0.0, 0.0, 0.0), normal(1.0, 2.0, 0.5, seed=1)
    peer = LogisticRegression(C=np.inf).fit(
        torch.cat([known, ood]).numpy(), np.repeat([0, 1], [len(known), len(ood)])
    )
    expected = peer.coef_[0] / peer.coef_[0].sum()
    assert FITTED["logistic"].weights == pytest.approx(expected.tolist(), abs=0.02)


@pytest.mark.parametrize("name", NEEDS_GENERATED)
def test_weights_say_what_the_fit_is_for(name: str) -> None:
    """A few images that the second discrepancy tells weigh as much as many that the first tells, as
    if they were as many."""
    known, first, second = normal(0.0, 0.0), normal(3.0, 0.0, seed=1), normal(0.0, 3.0, seed=2)
    few, many = torch.cat([first, second[:100]]), torch.cat([first, second[:100].repeat(10, 1)])
    shares = torch.cat([torch.full((1000,), 1 / 1000), torch.full((100,), 1 / 100)]).double()
    weighted = COMBINATIONS[name](FitValues(known, few, shares))
    repeated = COMBINATIONS[name](FitValues(known, many))
    unweighted = COMBINATIONS[name](FitValues(known, few))
    assert weighted.weights == pytest.approx(repeated.weights, abs=1e-3)
    assert weighted.weights[1] > unweighted.weights[1] + 0.02


def test_the_gate_learns_a_soft_maximum_and_a_soft_minimum() -> None:
    """OOD that is far in either discrepancy needs the maximum, ID that is far in either needs the
    minimum."""
    near, far = normal(0.0, 0.0, images=4000), normal(3.0, 3.0, images=4000, seed=1)
    either = torch.cat([normal(3.0, 0.0, seed=2), normal(0.0, 3.0, seed=3)])
    of_maximum: Any = COMBINATIONS["gate"](FitValues(near, either))
    of_minimum: Any = COMBINATIONS["gate"](FitValues(either, far))
    assert of_maximum.c > 0.5
    assert of_minimum.c < -0.5


@given(gates())
def test_the_gates_derivatives_are_weights_of_sum_1(case: tuple[Gate, Tensor]) -> None:
    gate, image = case
    leaf = image.clone().requires_grad_(True)
    (weights,) = torch.autograd.grad(gate(leaf).sum(), leaf)
    if abs(gate.c) >= 1e-6:
        assert (weights >= 0).all() and (weights <= 1).all()
        expected = torch.softmax(torch.tensor(gate.weights).double().log() + gate.c * image, dim=1)
        torch.testing.assert_close(weights, expected)
    assert float(weights.sum()) == pytest.approx(1)


@given(gates())
def test_the_gate_is_a_weighted_mean(case: tuple[Gate, Tensor]) -> None:
    """u lies between the smallest and the largest discrepancy: w(a)·a_1 + (1−w(a))·a_2 of two, with
    w in [0, 1], and in (0, 1) where they differ by little."""
    gate, image = case
    slack = 1e-6
    score = float(gate(image))
    assert float(image.min()) - slack <= score <= float(image.max()) + slack
    if image.shape[1] > 2 or abs(float(image[0, 0] - image[0, 1])) < 1e-3:
        return
    difference = float(image[0, 0] - image[0, 1])
    weight = (score - float(image[0, 1])) / difference
    assert -1e-6 <= weight <= 1 + 1e-6
    if abs(gate.c * difference) < 5:
        assert 0 < weight < 1


@given(gates(), st.floats(0.001, 10))
def test_the_gate_increases_in_every_discrepancy(case: tuple[Gate, Tensor], step: float) -> None:
    gate, image = case
    for column in range(image.shape[1]):
        moved = image.clone()
        moved[0, column] += step
        assert gate(moved) >= gate(image) - 1e-9


@given(gates())
def test_the_gate_has_no_step_at_c_0(case: tuple[Gate, Tensor]) -> None:
    gate, image = case
    weights = torch.tensor(gate.weights, dtype=torch.float64)
    mean = (image * weights).sum(dim=1)
    variance = (weights * (image - mean[:, None]).square()).sum(dim=1)
    for c in (-1.01e-6, -0.99e-6, 0.0, 0.99e-6, 1.01e-6):
        found = Gate(gate.weights, c)(image)
        torch.testing.assert_close(found, mean + c / 2 * variance, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "together"), [("fisher", Tensor.sum), ("min_p", Tensor.amax)])
def test_tail_scores_are_log_tail_probabilities_at_the_knots(name: str, together: Any) -> None:
    known = normal(0.0, 0.0, images=5000) ** 3 + torch.tensor([0.0, 5.0])
    combine = COMBINATIONS[name](FitValues(known))
    for share in SHARES:
        knot = torch.quantile(known, 1 - share, dim=0)
        tail = (known >= knot).double().mean(dim=0)
        expected = together(-tail.log(), dim=0)
        assert float(combine(knot[None])) == pytest.approx(float(expected), abs=0.02)


@pytest.mark.parametrize("name", ["fisher", "min_p"])
def test_tail_scores_follow_an_exponential_tail_beyond_the_last_knot(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    known = torch.empty(20000, 2, dtype=torch.float64).exponential_(generator=draw)
    combine = COMBINATIONS[name](FitValues(known))
    at = torch.tensor([[0.5, 0.5], [4.0, 4.0], [10.0, 10.0]], dtype=torch.float64)
    expected = at.sum(dim=1) if name == "fisher" else at[:, 0]
    torch.testing.assert_close(combine(at), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["fisher", "min_p"])
def test_tail_scores_of_values_with_ties_are_finite(name: str) -> None:
    known = normal(0.0, 0.0).round()
    combine = COMBINATIONS[name](FitValues(known))
    assert combine(100 * normal(0.0, 0.0)).isfinite().all()


def test_equal_weights_where_no_discrepancy_separates() -> None:
    assert fit("logistic", -2.0, -2.0) == Linear((0.5, 0.5))


def divergence(ood: Array, known: Array) -> float:
    return kl_divergence(ood, np.ones(len(ood)), known)


def test_kl_is_the_papers_formula() -> None:
    """Min-max normalised, w = 1 − exp(−½·KL) of the second, by a loop over images."""
    known, ood = normal(0.0, 0.0, images=300), normal(2.0, 1.5, images=200, seed=1)
    combine = COMBINATIONS["kl"](FitValues(known, ood))
    weight = 1 - np.exp(-0.5 * divergence(ood[:, 1].numpy(), known[:, 1].numpy()))
    both = np.concatenate([known.numpy(), ood.numpy()])
    low, high = both.min(axis=0), both.max(axis=0)
    for image, score in zip(both, combine(torch.from_numpy(both)).tolist(), strict=True):
        energy, distance = (image - low) / (high - low)
        assert score == pytest.approx((1 - weight) * energy + weight * distance)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_the_divergence_of_normal_values_is_the_known_one(shift: float) -> None:
    ood, known = (normal(m, images=20000, seed=int(4 * m)).numpy()[:, 0] for m in (shift, 0.0))
    assert divergence(ood, known) == pytest.approx(shift**2 / 2, rel=0.1, abs=0.01)


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=60),
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=60),
)
def test_the_divergence_is_finite_at_least_0_and_deterministic(
    first: list[float], second: list[float]
) -> None:
    ood, known = np.array(first), np.array(second)
    found = divergence(ood, known)
    assert 0 <= found <= np.log(2 * len(known) + BINS)
    assert found == divergence(ood, known) == divergence(ood[::-1], known[::-1])


def test_the_divergence_does_not_depend_on_the_scale_of_the_values() -> None:
    ood, known = (
        normal(1.0, images=150).numpy()[:, 0],
        normal(0.0, images=250, seed=1).numpy()[:, 0],
    )
    for scaled in (lambda x: 7 * x + 3, np.exp, lambda x: x**3):
        assert divergence(scaled(ood), scaled(known)) == divergence(ood, known)
    far = known.copy()
    far[0] = 1e9
    assert divergence(ood, far) == pytest.approx(divergence(ood, known), abs=0.05)


def test_the_divergence_of_a_sample_from_itself_is_almost_0() -> None:
    known = normal(0.0, images=500).numpy()[:, 0]
    assert divergence(known, known) < 1e-3
    assert divergence(known + 100, known) > 4


def test_several_discrepancies_of_features_share_the_weight() -> None:
    combine: Any = fit("kl", 1.0, 2.0, 0.0, 1.0)
    assert isinstance(combine, KlWeighted)
    first, *others = combine.normalised_weights
    total = sum(combine.divergences)
    assert first == pytest.approx(np.exp(-total / 2))
    assert others == pytest.approx([(1 - first) * one / total for one in combine.divergences])
    assert combine.divergences[0] > combine.divergences[2] > combine.divergences[1]


def test_kl_of_images_that_no_feature_tells_apart_is_the_energy() -> None:
    known = normal(0.0, 0.0)
    combine: Any = KlWeighted((0.0,), (-3.0, -3.0), (3.0, 3.0))
    assert combine.weights == (1.0, 0.0)
    torch.testing.assert_close(combine(known), (known[:, 0] + 3) / 6)


@given(st.lists(value, min_size=2, max_size=2), st.floats(0.0, 8.0))
def test_kls_derivatives_are_positive_and_the_same_everywhere(
    image: list[float], kl: float
) -> None:
    combine = KlWeighted((kl,), (-3.0, -2.0), (4.0, 9.0))
    leaf = torch.tensor([image], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(combine(leaf).sum(), leaf)
    weight = 1 - np.exp(-kl / 2)
    expected = torch.tensor([[(1 - weight) / 7, weight / 11]], dtype=torch.float64)
    torch.testing.assert_close(slopes, expected)
    assert float(slopes[0, 0]) > 0 and float(slopes[0, 1]) >= 0
