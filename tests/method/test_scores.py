"""The logit scores against torch, their papers' formulas and their invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from good_rt.errors import GoodRtError
from good_rt.method.scores import LOGIT_SCORES, energy, logit_score, max_logit, msp

logits = arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(2, 8)), elements=st.floats(-30, 30)
)


@given(logits)
def test_scores_are_the_papers_formulas_in_torch(values: NDArray[np.float64]) -> None:
    tensor = torch.from_numpy(values)
    np.testing.assert_allclose(msp(values), 1 - tensor.softmax(1).amax(1), atol=1e-12)
    np.testing.assert_allclose(max_logit(values), -tensor.amax(1))
    np.testing.assert_allclose(energy(values), -torch.logsumexp(tensor, 1), atol=1e-12)
    np.testing.assert_allclose(
        energy(values, 2.5), -2.5 * torch.logsumexp(tensor / 2.5, 1), atol=1e-12
    )


@given(logits, st.integers(-20, 20))
def test_shifting_all_logits(values: NDArray[np.float64], shift: int) -> None:
    """MSP does not see a common shift of the logits; MaxLogit and energy move with it, which is why
    they do better."""
    np.testing.assert_allclose(msp(values + shift), msp(values), atol=1e-9)
    np.testing.assert_allclose(max_logit(values + shift), max_logit(values) - shift, atol=1e-9)
    np.testing.assert_allclose(energy(values + shift), energy(values) - shift, atol=1e-9)


@given(logits)
def test_order_of_classes_does_not_matter(values: NDArray[np.float64]) -> None:
    for name, score in LOGIT_SCORES.items():
        np.testing.assert_allclose(score(values[:, ::-1]), score(values), atol=1e-12, err_msg=name)


@given(logits)
def test_energy_lies_between_max_logit_and_uniform(values: NDArray[np.float64]) -> None:
    assert (energy(values) <= max_logit(values) + 1e-9).all()
    assert (energy(values) >= max_logit(values) - np.log(values.shape[1]) - 1e-9).all()


def test_unsure_logits_score_higher() -> None:
    sure, unsure = [[12.0, 0.0, 0.0]], [[1.0, 0.9, 0.8]]
    for name, score in LOGIT_SCORES.items():
        assert score(unsure)[0] > score(sure)[0], name


def test_msp_keeps_the_order_of_very_sure_images() -> None:
    values = np.array([[40.0, 0, 0], [50.0, 0, 0], [60.0, 0, 0]])
    assert (np.diff(msp(values)) < 0).all()
    assert (
        len(np.unique(1 - torch.from_numpy(values).softmax(1).amax(1).numpy())) == 1
    )  # the plain way ties


def test_large_logits_do_not_overflow() -> None:
    values = np.array([[1e4, -1e4], [-1e4, -1e4]])
    np.testing.assert_allclose(energy(values), [-1e4, 1e4 - np.log(2)])
    np.testing.assert_allclose(msp(values), [0, 0.5])


def test_a_new_score_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("good_rt.method.scores.LOGIT_SCORES", dict(LOGIT_SCORES))
    from good_rt.method import scores

    @logit_score("Margin")
    def margin(values: object) -> NDArray[np.float64]:
        top = np.sort(np.asarray(values, np.float64), axis=1)
        return top[:, -2] - top[:, -1]

    assert list(scores.LOGIT_SCORES) == ["MSP", "MaxLogit", "Energy", "Margin"]
    assert scores.LOGIT_SCORES["Margin"]([[3.0, 1.0]]) == [-2.0]


@pytest.mark.parametrize("score", LOGIT_SCORES.values(), ids=LOGIT_SCORES)
def test_bad_logits_are_named(score: object) -> None:
    assert callable(score)
    with pytest.raises(GoodRtError, match=r"shape \(images, classes\)"):
        score(np.zeros(3))
    with pytest.raises(GoodRtError, match=r"1 of 2 images are not finite \(the first: image 1\)"):
        score(np.array([[0.0, 1.0], [np.nan, 1.0]]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_energy_needs_a_temperature_above_zero(temperature: float) -> None:
    with pytest.raises(GoodRtError, match="above 0"):
        energy(np.zeros((1, 2)), temperature)
