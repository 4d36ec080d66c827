"""What guidance climbs: image- and feature-level discrepancy of the classifier, weighed by λ.

A guidance is a function from images to one number a sample, higher = more out-of-distribution. Any
function of that type can steer the sampler, and guidances add up (`total`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.method.discrepancy import Discrepancy
from good_rt.method.discrepancy.energy import image_level

ClassifierFn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""images (N, C, H, W) in [-1, 1] -> logits (N, K) and features (N, D)."""


class Guidance(Protocol):
    """images (N, C, H, W) in [-1, 1] -> ℓ (N,); each value depends only on its own image."""

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class IdScales:
    """Standard deviations of both discrepancies on held-out ID images."""

    image_std: float
    feature_std: float

    def weights(self, lam: float) -> tuple[float, float]:
        """The factors (1−λ)/s_img of ℓ_img and λ/s_feat of ℓ_feat.

        Args:
            lam: λ in [0, 1].
        """
        return (1 - lam) / self.image_std, lam / self.feature_std

    @classmethod
    def measure(
        cls, logits: Tensor, features: Tensor, feature: Discrepancy, temperature: float = 1.0
    ) -> IdScales:
        """The scales of ID images that ``feature`` was not fitted on.

        Args:
            logits: (N, K) of the images.
            features: (N, D).
            feature: ℓ_feat.
            temperature: T of ℓ_img.

        Raises:
            GoodRtError: a discrepancy is not finite, or the same for all images.
        """
        return cls.of(image_level(logits, temperature), feature(logits, features))

    @classmethod
    def of(cls, image_levels: Tensor, feature_levels: Tensor) -> IdScales:
        """The scales of discrepancies that are measured already.

        Args:
            image_levels: (N,) ℓ_img of ID images.
            feature_levels: (N,) ℓ_feat of the same.

        Raises:
            GoodRtError: a discrepancy is not finite, or the same for all images.
        """
        scales = cls(float(image_levels.std()), float(feature_levels.std()))
        for level, std in (("image", scales.image_std), ("feature", scales.feature_std)):
            if not (math.isfinite(std) and std > 0):
                raise GoodRtError(
                    f"the {level}-level discrepancy of {len(image_levels)} held-out ID images has "
                    "no spread; add images, or check the classifier"
                )
        return scales


@dataclass(frozen=True)
class ClassifierGuidance:
    """ℓ = (1−λ)·ℓ_img/s_img + λ·ℓ_feat/s_feat, from one pass of the classifier.

    Attributes:
        classifier: Images (N, C, H, W) in [-1, 1] -> logits (N, K) and features (N, D).
        feature: ℓ_feat.
        scales: The ID standard deviations s.
        lam: λ; 0 is image-level guidance, 1 feature-level, between them both.
        temperature: T of ℓ_img.
    """

    classifier: ClassifierFn
    feature: Discrepancy
    scales: IdScales
    lam: float
    temperature: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        logits, features = self.classifier(images)
        image_weight, feature_weight = self.scales.weights(self.lam)
        value = torch.zeros_like(logits[:, 0])
        if image_weight:
            value = value + image_weight * image_level(logits, self.temperature)
        if feature_weight:
            value = value + feature_weight * self.feature(logits, features)
        return value


@dataclass(frozen=True)
class EngineGuidance:
    """The same ℓ with its gradient in the latents, from one engine of decoder, classifier and
    discrepancies.

    ℓ_feat and temperature are the engine's (see `good_rt.export.guidance_module`).

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
