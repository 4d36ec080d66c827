"""The detector as one PyTorch module: image in, every score and the decision out.

It is built from the classifier, features of ID images and the calibration, and is what
`good_rt.export.detector` writes as detector.onnx; `good_rt.detector.runtime` runs that file without
PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from good_rt.classifier import Classifier, IdFeatures, Images, predict
from good_rt.config.settings import DetectorConfig
from good_rt.detector.runtime import output_names
from good_rt.method.combination.base import constant
from good_rt.method.conformal import check_alpha, conformal_p_value
from good_rt.method.discrepancy import Discrepancy, DiscrepancyConfig, fit_discrepancy
from good_rt.method.measurements import Measurements
from good_rt.method.unified import UnifiedScore, fit_unified


@torch.no_grad()
def measure(
    classifier: Classifier,
    discrepancies: Sequence[Discrepancy],
    images: Images,
    keep_features: bool = False,
) -> Measurements:
    """Logits and discrepancies of images that the discrepancies were not fitted on.

    Args:
        classifier: Images to logits and features.
        discrepancies: What is measured.
        images: (N, C, H, W) in [-1, 1], whole or in batches.
        keep_features: Whether the features are returned too.
    """
    logits, kept, rows = [], [], []
    for batch in _batches(images):
        of_batch, features = predict(classifier, batch)
        logits.append(of_batch)
        kept += [features] if keep_features else []
        rows.append([one(of_batch, features).double() for one in discrepancies])
    columns = zip(*rows, strict=True)
    return Measurements(
        torch.cat(logits).numpy(),
        {
            one.name: torch.cat(values).numpy()
            for one, values in zip(discrepancies, columns, strict=True)
        },
        torch.cat(kept).numpy() if keep_features else None,
    )


def _batches(images: Images) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield images
    else:
        yield from images


PIXEL_TOLERANCE = 1 / 510
"""How far a pixel may lie outside [0, 1]: half a grey level of 8 bits, for rounding."""


def are_images(values: Tensor) -> Tensor:
    """(N,) bool: which of (N, C, H, W) hold only numbers in [0, 1], up to `PIXEL_TOLERANCE`."""
    axes = (1, 2, 3)
    # runtimes may skip NaN in a minimum and a maximum, but a sum with NaN is NaN; and OpenVINO's
    # NaN is greater than any number, but less than none
    lowest, highest, total = values.amin(axes), values.amax(axes), values.sum(axes)
    return (lowest >= -PIXEL_TOLERANCE) & (highest <= 1 + PIXEL_TOLERANCE) & (total <= math.inf)


class DetectorModule(nn.Module):
    """images (N, C, H, W) float32 in [0, 1] -> `outputs` in their order, each with leading axis N.

    Args:
        classifier: Images to logits and features.
        discrepancies: What ``score`` combines, in its order.
        score: The unified score.
        calibration: (n,) unified scores of held-out ID images.
        config: α and the settings of the discrepancies.
        id_features: The features that the discrepancies were fitted on.

    Raises:
        GoodRtError: the calibration is too small for α.
    """

    calibration: Tensor

    def __init__(
        self,
        classifier: Classifier,
        discrepancies: Sequence[Discrepancy],
        score: UnifiedScore,
        calibration: NDArray[np.float64],
        config: DetectorConfig,
        id_features: IdFeatures,
    ) -> None:
        super().__init__()
        check_alpha(config.alpha, len(calibration))
        self.classifier = classifier
        self.discrepancies = tuple(discrepancies)
        self.unified = score
        self.config = config
        self.id_features = id_features
        self.graphs = nn.ModuleList(one.graph() for one in discrepancies)
        self.register_buffer("calibration", torch.from_numpy(np.sort(calibration)).float())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return output_names(self.unified.names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, features = self.classifier(images * 2 - 1)
        return self.decide(logits, features, are_images(images))

    def decide(self, logits: Tensor, features: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """The outputs from logits (N, K), features (N, D), and which inputs are images (N,).

        What is no image, or has a p-value of NaN, is OOD.
        """
        values = [graph(logits, features) for graph in self.graphs]
        score = self.unified(torch.stack(values, dim=1), logits)
        excess = self.calibration[None, :] - score[:, None]
        # with 0·excess, a NaN of the score or of the calibration makes the p-value NaN
        at_least_as_ood = ((excess >= 0).float() + 0 * excess).sum(dim=1)
        p_value = (1 + at_least_as_ood) / (len(self.calibration) + 1)
        p_value = torch.where(valid, p_value, 0.0)
        alpha = constant([self.config.alpha], p_value)
        # not p_value <= alpha, which NaN is not
        return logits, *values, score, p_value, ~torch.lt(alpha, p_value)

    def p_values(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Conformal p-values (N,) in (0, 1].

        Args:
            scores: (N,) unified scores.
        """
        return conformal_p_value(self.calibration.double().cpu().numpy(), scores)

    def scores(self, measured: Measurements) -> NDArray[np.float64]:
        """Unified scores (N,) of measured images."""
        return self.unified.of(measured)


def build_module(
    classifier: Classifier,
    id_features: IdFeatures,
    fit_images: Images,
    calibration_images: Images,
    ood_images: Sequence[Tensor],
    config: DetectorConfig = DetectorConfig(),
) -> DetectorModule:
    """Discrepancies, their combination and calibration for a classifier, as one module.

    The discrepancies are fitted on ``id_features``. The combination is fitted on ``fit_images``,
    some combinations also on ``ood_images``, each kind with the same weight: the kind that the
    classifier was trained with may be the largest, and energy separates it without the others. The
    p-value is only calibrated on ``calibration_images``, with the finished score, so that its
    guarantee holds.

    Args:
        classifier: Images to logits and features.
        id_features: Features and classes of ID training images.
        fit_images: Held-out ID images (N, C, H, W) in [-1, 1], whole or in batches.
        calibration_images: Other held-out ID images.
        ood_images: Generated images by kind; may be empty where the combination needs none.
        config: The discrepancies with their settings, the combination, and α.

    Raises:
        GoodRtError: the images are too few, or do not suffice for a discrepancy or the combination.
    """
    parameters = DiscrepancyConfig(config.k, config.temperature)
    names = config.discrepancies
    discrepancies = [fit_discrepancy(name, id_features, parameters) for name in names]
    known = measure(classifier, discrepancies, fit_images)
    ood, weights = None, None
    if ood_images:
        ood = measure(classifier, discrepancies, torch.cat(list(ood_images)))
        weights = np.concatenate([np.full(len(kind), 1 / len(kind)) for kind in ood_images])
    score = fit_unified(names, known, config.combination, ood, weights)
    held_out = measure(classifier, discrepancies, calibration_images)
    module = DetectorModule(
        classifier, discrepancies, score, score.of(held_out), config, id_features
    )
    return module.eval().to(classifier.device)
