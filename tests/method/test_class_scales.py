"""Discrepancies on the scale of the predicted class: the same share of every class is far out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from good_rt.method.class_scales import PRIOR_IMAGES, ClassScales
from good_rt.method.measurements import Measurements

CENTRES, WIDTHS = np.array([0.0, 5.0, -3.0]), np.array([0.1, 1.0, 4.0])


def images(count: int, seed: int = 0, confidence: float = 50.0) -> tuple[Measurements, np.ndarray]:
    """Images of three classes whose discrepancies lie differently, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    logits = confidence * np.eye(3)[labels]
    values = rng.normal(CENTRES[labels], WIDTHS[labels])
    return Measurements(logits.astype(np.float32), {"energy": values}), labels


def standardised(scales: ClassScales, of: Measurements) -> np.ndarray:
    values, logits = torch.from_numpy(of.values(["energy"])), torch.from_numpy(of.logits)
    result: np.ndarray = scales.standardise(values, logits)[:, 0].numpy()
    return result


def test_every_class_has_the_same_share_beyond_one() -> None:
    known, _ = images(30_000)
    fresh, labels = images(30_000, seed=1)
    beyond = standardised(ClassScales.fit(["energy"], known), fresh) > 1
    for label in range(3):
        assert beyond[labels == label].mean() == pytest.approx(0.05, abs=0.01)
    # with one scale, all that is refused is of the widest class
    one = fresh.discrepancies["energy"] > np.quantile(known.discrepancies["energy"], 0.95)
    assert one[labels == 0].mean() == 0 < one[labels == 1].mean()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(5, 200), st.floats(0.1, 20))
def test_it_is_the_formula(seed: int, count: int, confidence: float) -> None:
    known, labels = images(count, seed, confidence)
    of, _ = images(50, seed + 1, confidence)
    scales, values = ClassScales.fit(["energy"], known), known.discrepancies["energy"]
    whole = np.median(values), np.quantile(values, 0.95) - np.median(values)
    centres, spreads = np.empty(3), np.empty(3)
    for label in range(3):
        own = values[labels == label]
        count_of, centre, spread = len(own), *whole
        if count_of:
            centre, spread = np.median(own), np.quantile(own, 0.95) - np.median(own)
        total = count_of + PRIOR_IMAGES
        centres[label] = (count_of * centre + PRIOR_IMAGES * whole[0]) / total
        logs = count_of * np.log(max(spread, 1e-3 * whole[1])) + PRIOR_IMAGES * np.log(whole[1])
        spreads[label] = np.exp(logs / total)
    weights = softmax(of.logits.astype(np.float64), axis=1)
    expected = (of.discrepancies["energy"] - weights @ centres) / (weights @ spreads)
    np.testing.assert_allclose(standardised(scales, of), expected, rtol=1e-9)


def test_it_is_continuous_where_the_predicted_class_changes() -> None:
    scales = ClassScales.fit(["energy"], images(3_000)[0])
    values = torch.full((2, 1), 2.0, dtype=torch.float64)
    logits = torch.tensor([[3.0, 3.0 + 1e-6, 0.0], [3.0 + 1e-6, 3.0, 0.0]], dtype=torch.float64)
    first, second = scales.standardise(values, logits)[:, 0].tolist()
    assert first == pytest.approx(second, rel=1e-5)


def test_a_class_without_images_has_the_scale_of_all() -> None:
    known, labels = images(600)
    rows = labels < 2
    kept = Measurements(known.logits[rows], {"energy": known.discrepancies["energy"][rows]})
    scales = ClassScales.fit(["energy"], kept)
    assert scales.medians[2][0] == pytest.approx(np.median(kept.discrepancies["energy"]))
