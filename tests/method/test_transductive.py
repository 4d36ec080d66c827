"""benchmarks/transductive.py against the paper's formula, a number at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from transductive import transductive_scores

from good_rt.method.schedule import FloatArray


def drawn(shift: float, count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Energies and k-NN distances of so many images."""
    rng = np.random.default_rng(seed)
    return rng.normal(-8 + 2 * shift, 2, count), 0.3 + 0.05 * shift + rng.gamma(2, 0.05, count)


def naive(known: tuple[FloatArray, FloatArray], ood: tuple[FloatArray, FloatArray]) -> list[float]:
    """The scores of ID and then of OOD images, by loops."""
    energies, distances = (
        [*map(float, a), *map(float, b)] for a, b in zip(known, ood, strict=True)
    )
    low, high = min(distances), max(distances)

    def share(values: FloatArray, place: int) -> float:
        count = 0
        for value in values:
            bin_of_value = min(int((value - low) / (high - low) * 10), 9)
            count += bin_of_value == place
        return (count + 1e-9) / (len(values) + 1e-8)

    divergence = 0.0
    for place in range(10):
        p, q = share(ood[1], place), share(known[1], place)
        divergence += p * math.log(p / q)
    weight = 1 - math.exp(-0.5 * divergence)
    smallest, largest = min(energies), max(energies)
    return [
        (1 - weight) * (energy - smallest) / (largest - smallest) + weight * distance
        for energy, distance in zip(energies, distances, strict=True)
    ]


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_the_scores_are_those_of_a_naive_loop(shift: float) -> None:
    known, ood = drawn(0.0, 120, 0), drawn(shift, 70, 1)
    scores = transductive_scores(*known, *ood)
    assert [*scores.id, *scores.ood] == pytest.approx(naive(known, ood), rel=1e-9)
    assert 0 <= scores.weight <= 1


def test_an_images_score_depends_on_the_test_set() -> None:
    """Why it is no score for a product: the same image, another set."""
    known, ood = drawn(0.0, 120, 0), drawn(0.5, 70, 1)
    far = tuple(np.append(part, 10 * part.max()) for part in ood)
    alone, with_far = transductive_scores(*known, *ood), transductive_scores(*known, *far)
    assert abs(alone.id[0] - with_far.id[0]) > 0.01


def test_energies_without_spread_are_finite() -> None:
    known, ood = drawn(0.0, 20, 0), drawn(0.5, 20, 1)
    scores = transductive_scores(np.zeros(20), known[1], np.zeros(20), ood[1])
    assert np.isfinite(scores.id).all() and np.isfinite(scores.ood).all()
