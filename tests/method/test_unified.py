"""The unified score: standardised on ID images and combined; degenerate values are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from good_rt.errors import GoodRtError
from good_rt.method.combination import COMBINATIONS
from good_rt.method.combination.gate import Gate
from good_rt.method.combination.linear import Linear
from good_rt.method.schedule import FloatArray
from good_rt.method.unified import fit_unified

NAMES = ("energy", "knn_distance", "mahalanobis")
SCALES = np.array([2.0, 0.1, 30.0])
MEANS = np.array([-7.0, 0.3, 100.0])


def values(*shifts: float, count: int = 500, seed: int = 0) -> FloatArray:
    """Discrepancies (count, J) of images, by these standard deviations from ID."""
    rng, size = np.random.default_rng(seed), len(shifts)
    drawn: FloatArray = rng.normal(shifts, 1, (count, size)) * SCALES[:size] + MEANS[:size]
    return drawn


KNOWN, OOD = values(0, 0, 0), values(2, 3, 1, seed=1)


@pytest.mark.parametrize("kind", list(COMBINATIONS))
def test_the_score_is_the_combination_of_standardised_discrepancies(kind: str) -> None:
    score = fit_unified(NAMES, KNOWN, kind, OOD)
    assert (score.names, score.kind) == (NAMES, kind)
    standardised = score.standardise(torch.from_numpy(KNOWN)).numpy()
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(standardised.std(axis=0), 1, atol=1e-9)
    found, expected = score(torch.from_numpy(OOD)), (OOD - KNOWN.mean(axis=0)) / KNOWN.std(axis=0)
    torch.testing.assert_close(found, score.combination(torch.from_numpy(expected)))
    assert float(found.mean()) > float(score(torch.from_numpy(KNOWN)).mean())


@pytest.mark.parametrize("kind", list(COMBINATIONS))
def test_scales_and_shifts_of_discrepancies_do_not_change_the_score(kind: str) -> None:
    score = fit_unified(NAMES, KNOWN, kind, OOD)
    other = fit_unified(NAMES, 5 * KNOWN - 3, kind, 5 * OOD - 3)
    found, expected = other(torch.from_numpy(5 * OOD - 3)), score(torch.from_numpy(OOD))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_score_of_one_image_does_not_depend_on_others() -> None:
    score = fit_unified(NAMES, KNOWN, "gate", OOD)
    images = torch.from_numpy(OOD[:5])
    alone = torch.cat([score(image) for image in images.split(1)])
    torch.testing.assert_close(score(images), alone, rtol=1e-12, atol=1e-12)


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
        assert of_name["mean"] == pytest.approx(KNOWN[:, i].mean())
        assert of_name["std"] == pytest.approx(KNOWN[:, i].std())
        assert of_name["weight"] == score.combination.weights[i]
    if isinstance(score.combination, Gate):
        assert record["combination"]["c"] == score.combination.c


@pytest.mark.parametrize("column", range(3))
def test_degenerate_data_is_refused(column: int) -> None:
    constant, broken = KNOWN.copy(), OOD.copy()
    constant[:, column], broken[7, column] = 0.25, np.nan
    message = (
        f"{NAMES[column]} is the same for all held-out ID images; the classifier is degenerate"
    )
    with pytest.raises(GoodRtError, match=message):
        fit_unified(NAMES, constant)
    message = (
        rf"{NAMES[column]} of generated OOD images is not finite \(image 7\); check the images"
    )
    with pytest.raises(GoodRtError, match=message):
        fit_unified(NAMES, KNOWN, "sum", broken)
    with pytest.raises(GoodRtError, match="of held-out ID images is not finite"):
        fit_unified(NAMES, broken)


def test_too_few_images_and_unknown_combinations_are_refused() -> None:
    with pytest.raises(GoodRtError, match="needs at least 2 held-out ID images, not 1"):
        fit_unified(NAMES, KNOWN[:1])
    with pytest.raises(GoodRtError, match="needs at least 2 generated OOD images, not 1"):
        fit_unified(NAMES, KNOWN, "gate", OOD[:1])
    with pytest.raises(GoodRtError, match=r"no combination 'mean'; there are .*sum"):
        fit_unified(NAMES, KNOWN, "mean")
