"""Relative Mahalanobis distance: how much farther a feature is from its class than from ID images
as a whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from good_rt.classifier.features import IdFeatures
from good_rt.errors import GoodRtError
from good_rt.method.discrepancy.base import Discrepancy, DiscrepancyConfig, discrepancy
from good_rt.method.discrepancy.mahalanobis import FittedGaussians, present_classes


class GaussianDifference(nn.Module):
    """features (N, D) -> squared distances (N, C) to Gaussians of one covariance Σ, less the
    squared distance to another Gaussian with the same centre and covariance Σ_0.

    With centred features x and means m_c, the difference is xᵀ·(Σ⁻¹ − Σ_0⁻¹)·x − 2·xᵀ·Σ⁻¹·m_c +
    m_cᵀ·Σ⁻¹·m_c. The matrix of its first term is U·diag(signs)·Uᵀ, so that one product with U
    takes the place of two whitenings, and no digits are lost where both distances are large.

    Args:
        classes: The Gaussians.
        background: The other one, of one mean.
    """

    centre: Tensor
    factor: Tensor
    signs: Tensor
    slopes: Tensor
    offsets: Tensor

    def __init__(self, classes: FittedGaussians, background: FittedGaussians) -> None:
        super().__init__()
        inverse, of_background = (one.whitening @ one.whitening.T for one in (classes, background))
        values, vectors = torch.linalg.eigh(inverse - of_background)
        towards_means = classes.means @ inverse
        self.register_buffer("centre", classes.centre.float())
        self.register_buffer("factor", (vectors * values.abs().sqrt()).float().contiguous())
        self.register_buffer("signs", values.sign().float()[:, None])
        self.register_buffer("slopes", (-2 * towards_means.T).float().contiguous())
        self.register_buffer("offsets", (towards_means * classes.means).sum(dim=1).float())

    def forward(self, features: Tensor) -> Tensor:
        centred = features - self.centre
        squared = (centred @ self.factor).square() @ self.signs
        return squared + torch.addmm(self.offsets, centred, self.slopes)


@discrepancy
class RelativeMahalanobis(Discrepancy):
    """min_c of the squared Mahalanobis distance to class c's Gaussian minus that to one Gaussian of
    all classes, of features as the network gives them (Ren et al., arXiv 2106.09022).

    Args:
        classes: Gaussians of the classes' features, less the Gaussian of all features.
    """

    name, title = "relative_mahalanobis", "Relative Mahalanobis"

    def __init__(self, classes: GaussianDifference) -> None:
        super().__init__()
        self.classes = classes

    @classmethod
    def fit(cls, id_features: IdFeatures, config: DiscrepancyConfig) -> RelativeMahalanobis:
        """Gaussians of the classes that have images, and one of all images.

        Args:
            id_features: Features of training images with their classes.
            config: Not used.

        Raises:
            GoodRtError: all images are of one class.
        """
        labels = present_classes(id_features)
        if not labels.any():
            raise GoodRtError(
                "relative_mahalanobis compares classes, and all ID images are of one; choose "
                "mahalanobis or knn_distance"
            )
        features = id_features.features
        classes, background = (
            FittedGaussians.of(features, of_images)
            for of_images in (labels, torch.zeros_like(labels))
        )
        return cls(GaussianDifference(classes, background))

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """(N,) differences of squared distances.

        Args:
            logits: Not used.
            features: (N, D), as the network gives them.
        """
        return self.classes(features).amin(dim=1)
