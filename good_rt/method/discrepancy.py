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


LEVEL_WEIGHTS = {"img": 0.0, "feat": 1.0, "both": 0.5}
"""λ of ℓ = (1−λ)·ℓ_img/s_img + λ·ℓ_feat/s_feat by kind of guidance."""


class Guidance(Protocol):
    """images (N, C, H, W) in [-1, 1] -> ℓ (N,), each depending on its own image alone."""

    def __call__(self, images: Tensor) -> Tensor: ...


def image_level(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(N, K) logits -> ℓ_img = −T·logsumexp_c(f_c/T), the energy (GOOD, arXiv 2510.17131; Liu et
    al., 2010.03759)."""
    return -temperature * torch.logsumexp(logits / temperature, dim=1)


def feature_level(
    features: Tensor, bank: FeatureBank, k: int, *, approximate: bool = False
) -> Tensor:
    """(N, D) unit-norm features -> ℓ_feat, the distance to the k-th nearest ID feature (GOOD, arXiv
    2510.17131).

    ``approximate`` is for guidance alone: see `FeatureBank.search`.
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
        """The factors (1−λ)/s_img of ℓ_img and λ/s_feat of ℓ_feat."""
        return (1 - lam) / self.image_std, lam / self.feature_std

    @classmethod
    def measure(
        cls, logits: Tensor, features: Tensor, bank: FeatureBank, k: int, temperature: float = 1.0
    ) -> IdScales:
        """From the (N, K) logits and (N, D) features of ID images that are not in the bank."""
        image, feature = image_level(logits, temperature), feature_level(features, bank, k)
        return cls(
            float(image.mean()), float(image.std()), float(feature.mean()), float(feature.std())
        )


@dataclass(frozen=True)
class ClassifierGuidance:
    """ℓ = (1−λ)·ℓ_img/s_img + λ·ℓ_feat/s_feat, the s being ID standard deviations.

    λ = 0 is image-level guidance, λ = 1 feature-level; in between both, from one pass of the
    classifier.
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
    """The same ℓ with its gradient in the latents, from one engine of decoder, classifier and bank
    together.

    ``run`` takes (cotangent (N,), latents, offset, image_weight (N,), feature_weight (N,)) and
    gives ℓ (N,) and the gradient (see `good_rt.export.guidance_module`); bank, k and temperature
    are the engine's.
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
