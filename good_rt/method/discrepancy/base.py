"""What a discrepancy is, and the register of all.

A discrepancy says how far the classifier finds an image from what it was trained on: one number an
image, higher = more out-of-distribution, from logits and penultimate features. The detector's score
combines several of them, and guidance climbs them, so each is differentiable.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from good_rt.classifier.features import IdFeatures
from good_rt.errors import GoodRtError


@dataclass(frozen=True)
class DiscrepancyConfig:
    """Parameters of the discrepancies; each uses its own.

    Attributes:
        k: Neighbour of the k-NN distance.
        temperature: T of the energy.
    """

    k: int = 1
    temperature: float = 1.0


class Discrepancy(nn.Module):
    """(logits (N, K), features (N, D)) -> (N,), each value only of its own image.

    Features are as the network gives them. What was fitted on ID features lies in buffers, so that
    an exported graph contains it.
    """

    name: ClassVar[str]
    """Its key in `DISCREPANCIES`, in job files and as an output of detector.onnx."""
    title: ClassVar[str]
    """Its name in tables."""

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """(N,), higher = more OOD.

        Args:
            logits: (N, K).
            features: (N, D), as the network gives them.
        """
        raise NotImplementedError

    def graph(self) -> nn.Module:
        """The same function in operations that can be exported, as a module of its own, so that it
        can move to another device."""
        return copy.deepcopy(self)

    def parameters_used(self) -> Mapping[str, Any]:
        """The settings that it was fitted with, for the detector's metadata."""
        return {}


Kind = TypeVar("Kind", bound=type[Discrepancy])
FitDiscrepancy = Callable[[IdFeatures, DiscrepancyConfig], Discrepancy]

DISCREPANCIES: dict[str, FitDiscrepancy] = {}
"""What fits each discrepancy, by name, in the order of tables."""
TITLES: dict[str, str] = {}
"""Names in tables by key."""


def discrepancy(kind: Kind) -> Kind:
    """Decorator that enters a `Discrepancy` with a class method ``fit``."""
    DISCREPANCIES[kind.name] = kind.fit  # type: ignore[attr-defined]
    TITLES[kind.name] = kind.title
    return kind


def fit_discrepancy(
    name: str, id_features: IdFeatures, config: DiscrepancyConfig = DiscrepancyConfig()
) -> Discrepancy:
    """A discrepancy fitted on ID features.

    Args:
        name: A key of `DISCREPANCIES`.
        id_features: Features of training images.
        config: Its parameters.

    Raises:
        GoodRtError: there is no such discrepancy, or the features do not suffice for it.
    """
    if name not in DISCREPANCIES:
        raise GoodRtError(f"there is no discrepancy {name!r}; there are {', '.join(DISCREPANCIES)}")
    return DISCREPANCIES[name](id_features, config).eval()
