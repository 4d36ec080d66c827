"""Discrepancies on the scale of the class that an image is taken for.

The classes of a classifier differ in how far their own images lie from its training data: with one
scale for all, a threshold that refuses 5 % of the ID images refuses a tenth of some classes and
none of others, and OOD images that are taken for the latter pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.method.combination.base import constant
from good_rt.method.measurements import Measurements

TAIL = 0.95
"""The quantile of a class's ID images at which a standardised discrepancy is 1."""
PRIOR_IMAGES = 20
"""ID images of all classes that count beside those of a class, so that few images of a class do
not decide its scale."""
SMALLEST_SPREAD = 1e-3
"""The smallest spread of a class, in spreads of all classes."""


@dataclass(frozen=True)
class ClassScales:
    """Where J discrepancies of ID images lie, for each of K classes.

    a_j = (s_j − Σ_c p_c·median_jc) / Σ_c p_c·spread_jc with the classifier's probabilities
    p = softmax(f), so that a is continuous where the predicted class changes. It is 0 at the median
    of the class's ID images and 1 at their `TAIL` quantile, up to the shrinkage of small classes.

    Attributes:
        medians: (K, J).
        spreads: (K, J) distances from the median to the quantile, above 0.
    """

    medians: tuple[tuple[float, ...], ...]
    spreads: tuple[tuple[float, ...], ...]

    def standardise(self, values: Tensor, logits: Tensor) -> Tensor:
        """(N, J) on the classes' scales.

        Args:
            values: (N, J) discrepancies.
            logits: (N, K).
        """
        probabilities = torch.softmax(logits.to(values.dtype), dim=1)
        rows = [(*pair[0], *pair[1]) for pair in zip(self.medians, self.spreads, strict=True)]
        medians, spreads = (probabilities @ constant(rows, values)).chunk(2, dim=1)
        return (values - medians) / spreads

    @classmethod
    def fit(cls, names: Sequence[str], known: Measurements) -> ClassScales:
        """The scales of held-out ID images, each of the class that it is taken for.

        Medians and spreads of a class are shrunk to those of all images by `PRIOR_IMAGES`: medians
        in the arithmetic, spreads in the geometric mean.

        Args:
            names: The J discrepancies.
            known: What the images measure.

        Raises:
            GoodRtError: a discrepancy has no spread.
        """
        values, predicted = known.values(names), known.logits.argmax(axis=1)
        median, spread = _scale(values)
        for name, of_name in zip(names, spread, strict=True):
            if not of_name > 0:
                raise GoodRtError(
                    f"{name} has the same median and {TAIL:.0%} quantile on held-out ID images; "
                    "the classifier is degenerate, or the images are copies of a few"
                )
        medians, spreads = [], []
        for label in range(known.logits.shape[1]):
            of_class = values[predicted == label]
            own = _scale(of_class) if len(of_class) else (median, spread)
            weight = len(of_class) / (len(of_class) + PRIOR_IMAGES)
            medians.append(tuple((weight * own[0] + (1 - weight) * median).tolist()))
            ratio = np.maximum(own[1] / spread, SMALLEST_SPREAD)
            spreads.append(tuple((spread * ratio**weight).tolist()))
        return cls(tuple(medians), tuple(spreads))


def _scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians (J,) of values (N, J), and how far the `TAIL` quantile lies above them."""
    median, tail = np.quantile(values, (0.5, TAIL), axis=0)
    return median, tail - median
