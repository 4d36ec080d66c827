"""The unified score: standardised by class and combined; degenerate values are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from good_rt.errors import GoodRtError
from good_rt.method.combination import COMBINATIONS
from good_rt.method.combination.gate import Gate
from good_rt.method.combination.linear import Linear
from good_rt.method.measurements import Measurements
from good_rt.method.schedule import FloatArray
from good_rt.method.unified import UnifiedScore, fit_unified

NAMES = ("energy", "knn_distance", "mahalanobis")
SCALES = np.array([2.0, 0.1, 30.0])
MEANS = np.array([-7.0, 0.3, 100.0])


def measured(values: FloatArray, seed: int = 0) -> Measurements:
    """Images of three classes with these discrepancies (N, J)."""
    logits = np.random.default_rng(seed).normal(0, 3, (len(values), 3)).astype(np.float32)
    return Measurements(logits, dict(zip(NAMES, values.T, strict=True)))


def images(*shifts: float, count: int = 500, seed: int = 0) -> Measurements:
    """What images measure, by these standard deviations from ID."""
    values = np.random.default_rng(seed).normal(shifts, 1, (count, 3)) * SCALES + MEANS
    return measured(values, seed)


def scores(score: UnifiedScore, of: Measurements) -> torch.Tensor:
    return score(torch.from_numpy(of.values(NAMES)), torch.from_numpy(of.logits))


KNOWN, OOD = images(0, 0, 0), images(2, 3, 1, seed=1)


@pytest.mark.parametrize("kind", list(COMBINATIONS))
def test_the_score_is_the_combination_of_standardised_discrepancies(kind: str) -> None:
    score = fit_unified(NAMES, KNOWN, kind, OOD)
    assert (score.names, score.kind) == (NAMES, kind)
    standardised = score.scales.standardise(
        torch.from_numpy(OOD.values(NAMES)), torch.from_numpy(OOD.logits)
    )
    torch.testing.assert_close(scores(score, OOD), score.combination(standardised))
    assert float(scores(score, OOD).mean()) > float(scores(score, KNOWN).mean())


@pytest.mark.parametrize("kind", list(COMBINATIONS))
def test_scales_and_shifts_of_discrepancies_do_not_change_the_score(kind: str) -> None:
    score = fit_unified(NAMES, KNOWN, kind, OOD)
    known, ood = (measured(5 * of.values(NAMES) - 3, seed) for seed, of in enumerate((KNOWN, OOD)))
    other = fit_unified(NAMES, known, kind, ood)
    found, expected = scores(other, ood), scores(score, OOD)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_score_of_one_image_does_not_depend_on_others() -> None:
    score = fit_unified(NAMES, KNOWN, "gate", OOD)
    values, logits = torch.from_numpy(OOD.values(NAMES))[:5], torch.from_numpy(OOD.logits)[:5]
    pairs = zip(values.split(1), logits.split(1), strict=True)
    alone = torch.cat([score(*pair) for pair in pairs])
    torch.testing.assert_close(score(values, logits), alone, rtol=1e-12, atol=1e-12)


def test_the_default_is_the_mean_and_needs_no_generated_images() -> None:
    assert fit_unified(NAMES, KNOWN).combination == Linear((1 / 3,) * 3)


@pytest.mark.parametrize("kind", list(COMBINATIONS))
def test_the_record_says_what_was_fitted(kind: str) -> None:
    score = fit_unified(NAMES, KNOWN, kind, OOD)
    record = json.loads(json.dumps(score.to_json()))
    assert record["combination"]["name"] == kind
    assert list(record["discrepancies"]) == list(NAMES)
    for i, name in enumerate(NAMES):
        of_name = record["discrepancies"][name]
        assert of_name["medians"] == [row[i] for row in score.scales.medians]
        assert of_name["spreads"] == [row[i] for row in score.scales.spreads]
        assert of_name["weight"] == score.combination.weights[i]
    if isinstance(score.combination, Gate):
        assert record["combination"]["c"] == score.combination.c


@pytest.mark.parametrize("column", range(3))
def test_degenerate_data_is_refused(column: int) -> None:
    constant, broken = KNOWN.values(NAMES), OOD.values(NAMES)
    constant[:, column], broken[7, column] = 0.25, np.nan
    message = f"{NAMES[column]} has the same median and 95% quantile on held-out ID images; the cla"
    with pytest.raises(GoodRtError, match=message):
        fit_unified(NAMES, measured(constant))
    message = (
        rf"{NAMES[column]} of generated OOD images is not finite \(image 7\); check the images"
    )
    with pytest.raises(GoodRtError, match=message):
        fit_unified(NAMES, KNOWN, "sum", measured(broken))
    with pytest.raises(GoodRtError, match="of held-out ID images is not finite"):
        fit_unified(NAMES, measured(broken))


def test_too_few_images_and_unknown_combinations_are_refused() -> None:
    with pytest.raises(GoodRtError, match="needs at least 2 held-out ID images, not 1"):
        fit_unified(NAMES, images(0, 0, 0, count=1))
    with pytest.raises(GoodRtError, match="needs at least 2 generated OOD images, not 1"):
        fit_unified(NAMES, KNOWN, "gate", images(2, 3, 1, count=1))
    with pytest.raises(GoodRtError, match=r"no combination 'mean'; there are .*sum"):
        fit_unified(NAMES, KNOWN, "mean")
