"""Class-conditional Mahalanobis distance of unit-norm features. It needs no bank: two matrix
products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.classifier.features import IdFeatures
from good_rt.errors import GoodRtError
from good_rt.method.discrepancy.base import Discrepancy, DiscrepancyConfig, discrepancy


@dataclass(frozen=True, eq=False)
class FittedGaussians:
    """Gaussians of one covariance Σ, all of float64.

    Attributes:
        centre: (D,) mean of all features.
        means: (C, D) mean of each Gaussian, less ``centre``.
        whitening: (D, D) W with W·Wᵀ = Σ⁻¹.
    """

    centre: Tensor
    means: Tensor
    whitening: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor) -> FittedGaussians:
        """The Gaussians of features.

        Args:
            features: (M, D) that the Gaussians are fitted on.
            labels: (M,) index of each feature's Gaussian, from 0 to C − 1, each at least once.

        Raises:
            GoodRtError: a Gaussian has no feature.
        """
        features = features.double()
        counts = torch.bincount(labels)
        if not counts.all():
            raise GoodRtError(
                f"no ID image is of class {int((counts == 0).nonzero()[0])}, so the Mahalanobis "
                "distance to it is unknown; give images of every class"
            )
        means = torch.zeros(len(counts), features.shape[1], dtype=torch.float64)
        means = means.index_add(0, labels, features) / counts[:, None]
        centre = features.mean(dim=0)
        return cls(centre, means - centre, whitening_of(features - means[labels]))


class Gaussians(nn.Module):
    """Gaussians of one covariance: features (N, D) -> squared Mahalanobis distances (N, C).

    Features are centred before they are whitened, so that float32 keeps its digits; the distances
    are ‖z‖² − 2·z·m_c + ‖m_c‖² of whitened features z and means m_c. What does not depend on the
    features is computed here, so that a detector has few operations.

    Args:
        fitted: The Gaussians.
    """

    centre: Tensor
    whitening: Tensor
    slopes: Tensor
    offsets: Tensor

    def __init__(self, fitted: FittedGaussians) -> None:
        super().__init__()
        means = fitted.means @ fitted.whitening
        self.register_buffer("centre", fitted.centre.float())
        self.register_buffer("whitening", fitted.whitening.float().contiguous())
        self.register_buffer("slopes", (-2 * means.T).float().contiguous())
        self.register_buffer("offsets", means.square().sum(dim=1).float())

    def forward(self, features: Tensor) -> Tensor:
        white = (features - self.centre) @ self.whitening
        squared = white.square().sum(dim=1, keepdim=True)
        return squared + torch.addmm(self.offsets, white, self.slopes)


def whitening_of(residuals: Tensor) -> Tensor:
    """W (D, D) float64 with W·Wᵀ the inverse of the residuals' covariance.

    The covariance is shrunk towards a multiple of the identity by Ledoit and Wolf's estimate
    (2004), so that it has an inverse where images are few or features are constant.

    Args:
        residuals: (M, D) float64 with mean 0.

    Raises:
        GoodRtError: all residuals are 0.
    """
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(residuals.numpy(), assume_centered=True)
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
    if not values[-1] > 0:
        raise GoodRtError(
            "the features of ID images do not vary; the classifier is degenerate, or there are too "
            "few images"
        )
    return vectors / values.clamp_min(1e-12 * float(values[-1])).sqrt()


def present_classes(id_features: IdFeatures) -> Tensor:
    """(M,) labels renumbered over the classes that have images."""
    return torch.unique(id_features.labels, return_inverse=True)[1]


@discrepancy
class Mahalanobis(Discrepancy):
    """min_c of the squared Mahalanobis distance of the unit-norm feature to class c's Gaussian,
    with one covariance for all classes (Lee et al., arXiv 1807.03888; on unit-norm features it is
    known as MDS++, Mueller and Hein, arXiv 2505.18032).

    Args:
        classes: Gaussians of the classes' unit-norm features.
    """

    name, title = "mahalanobis", "Mahalanobis"

    def __init__(self, classes: Gaussians) -> None:
        super().__init__()
        self.classes = classes

    @classmethod
    def fit(cls, id_features: IdFeatures, config: DiscrepancyConfig) -> Mahalanobis:
        """Gaussians of the classes that have images.

        Args:
            id_features: Features of training images with their classes.
            config: Not used.
        """
        features = F.normalize(id_features.features.double(), dim=1)
        return cls(Gaussians(FittedGaussians.of(features, present_classes(id_features))))

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """(N,) squared distances to the nearest class.

        Args:
            logits: Not used.
            features: (N, D), of any norm.
        """
        norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        # F.normalize, in fewer operations of a graph
        return self.classes(features / norms.clamp_min(1e-12)).amin(dim=1)
