"""The discrepancies ℓ that guidance climbs: how far the classifier finds an image from what it was
trained on.

A guidance is a function from images to one number a sample, higher = more out-of-distribution. Any
function of that type can steer the sampler, and guidances add up (`total`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from good_rt.method.bank import FeatureBank

ClassifierFn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""images (N, C, H, W) in [-1, 1] -> logits (N, K) and unit-norm features (N, D)."""


class Guidance(Protocol):
    """images (N, C, H, W) in [-1, 1] -> ℓ (N,); each value depends only on its own image."""

    def __call__(self, images: Tensor) -> Tensor: ...


def image_level(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """ℓ_img = −T·logsumexp_c(f_c/T), the energy, (N,) (GOOD, arXiv 2510.17131; Liu et al.,
    2010.03759).

    Args:
        logits: (N, K) f.
        temperature: T > 0.
    """
    return -temperature * torch.logsumexp(logits / temperature, dim=1)


def feature_level(
    features: Tensor, bank: FeatureBank, k: int, *, approximate: bool = False
) -> Tensor:
    """ℓ_feat, the distance to the k-th nearest ID feature, (N,) (GOOD, arXiv 2510.17131).

    Args:
        features: (N, D) of unit norm.
        bank: ID features.
        k: Which neighbour.
        approximate: Only for guidance; see `FeatureBank.search`.
    """
    return bank.distance(features, k, approximate=approximate)


@dataclass(frozen=True)
class IdScales:
    """Mean and standard deviation of both discrepancies on held-out ID images."""

    image_mean: float
    image_std: float
    feature_mean: float
    feature_std: float

    def weights(self, lam: float) -> tuple[float, float]:
        """The factors (1−λ)/s_img of ℓ_img and λ/s_feat of ℓ_feat.

        Args:
            lam: λ in [0, 1].
        """
        return (1 - lam) / self.image_std, lam / self.feature_std

    @classmethod
    def measure(
        cls, logits: Tensor, features: Tensor, bank: FeatureBank, k: int, temperature: float = 1.0
    ) -> IdScales:
        """The scales of ID images that are not in the bank.

        Args:
            logits: (N, K) of the images.
            features: (N, D) of unit norm.
            bank: ID features.
            k: Which neighbour ℓ_feat is the distance to.
            temperature: T of ℓ_img.
        """
        image, feature = image_level(logits, temperature), feature_level(features, bank, k)
        return cls(
            float(image.mean()), float(image.std()), float(feature.mean()), float(feature.std())
        )


@dataclass(frozen=True)
class ClassifierGuidance:
    """ℓ = (1−λ)·ℓ_img/s_img + λ·ℓ_feat/s_feat, from one pass of the classifier.

    Attributes:
        classifier: Images (N, C, H, W) in [-1, 1] -> logits (N, K) and unit-norm features (N, D).
        bank: ID features.
        scales: The ID standard deviations s.
        lam: λ; 0 is image-level guidance, 1 feature-level, between them both.
        k: Which neighbour ℓ_feat is the distance to.
        temperature: T of ℓ_img.
    """

    classifier: ClassifierFn
    bank: FeatureBank
    scales: IdScales
    lam: float
    k: int
    temperature: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        logits, features = self.classifier(images)
        image_weight, feature_weight = self.scales.weights(self.lam)
        value = torch.zeros_like(logits[:, 0])
        if image_weight:
            value = value + image_weight * image_level(logits, self.temperature)
        if feature_weight:
            value = value + feature_weight * feature_level(
                features, self.bank, self.k, approximate=True
            )
        return value


@dataclass(frozen=True)
class EngineGuidance:
    """The same ℓ with its gradient in the latents, from one engine of decoder, classifier and bank.

    Bank, k and temperature are the engine's (see `good_rt.export.guidance_module`).

    Attributes:
        run: (cotangent (N,), latents, offset, image_weight (N,), feature_weight (N,)) -> ℓ (N,) and
            the gradient.
        scales: The ID standard deviations s.
        lam: λ in [0, 1].
        image_shape: (C, H, W) of the decoded images.
    """

    run: Callable[..., tuple[Tensor, ...]]
    scales: IdScales
    lam: float
    image_shape: tuple[int, int, int]

    def value_and_gradient(self, latents: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        ones = latents.new_ones(len(latents))
        image_weight, feature_weight = self.scales.weights(self.lam)
        value, gradient = self.run(
            ones, latents, offset, image_weight * ones, feature_weight * ones
        )
        return value, gradient


def total(*guidances: Guidance) -> Guidance:
    """The sum of guidances."""

    def value(images: Tensor) -> Tensor:
        return torch.stack([guidance(images) for guidance in guidances]).sum(dim=0)

    return value
