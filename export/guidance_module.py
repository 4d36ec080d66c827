"""Decoder, classifier and both discrepancies as one module, so that ℓ and ∇_z ℓ come out of one
engine.

`good_rt.export.vjp` turns it into the graph that `good-rt generate --gradients engine` runs at
every guided step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from good_rt.method.bank import FeatureBank
from good_rt.method.discrepancy import image_level


class GuidanceModule(nn.Module):
    """(latents, offset, image_weight, feature_weight) -> w_img·ℓ_img + w_feat·ℓ_feat of D(latents)
    + offset, (N,).

    latents (N, C, H, W), offset (N, c, H', W') (the smoothing's noise, or zeros), weights (N,). The
    bank, k and the temperature are part of the graph. ``decoder`` None is the identity.
    """

    bank: Tensor

    def __init__(
        self,
        decoder: nn.Module | None,
        classifier: nn.Module,
        bank: FeatureBank,
        k: int,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        bank.check_k(k)
        self.decoder, self.classifier = decoder, classifier
        self.k, self.temperature = k, temperature
        self.register_buffer("bank", bank.features)

    def forward(
        self, latents: Tensor, offset: Tensor, image_weight: Tensor, feature_weight: Tensor
    ) -> Tensor:
        images = (latents if self.decoder is None else self.decoder(latents)) + offset
        logits, features = self.classifier(images)
        # the search has no gradient, the distance to what it found has
        rows = (features.detach() @ self.bank.T).topk(self.k, dim=1).indices[:, -1]
        distance = torch.linalg.vector_norm(features - self.bank[rows], dim=1)
        return image_weight * image_level(logits, self.temperature) + feature_weight * distance
