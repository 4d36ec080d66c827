"""The k-NN distance: the paper's feature-level discrepancy. It needs no classes, but a bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.classifier.features import IdFeatures
from good_rt.method.bank import FeatureBank
from good_rt.method.discrepancy.base import Discrepancy, DiscrepancyConfig, discrepancy


@discrepancy
class KnnDistance(Discrepancy):
    """ℓ_feat, the distance of the unit-norm feature to its k-th nearest ID feature, in [0, 2]
    (GOOD, arXiv 2510.17131; Sun et al., arXiv 2204.06507).

    Args:
        bank: ID features of unit norm.
        k: Which neighbour.
        approximate: Only for guidance; see `FeatureBank.search`.

    Raises:
        GoodRtError: the bank has fewer than k rows.
    """

    name, title = "knn_distance", "k-NN"

    def __init__(self, bank: FeatureBank, k: int, *, approximate: bool = False) -> None:
        super().__init__()
        bank.check_k(k)
        self.bank, self.k, self.approximate = bank, k, approximate

    @classmethod
    def fit(cls, id_features: IdFeatures, config: DiscrepancyConfig) -> KnnDistance:
        """The distance to these features.

        Args:
            id_features: Features of training images.
            config: Its k.
        """
        return cls(FeatureBank.of(id_features.features), config.k)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """(N,) distances in [0, 2], with their gradient in the features.

        Args:
            logits: Not used.
            features: (N, D), of any norm.
        """
        features = F.normalize(features, dim=1)
        return self.bank.distance(features, self.k, approximate=self.approximate)

    def graph(self) -> nn.Module:
        return KnnGraph(self.bank.features, self.k)

    def parameters_used(self) -> Mapping[str, Any]:
        return {"k": self.k, "bank_size": len(self.bank)}


class KnnGraph(nn.Module):
    """`KnnDistance` in operations that every ONNX runtime has, with the bank as a buffer.

    The k nearest bank rows have the largest inner products; the distance to the k-th is then
    computed exactly, since √(2−2·q·b) loses half the digits for near neighbours.

    Args:
        features: (M, D) of unit norm, the bank.
        k: Which neighbour.
    """

    features: Tensor

    def __init__(self, features: Tensor, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("features", features)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """(N,) distances in [0, 2].

        Args:
            logits: Not used.
            features: (N, D), of any norm.
        """
        features = F.normalize(features, dim=1)
        # the search has no gradient, the distance to what it found has
        nearest = (features.detach() @ self.features.T).topk(self.k, dim=1).indices[:, -1]
        return torch.linalg.vector_norm(features - self.features[nearest], dim=1)
