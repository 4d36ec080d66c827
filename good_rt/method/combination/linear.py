"""Weighted sums of discrepancies: of equal weights, or fitted by logistic regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from good_rt.method.combination.base import FitValues, combination, constant, equal_weights


@dataclass(frozen=True)
class Linear:
    """Σ_j w_j·a_j.

    Attributes:
        weights: w, at least 0, of sum 1.
    """

    weights: tuple[float, ...]

    def __call__(self, standardised: Tensor) -> Tensor:
        return (standardised * constant(self.weights, standardised)).sum(dim=1)


@combination("sum")
def fit_sum(values: FitValues) -> Linear:
    """The mean, which orders images as the sum of standardised discrepancies does."""
    return Linear(equal_weights(values.id.shape[1]))


@combination("logistic", generated=True)
def fit_logistic(values: FitValues) -> Linear:
    """The weights w ≥ 0 that maximise the likelihood of P(OOD) = sigmoid(s·Σ w_j·a_j + b).

    Both sides have the same weight, however many images they are. A weak ridge keeps the problem
    well-posed where one discrepancy separates perfectly.
    """
    from scipy.optimize import minimize

    known = values.id.numpy()
    ood, ood_weights = (part.numpy() for part in values.generated("logistic"))
    count = known.shape[1]

    def loss(parameters: np.ndarray) -> float:
        scaled, bias = parameters[:count], parameters[count]
        of_id = np.logaddexp(0, known @ scaled + bias).mean()
        of_ood = np.average(np.logaddexp(0, -(ood @ scaled + bias)), weights=ood_weights)
        return float(of_id + of_ood + 1e-2 * np.square(scaled - 1 / count).sum())

    start = np.append(np.full(count, 1 / count), 0.0)
    bounds = [(0.0, None)] * count + [(None, None)]
    found = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x[:count]
    total = found.sum()
    return Linear(tuple((found / total).tolist()) if total > 0 else equal_weights(count))
