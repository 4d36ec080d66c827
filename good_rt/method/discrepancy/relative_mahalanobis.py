"""Relative Mahalanobis distance: how much farther a feature is from its class than from ID images
as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from good_rt.classifier.features import IdFeatures
from good_rt.errors import GoodRtError
from good_rt.method.discrepancy.base import Discrepancy, DiscrepancyConfig, discrepancy
from good_rt.method.discrepancy.mahalanobis import Gaussians, present_classes


@discrepancy
class RelativeMahalanobis(Discrepancy):
    """min_c of the squared Mahalanobis distance to class c's Gaussian minus that to one Gaussian of
    all classes, of features as the network gives them (Ren et al., arXiv 2106.09022).

    Args:
        classes: Gaussians of the classes' features.
        background: The Gaussian of all features.
    """

    name, title = "relative_mahalanobis", "Relative Mahalanobis"

    def __init__(self, classes: Gaussians, background: Gaussians) -> None:
        super().__init__()
        self.classes, self.background = classes, background

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
        return cls(Gaussians(features, labels), Gaussians(features, torch.zeros_like(labels)))

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """(N,) differences of squared distances.

        Args:
            logits: Not used.
            features: (N, D), as the network gives them.
        """
        return self.classes(features).amin(dim=1) - self.background(features)[:, 0]
