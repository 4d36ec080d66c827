"""Outliers that are drawn among features instead of images, for benchmarks/quality.py.

They are drawn anew in every step, from the features that the network has by then, so they have no
number, and their gradient reaches the head alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from good_rt.classifier import Classifier

QUEUE = 4_000
"""Features of ID images that the distributions are fitted on, the newest ones."""
VOS_DRAWS = 10_000
"""Of each class, of which the least likely are kept (as published)."""
RIDGE = 1e-4
"""Share of the mean variance that is added to every variance (VOS adds 1e-4)."""

DrawFeatures = Callable[[Tensor, Tensor, int, torch.Generator], Tensor]
"""(M, D) features of ID images, their (M,) classes, count, generator -> (count, D) outliers."""


def class_gaussians(features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(K, D) means of the classes that occur, (D, D) lower Cholesky factor L of their common
    covariance, and the (M, D) features less the means of their classes."""
    present, at = classes.unique(return_inverse=True)
    means = torch.stack([features[at == k].mean(dim=0) for k in range(len(present))])
    centred = features - means[at]
    covariance = centred.T @ centred / len(features)
    ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(len(covariance))
    return means, torch.linalg.cholesky(covariance + ridge), centred


def vos(features: Tensor, classes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The least likely of many draws from each class's normal distribution (VOS, Du et al., arXiv
    2202.01197, Eqs. 3 and 4)."""
    means, factor, _ = class_gaussians(features, classes)
    kept = []
    for mean, share in zip(means, torch.arange(count).tensor_split(len(means)), strict=True):
        noise = torch.randn(VOS_DRAWS, len(mean), generator=generator)
        least_likely = noise.square().sum(dim=1).topk(len(share)).indices
        kept.append(mean + noise[least_likely] @ factor.T)
    return torch.cat(kept)


def gcos(features: Tensor, classes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Features in random directions from the class means, at Mahalanobis distances between the 95 %
    and 99 % quantiles of those of ID images (after the conformal shell of GCOS, arXiv
    2603.08413)."""
    means, factor, centred = class_gaussians(features, classes)
    whitened = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    low, high = whitened.norm(dim=1).quantile(torch.tensor([0.95, 0.99]))
    directions = torch.randn(count, features.shape[1], generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    radii = low + (high - low) * torch.rand(count, 1, generator=generator)
    of = torch.randint(len(means), (count,), generator=generator)
    return means[of] + (radii * directions) @ factor.T


FEATURE_OUTLIERS: dict[str, DrawFeatures] = {"VOS features": vos, "GCOS features": gcos}
"""Every way of this file by the name that tables show."""


class FeatureOutlierClassifier(Classifier):
    """A classifier that puts outliers in the place of the last features of a batch while it is
    trained; in evaluation mode it is the classifier that it is made from.

    Classes of ID features are those that the classifier sees in them.

    Args:
        classifier: The original classifier; its network is shared. Features must be vectors.
        draw: Draws the outliers.
        id_batch: ID images at the beginning of a batch.
        seed: Of the draws.
    """

    def __init__(
        self, classifier: Classifier, draw: DrawFeatures, id_batch: int, seed: int
    ) -> None:
        super().__init__(classifier.network, classifier.config, classifier.fingerprint)
        self.draw, self.id_batch, self.seed, self.step = draw, id_batch, seed, 0
        self.queue: tuple[Tensor, Tensor] | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.network
        if not self.training:
            return super().forward(images)
        features = network.forward_features(self.prepare(images))
        known = features[: self.id_batch]
        newest = (known.detach().float(), self.head(known).detach().argmax(dim=1))
        if self.queue is not None:
            newest = tuple(
                torch.cat([new, old])[:QUEUE] for new, old in zip(newest, self.queue, strict=True)
            )
        self.queue = newest
        count, self.step = len(features) - self.id_batch, self.step + 1
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.step)
        outliers = self.draw(*self.queue, count, generator).to(features.dtype)
        features = torch.cat([known, outliers])
        return self.head(features), features
