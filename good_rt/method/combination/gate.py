"""The gate: a soft maximum or minimum of the discrepancies, whose weights depend on the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from good_rt.method.combination.base import FitValues, combination, constant

SMALLEST = 1e-6
"""|c| below which the gate is its limit, the fixed weights."""


@dataclass(frozen=True)
class Gate:
    """log(Σ_j π_j·e^{c·a_j})/c: a soft maximum (c > 0) or minimum (c < 0), and Σ π_j·a_j for c → 0.

    Its derivatives in the a_j are softmax weights, in (0, 1) and of sum 1, so that it increases in
    every discrepancy. For two of them it is w(a)·a_feat + (1−w(a))·a_img with w in (0, 1), as in
    GOOD (arXiv 2510.17131, Sec. 3.4), which takes w from whole test sets instead.

    Attributes:
        weights: π, above 0, of sum 1.
        c: The gate's sharpness.
    """

    weights: tuple[float, ...]
    c: float

    def __call__(self, standardised: Tensor) -> Tensor:
        weights = constant(self.weights, standardised)
        if abs(self.c) < SMALLEST:
            mean = (standardised * weights).sum(dim=1)
            # the first two terms in c; without the second, the fit could not leave c = 0
            deviations = standardised - mean[:, None]
            return mean + 0.5 * self.c * (weights * deviations.square()).sum(dim=1)
        return torch.logsumexp(weights.log() + self.c * standardised, dim=1) / self.c


@combination("gate", generated=True)
def fit_gate(values: FitValues) -> Gate:
    """The π and c that maximise the likelihood of P(OOD) = sigmoid(s·u + b), s > 0.

    Both sides have the same weight, however many images they are.
    """
    from scipy.optimize import minimize

    ood, ood_weights = values.generated("gate")
    count = values.id.shape[1]

    def gate_of(parameters: np.ndarray) -> Gate:
        logits = np.append(0.0, parameters[: count - 1])
        powers = np.exp(logits - logits.max())
        return Gate(tuple((powers / powers.sum()).tolist()), float(parameters[count - 1]))

    def loss(parameters: np.ndarray) -> float:
        combine, (log_scale, bias) = gate_of(parameters), parameters[count:]
        of_id, of_ood = (
            (math.exp(log_scale) * combine(part) + bias).numpy() for part in (values.id, ood)
        )
        # a weak pull to equal weights and c = 0 keeps the problem well-posed where one discrepancy
        # separates perfectly, as energy does after a training with images of these kinds
        ridge = 1e-2 * np.square(parameters[:-1]).sum()
        ood_loss = np.average(np.logaddexp(0, -of_ood), weights=ood_weights.numpy())
        return float(np.logaddexp(0, of_id).mean() + ood_loss + ridge)

    bounds = [(-6.0, 6.0)] * (count - 1) + [(-5.0, 5.0), (-5.0, 5.0), (None, None)]
    optimum = minimize(loss, np.zeros(count + 2), method="L-BFGS-B", bounds=bounds)
    return gate_of(optimum.x)
