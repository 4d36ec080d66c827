"""The unified score: one number out of several discrepancies.

Each discrepancy is standardised on held-out ID images, and a combination makes one score of them.
Nothing is taken from test sets, so that a single image can be scored (GOOD, arXiv 2510.17131, Sec.
3.4, takes its weight from each whole test set instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.method.combination import COMBINATIONS, Combination, FitValues
from good_rt.method.combination.base import constant
from good_rt.method.combination.linear import Linear
from good_rt.method.schedule import FloatArray


@dataclass(frozen=True)
class UnifiedScore:
    """u = C(a_1, …, a_J) of the standardised discrepancies a_j = (s_j − mean_j)/std_j, higher =
    more OOD.

    Attributes:
        names: The discrepancies.
        means: Their means on ID images.
        stds: Their standard deviations on ID images.
        combination: C.
        kind: C's name in `COMBINATIONS`.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    combination: Combination
    kind: str

    def __call__(self, values: Tensor) -> Tensor:
        """Scores (N,) of discrepancies (N, J)."""
        if isinstance(self.combination, Linear):
            # one matrix product instead of four operations
            slopes = [w / std for w, std in zip(self.combination.weights, self.stds, strict=True)]
            offset = -sum(slope * mean for slope, mean in zip(slopes, self.means, strict=True))
            weight, bias = constant([slopes], values), constant([offset], values)
            return F.linear(values, weight, bias).squeeze(dim=1)
        return self.combination(self.standardise(values))

    def standardise(self, values: Tensor) -> Tensor:
        """(N, J): mean 0 and standard deviation 1 on the ID images that it was fitted on."""
        return (values - constant(self.means, values)) / constant(self.stds, values)

    def to_json(self) -> dict[str, Any]:
        return {
            "combination": {"name": self.kind, **vars(self.combination)},
            "discrepancies": {
                name: {"mean": mean, "std": std, "weight": weight}
                for name, mean, std, weight in zip(
                    self.names, self.means, self.stds, self.combination.weights, strict=True
                )
            },
        }


def fit_unified(
    names: Sequence[str],
    id_values: FloatArray,
    kind: str = "sum",
    ood_values: FloatArray | None = None,
    ood_weights: FloatArray | None = None,
) -> UnifiedScore:
    """The unified score of held-out ID images and generated OOD images.

    Args:
        names: The J discrepancies.
        id_values: (N, J) of ID images.
        kind: A key of `COMBINATIONS`.
        ood_values: (M, J) of generated OOD images; None where there are none.
        ood_weights: (M,) weight of each OOD image; None for equal weights.

    Raises:
        GoodRtError: there is no such combination, it needs OOD images and there are none, or the
            values are fewer than 2, not finite, or without spread.
    """
    if kind not in COMBINATIONS:
        raise GoodRtError(f"there is no combination {kind!r}; there are {', '.join(COMBINATIONS)}")
    _check("held-out ID images", names, id_values)
    means, stds = id_values.mean(axis=0), id_values.std(axis=0)
    for name, std in zip(names, stds, strict=True):
        if not std > 0:
            raise GoodRtError(
                f"{name} is the same for all held-out ID images; the classifier is degenerate, or "
                "the images are copies of one"
            )
    if ood_values is not None:
        _check("generated OOD images", names, ood_values)

    def standardised(values: FloatArray) -> Tensor:
        return torch.from_numpy((values - means) / stds)

    values = FitValues(
        standardised(id_values),
        None if ood_values is None else standardised(ood_values),
        None if ood_weights is None else torch.from_numpy(ood_weights),
    )
    return UnifiedScore(
        tuple(names), tuple(means.tolist()), tuple(stds.tolist()), COMBINATIONS[kind](values), kind
    )


def _check(what: str, names: Sequence[str], values: FloatArray) -> None:
    if len(values) < 2:
        raise GoodRtError(f"the unified score needs at least 2 {what}, not {len(values)}")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise GoodRtError(
            f"{names[column]} of {what} is not finite (image {row}); check the images and the "
            "classifier"
        )
