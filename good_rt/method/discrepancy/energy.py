"""The energy: the image-level discrepancy, only from logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from good_rt.classifier.features import IdFeatures
from good_rt.method.discrepancy.base import Discrepancy, DiscrepancyConfig, discrepancy


def image_level(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """ℓ_img = −T·logsumexp_c(f_c/T), the energy, (N,) (GOOD, arXiv 2510.17131; Liu et al.,
    2010.03759).

    Args:
        logits: (N, K) f.
        temperature: T > 0.
    """
    return -temperature * torch.logsumexp(logits / temperature, dim=1)


@discrepancy
class Energy(Discrepancy):
    """The energy at a temperature.

    Args:
        temperature: T > 0.
    """

    name, title = "energy", "Energy"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    @classmethod
    def fit(cls, id_features: IdFeatures, config: DiscrepancyConfig) -> Energy:
        """The energy; nothing is fitted.

        Args:
            id_features: Features of training images; not used.
            config: Its temperature.
        """
        return cls(config.temperature)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """(N,) energies.

        Args:
            logits: (N, K).
            features: Not used.
        """
        return image_level(logits, self.temperature)

    def parameters_used(self) -> Mapping[str, Any]:
        return {"temperature": self.temperature}
