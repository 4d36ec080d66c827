"""The unified score: one number out of energy and k-NN distance, by a gate that is fitted once.

Both discrepancies are standardised on held-out ID data; the gate is fitted on ID against generated
OOD images, so that a single image can be scored and no test set is looked at (GOOD, arXiv
2510.17131, Sec. 3.4, takes its weight from each whole test set instead).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from good_rt.errors import GoodRtError
from good_rt.method.schedule import FloatArray


@dataclass(frozen=True)
class UnifiedScore:
    """u(a) = w(a)·a_feat + (1−w(a))·a_img of the standardised discrepancies a = (energy, k-NN
    distance).

    The gate is w(a) = log(1−π+π·exp(cδ))/(cδ) with δ = a_feat − a_img, so that u =
    log((1−π)e^{c·a_img} + π e^{c·a_feat})/c, a soft maximum (c > 0) or minimum (c < 0). Hence w
    lies in (0, 1), u increases in both discrepancies (∂u/∂a_feat is a softmax weight, ∂u/∂a_img the
    other), and c → 0 is the fixed weight π.

    Attributes:
        energy_mean: Mean energy of ID images.
        energy_std: Its standard deviation, above 0.
        distance_mean: Mean k-NN distance of ID images.
        distance_std: Its standard deviation, above 0.
        pi: π in (0, 1).
        c: Sharpness c.
    """

    energy_mean: float
    energy_std: float
    distance_mean: float
    distance_std: float
    pi: float
    c: float

    def __call__(self, energy: FloatArray, distance: FloatArray) -> FloatArray:
        """(N,) float64 unified scores, higher = more OOD.

        Args:
            energy: (N,) energies.
            distance: (N,) k-NN distances.
        """
        image, feature = self.standardise(energy, distance)
        return combine(image, feature, self.pi, self.c)

    def standardise(
        self, energy: FloatArray, distance: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """a_img and a_feat, (N,) float64 each: mean 0 and standard deviation 1 on the ID data of
        the fit.

        Args:
            energy: (N,) energies.
            distance: (N,) k-NN distances.
        """
        return (
            (np.asarray(energy, np.float64) - self.energy_mean) / self.energy_std,
            (np.asarray(distance, np.float64) - self.distance_mean) / self.distance_std,
        )

    def to_json(self) -> dict[str, float]:
        """The six numbers by name."""
        return asdict(self)


def combine(image: FloatArray, feature: FloatArray, pi: float, c: float) -> FloatArray:
    """u of the standardised discrepancies, (N,).

    Args:
        image: a_img (N,).
        feature: a_feat (N,).
        pi: π in (0, 1).
        c: Above 0 a soft maximum, below 0 a soft minimum, 0 the fixed weight π.
    """
    if abs(c) < 1e-6:  # the first two terms in c; without the second, the fit could not leave c = 0
        return (
            (1 - pi) * image + pi * feature + 0.5 * c * pi * (1 - pi) * np.square(feature - image)
        )
    return np.logaddexp(np.log1p(-pi) + c * image, np.log(pi) + c * feature) / c


def gate(image: FloatArray, feature: FloatArray, pi: float, c: float) -> FloatArray:
    """w(a) in (0, 1), (N,); π where both discrepancies agree.

    Args:
        image: a_img (N,).
        feature: a_feat (N,).
        pi: π in (0, 1).
        c: As in `combine`.
    """
    delta = feature - image
    return np.where(
        np.abs(c * delta) < 1e-6,
        pi,
        (combine(image, feature, pi, c) - image) / np.where(delta, delta, 1),
    )


def mean_score(id_energy: FloatArray, id_distance: FloatArray) -> UnifiedScore:
    """The mean of both standardised discrepancies: the score where there are no OOD images to fit
    on.

    Args:
        id_energy: (N,) energies of ID images.
        id_distance: (N,) k-NN distances of ID images.

    Raises:
        GoodRtError: there are fewer than 2 values, or they are not finite or without spread.
    """
    _check({"ID energies": id_energy, "ID distances": id_distance})
    means = float(np.mean(id_energy)), float(np.mean(id_distance))
    stds = float(np.std(id_energy)), float(np.std(id_distance))
    if min(stds) <= 0:
        raise GoodRtError(
            "energy or k-NN distance is the same for all ID images; the classifier or bank is "
            "degenerate"
        )
    return UnifiedScore(means[0], stds[0], means[1], stds[1], 0.5, 0.0)


def fit(
    id_energy: FloatArray,
    id_distance: FloatArray,
    ood_energy: FloatArray,
    ood_distance: FloatArray,
    ood_weights: FloatArray | None = None,
) -> UnifiedScore:
    """The unified score whose π and c maximise the likelihood of P(OOD) = sigmoid(s·u + b), s > 0.

    The standardisation is fitted on ID. Both sides have the same weight, however many images they
    are.

    Args:
        id_energy: (N_id,) energies of ID images.
        id_distance: (N_id,) k-NN distances of ID images.
        ood_energy: (N_ood,) energies of generated OOD images.
        ood_distance: (N_ood,) k-NN distances of generated OOD images.
        ood_weights: (N_ood,) weight of each OOD image; None for equal weights.

    Raises:
        GoodRtError: a side has fewer than 2 values, or they are not finite or without spread.
    """
    from scipy.optimize import minimize

    ungated = mean_score(id_energy, id_distance)
    _check({"OOD energies": ood_energy, "OOD distances": ood_distance})
    id_image, id_feature = ungated.standardise(id_energy, id_distance)
    ood_image, ood_feature = ungated.standardise(ood_energy, ood_distance)

    def loss(parameters: FloatArray) -> float:
        logit, c, log_scale, bias = parameters
        pi, scale = 1 / (1 + np.exp(-logit)), np.exp(log_scale)
        id_logit = scale * combine(id_image, id_feature, pi, c) + bias
        ood_logit = scale * combine(ood_image, ood_feature, pi, c) + bias
        # a weak pull to π = ½, c = 0 keeps the problem well-posed where one discrepancy separates
        # perfectly, as energy does after a training with images of these kinds
        ridge = 1e-2 * (logit**2 + c**2 + log_scale**2)
        ood_loss = np.average(np.logaddexp(0, -ood_logit), weights=ood_weights)
        return float(np.logaddexp(0, id_logit).mean() + ood_loss + ridge)

    bounds = [(-6.0, 6.0), (-5.0, 5.0), (-5.0, 5.0), (None, None)]
    optimum = minimize(loss, np.zeros(4), method="L-BFGS-B", bounds=bounds)
    logit, c = float(optimum.x[0]), float(optimum.x[1])
    return replace(ungated, pi=float(1 / (1 + np.exp(-logit))), c=c)


def _check(arrays: Mapping[str, FloatArray]) -> None:
    for name, values in arrays.items():
        if len(values) < 2 or not np.isfinite(values).all():
            raise GoodRtError(
                f"the unified score needs at least 2 finite {name}; got {len(values)}, check the "
                "images"
            )
