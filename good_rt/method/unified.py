"""The unified score: one number out of several discrepancies.

Each discrepancy is standardised on held-out ID images of the class that an image is taken for, and
a combination makes one score of them. Nothing is taken from test sets, so that a single image can
be scored (GOOD, arXiv 2510.17131, Sec. 3.4, takes its weight from each whole test set instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.method.class_scales import ClassScales
from good_rt.method.combination import COMBINATIONS, Combination, FitValues
from good_rt.method.measurements import Measurements
from good_rt.method.schedule import FloatArray

SCORE = 2
"""Raised whenever the score of the same settings changes, so that a job's detector and evaluation
are made again: 2 has a scale for each class."""


@dataclass(frozen=True)
class UnifiedScore:
    """u = C(a_1, …, a_J) of the discrepancies a_j on the scale of the image's class, higher = more
    OOD.

    Attributes:
        names: The discrepancies.
        scales: Makes a_j of them.
        combination: C.
        kind: C's name in `COMBINATIONS`.
    """

    names: tuple[str, ...]
    scales: ClassScales
    combination: Combination
    kind: str

    def __call__(self, values: Tensor, logits: Tensor) -> Tensor:
        """Scores (N,), higher = more OOD.

        Args:
            values: (N, J) discrepancies.
            logits: (N, K).
        """
        return self.combination(self.scales.standardise(values, logits))

    def of(self, measured: Measurements) -> FloatArray:
        """Scores (N,) of measured images."""
        values = torch.from_numpy(measured.values(self.names))
        scores: FloatArray = self(values, torch.from_numpy(measured.logits)).numpy()
        return scores

    def to_json(self) -> dict[str, Any]:
        medians, spreads = (
            dict(zip(self.names, zip(*rows, strict=True), strict=True))
            for rows in (self.scales.medians, self.scales.spreads)
        )
        return {
            "combination": {"name": self.kind, **vars(self.combination)},
            "discrepancies": {
                name: {"medians": medians[name], "spreads": spreads[name], "weight": weight}
                for name, weight in zip(self.names, self.combination.weights, strict=True)
            },
        }


def fit_unified(
    names: Sequence[str],
    known: Measurements,
    kind: str = "sum",
    ood: Measurements | None = None,
    ood_weights: FloatArray | None = None,
) -> UnifiedScore:
    """The unified score of held-out ID images and generated OOD images.

    Args:
        names: The J discrepancies.
        known: What N ID images measure.
        kind: A key of `COMBINATIONS`.
        ood: What M generated OOD images measure; None where there are none.
        ood_weights: (M,) weight of each OOD image; None for equal weights.

    Raises:
        GoodRtError: there is no such combination, it needs OOD images and there are none, or the
            values are fewer than 2, not finite, or without spread.
    """
    if kind not in COMBINATIONS:
        raise GoodRtError(f"there is no combination {kind!r}; there are {', '.join(COMBINATIONS)}")
    _check("held-out ID images", names, known)
    if ood is not None:
        _check("generated OOD images", names, ood)
    scales = ClassScales.fit(names, known)

    def standardised(measured: Measurements) -> Tensor:
        logits = torch.from_numpy(measured.logits)
        return scales.standardise(torch.from_numpy(measured.values(names)), logits)

    values = FitValues(
        standardised(known),
        None if ood is None else standardised(ood),
        None if ood_weights is None else torch.from_numpy(ood_weights),
    )
    return UnifiedScore(tuple(names), scales, COMBINATIONS[kind](values), kind)


def _check(what: str, names: Sequence[str], measured: Measurements) -> None:
    values = measured.values(names)
    if len(values) < 2:
        raise GoodRtError(f"the unified score needs at least 2 {what}, not {len(values)}")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise GoodRtError(
            f"{names[column]} of {what} is not finite (image {row}); check the images and the "
            "classifier"
        )
