"""The unified score as the authors of GOOD evaluate it. It sees the test data.

Its weight w and the range of its energies are taken from the whole ID and OOD test sets that are
then measured, and are others for every OOD set. It cannot score a single image, nor decide anything
before the test set is known, so that it is no part of good-rt and no fair row beside scores that
are fitted before. `good_rt.method.combination.kl` is the same formula, fitted on held-out ID and
generated images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RATE = 0.5
BINS = 10
FLOOR = 1e-9
"""Images that are added to every bin, as the authors' code does: an empty bin of ID images weighs
about log(10^9)."""


@dataclass(frozen=True)
class TransductiveScores:
    """Scores that were computed with knowledge of the test sets.

    Attributes:
        id: (N,) of the ID test images, higher = more OOD.
        ood: (M,) of the OOD test images.
        weight: w, the k-NN distance's.
    """

    id: Array
    ood: Array
    weight: float


def transductive_scores(
    id_energy: Array, id_distance: Array, ood_energy: Array, ood_distance: Array
) -> TransductiveScores:
    """(1 − w)·minmax(energy) + w·distance with w = 1 − exp(−½·KL(OOD ‖ ID)) of the distances, all
    from the test sets themselves (GOOD, arXiv 2510.17131, Sec. 3.4).

    Args:
        id_energy: (N,) −logsumexp of ID test images.
        id_distance: (N,) their k-NN distances.
        ood_energy: (M,) −logsumexp of the images of one OOD test set.
        ood_distance: (M,) their k-NN distances.
    """
    edges = np.histogram_bin_edges(np.concatenate([ood_distance, id_distance]), BINS)
    p, q = (
        (np.histogram(distances, edges)[0] + FLOOR) / (len(distances) + BINS * FLOOR)
        for distances in (ood_distance, id_distance)
    )
    weight = float(1 - np.exp(-RATE * np.sum(p * np.log(p / q))))
    low = min(id_energy.min(), ood_energy.min())
    spread = max(id_energy.max(), ood_energy.max()) - low

    def scores(energy: Array, distance: Array) -> Array:
        normalised = (energy - low) / spread if spread > 0 else np.zeros_like(energy)
        return (1 - weight) * normalised + weight * distance

    return TransductiveScores(
        scores(id_energy, id_distance), scores(ood_energy, ood_distance), weight
    )
