"""Decoder, classifier and both discrepancies as one module, so that ℓ and ∇_z ℓ come out of one
engine.

`good_rt.export.vjp` turns it into the graph that `good-rt generate --gradients engine` runs at
every guided step.
"""

from __future__ import annotations

from torch import Tensor, nn

from good_rt.method.discrepancy import Discrepancy
from good_rt.method.discrepancy.energy import image_level


class GuidanceModule(nn.Module):
    """(latents, offset, image_weight, feature_weight) -> w_img·ℓ_img + w_feat·ℓ_feat of D(latents)
    + offset, (N,).

    latents (N, C, H, W), offset (N, c, H', W') (the smoothing's noise, or zeros), weights (N,). The
    feature discrepancy and the temperature are part of the graph.

    Args:
        decoder: D; None is the identity.
        classifier: Images to logits and features.
        feature: ℓ_feat.
        temperature: T of ℓ_img.
    """

    def __init__(
        self,
        decoder: nn.Module | None,
        classifier: nn.Module,
        feature: Discrepancy,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.decoder, self.classifier, self.feature = decoder, classifier, feature.graph()
        self.temperature = temperature

    def forward(
        self, latents: Tensor, offset: Tensor, image_weight: Tensor, feature_weight: Tensor
    ) -> Tensor:
        images = (latents if self.decoder is None else self.decoder(latents)) + offset
        logits, features = self.classifier(images)
        distance = self.feature(logits, features)
        return image_weight * image_level(logits, self.temperature) + feature_weight * distance
