"""The detector as one PyTorch module: image in, every score and the decision out.

It is built from the classifier, the feature bank and the calibration, and is what
`good_rt.export.detector` writes as detector.onnx; `good_rt.detector.runtime` runs that file without
PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from good_rt.classifier import Classifier, Images, outputs
from good_rt.config.settings import DetectorConfig
from good_rt.method import gate as unified
from good_rt.method.bank import FeatureBank
from good_rt.method.conformal import check_alpha, conformal_p_value
from good_rt.method.discrepancy import image_level
from good_rt.method.gate import UnifiedScore


@dataclass(frozen=True)
class Discrepancies:
    """Both discrepancies of N images.

    Attributes:
        logits: (N, K).
        energy: (N,).
        knn_distance: (N,).
    """

    logits: NDArray[np.float32]
    energy: NDArray[np.float64]
    knn_distance: NDArray[np.float64]


def measure(
    classifier: Classifier,
    bank: FeatureBank,
    images: Images,
    config: DetectorConfig = DetectorConfig(),
) -> Discrepancies:
    """Both discrepancies of images that are not in the bank.

    Args:
        classifier: Images to logits and features.
        bank: ID features.
        images: (N, C, H, W) in [-1, 1], whole or in batches.
        config: k and temperature.
    """
    logits, features = outputs(classifier, images)
    return Discrepancies(
        logits.numpy(),
        image_level(logits, config.temperature).double().numpy(),
        bank.distance(features, config.k).double().numpy(),
    )


class DetectorModule(nn.Module):
    """images (N, C, H, W) float32 in [0, 1] -> `good_rt.detector.runtime.OUTPUTS` in their order,
    each with leading axis N.

    The k nearest bank rows have the largest inner products; the distance to the k-th is then
    computed exactly, since √(2−2·q·b) loses half the digits for near neighbours.

    Args:
        classifier: Images to logits and features.
        bank: ID features.
        score: The unified score, fitted.
        calibration: (n,) unified scores of held-out ID images.
        config: k, α and temperature.

    Raises:
        GoodRtError: there are too few calibration scores for α.
    """

    bank: Tensor
    calibration: Tensor

    def __init__(
        self,
        classifier: Classifier,
        bank: FeatureBank,
        score: UnifiedScore,
        calibration: NDArray[np.float64],
        config: DetectorConfig,
    ) -> None:
        super().__init__()
        check_alpha(config.alpha, len(calibration))
        self.classifier = classifier
        self.unified = score
        self.feature_bank = bank
        self.config = config
        self.register_buffer("bank", bank.features)
        self.register_buffer("calibration", torch.from_numpy(np.sort(calibration)).float())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.decide(*self.classifier(images * 2 - 1))

    def decide(self, logits: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        """The module's outputs from the classifier's.

        Args:
            logits: (N, K).
            features: (N, D) of unit norm.
        """
        energy = image_level(logits, self.config.temperature)
        rows = (features @ self.bank.T).topk(self.config.k, dim=1).indices[:, -1]
        distance = torch.sqrt((features - self.bank[rows]).square().sum(dim=1))
        score = self._unified(energy, distance)
        more_ood = (self.calibration[None, :] >= score[:, None]).sum(dim=1)
        less_ood = (self.calibration[None, :] < score[:, None]).sum(dim=1)
        p_value = (1 + more_ood).float() / (len(self.calibration) + 1)
        # a NaN calibration score is in neither count and would make every image OOD
        p_value = torch.where(more_ood + less_ood == len(self.calibration), p_value, torch.nan)
        return logits, energy, distance, score, p_value, p_value <= self.config.alpha

    def p_values(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Conformal p-values (N,) in (0, 1].

        Args:
            scores: (N,) unified scores.
        """
        return conformal_p_value(self.calibration.double().cpu().numpy(), scores)

    def _unified(self, energy: Tensor, distance: Tensor) -> Tensor:
        """`good_rt.method.gate.combine` in torch operations that every ONNX runtime has."""
        u = self.unified
        image = (energy - u.energy_mean) / u.energy_std
        feature = (distance - u.distance_mean) / u.distance_std
        if abs(u.c) < 1e-6:
            return (1 - u.pi) * image + u.pi * feature
        terms = torch.stack(
            [math.log1p(-u.pi) + u.c * image, math.log(u.pi) + u.c * feature], dim=1
        )
        return torch.logsumexp(terms, dim=1) / u.c


def build_module(
    classifier: Classifier,
    bank: FeatureBank,
    fit_images: Images,
    calibration_images: Images,
    ood_images: Sequence[Tensor],
    config: DetectorConfig = DetectorConfig(),
) -> DetectorModule:
    """Gate and calibration for a classifier and its bank, as one module.

    The gate is fitted on ``fit_images`` against ``ood_images``, each kind with the same weight:
    the kind that the classifier was trained with may be the largest, and energy separates it
    without the distance. The p-value is only calibrated on ``calibration_images``, with the
    finished score, so that its guarantee holds.

    Args:
        classifier: Images to logits and features.
        bank: Features of ID training images.
        fit_images: Held-out ID images (N, C, H, W) in [-1, 1], whole or in batches.
        calibration_images: Other held-out ID images.
        ood_images: Generated images by kind; without any the gate weighs both discrepancies
            equally.
        config: k, α and temperature.
    """
    known = measure(classifier, bank, fit_images, config)
    if ood_images:
        ood = measure(classifier, bank, torch.cat(list(ood_images)), config)
        weights = np.concatenate([np.full(len(kind), 1 / len(kind)) for kind in ood_images])
        score = unified.fit(known.energy, known.knn_distance, ood.energy, ood.knn_distance, weights)
    else:
        score = unified.mean_score(known.energy, known.knn_distance)
    held_out = measure(classifier, bank, calibration_images, config)
    module = DetectorModule(
        classifier, bank, score, score(held_out.energy, held_out.knn_distance), config
    )
    return module.eval().to(classifier.device)
