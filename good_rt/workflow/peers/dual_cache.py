"""The dual cache: few-shot positive and negative caches of features, after Dual-Adapter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.workflow.peers.base import PeerFit, PeerScore, peer
from good_rt.workflow.peers.images import ScoredImages

SHOTS, SHARPNESS = 16, 5.5
"""Images of a class in the caches of `dual_cache`, and β of their affinity (Tip-Adapter)."""


@peer(
    "Dual cache",
    "after arXiv 2405.16146 and 2111.03930; 16 images a class, α = 1, β = 5.5, half the channels",
    head=True,
    classes=True,
)
def dual_cache(fit: PeerFit) -> PeerScore:
    """Few-shot positive and negative caches, after Dual-Adapter (Chen et al., arXiv 2405.16146).

    Dual-Adapter is made for CLIP; here the classifier's head takes the place of the texts. The half
    of the channels on which class means agree least and vary most is positive, the rest negative:
    the smaller half of S − V, S their similarity between classes and V their variance over classes
    (Zhu et al., arXiv 2304.01195, with equal weights). On either half z = W f + b + α A, with
    Tip-Adapter's affinities A = exp(−β(1 − f̂ F̂ᵀ)) L to the cached features (Zhang et al., arXiv
    2111.03930). The score is −log of the largest softmax probability of a positive class
    among the positive and negative ones.
    """
    features, labels = fit.id_features.features, fit.id_features.labels
    means = torch.stack(
        [F.normalize(features[labels == c], dim=1).mean(0) for c in range(fit.id_features.classes)]
    )
    means = F.normalize(means, dim=1)
    similarity = (means.sum(dim=0).square() - means.square().sum(dim=0)) / len(means) ** 2
    order = (similarity - means.var(dim=0, unbiased=False)).argsort()
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    rows = torch.cat([(labels == c).nonzero()[:SHOTS, 0] for c in range(len(means))])
    one_hot = F.one_hot(labels[rows], len(means)).float()

    def cached_logits(images: ScoredImages, channels: Tensor) -> Tensor:
        part = images.features[:, channels]
        keys = F.normalize(features[rows][:, channels], dim=1)
        affinity = torch.exp(-SHARPNESS * (1 - F.normalize(part, dim=1) @ keys.T))
        return (
            F.linear(part, fit.weights.weight[:, channels], fit.weights.bias) + affinity @ one_hot
        )

    def score(images: ScoredImages) -> Tensor:
        positive, negative = (cached_logits(images, channels).double() for channels in halves)
        both = torch.cat([positive, negative], dim=1)
        return both.logsumexp(dim=1) - positive.amax(dim=1)

    return score
