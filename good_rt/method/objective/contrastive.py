"""Supervised contrastive learning: ID images of a class attract each other, all others repel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.method.objective.base import Objective, objective
from good_rt.method.outputs import BatchOutputs

CONTRASTIVE_TEMPERATURE = 0.1
"""τ, as Khosla et al. have it."""
ANCHORS = 512
"""Anchors that are compared with all images at once."""


@objective
class ContrastiveObjective(Objective):
    """The supervised contrastive loss of unit-norm features φ (Khosla et al., arXiv 2004.11362, Eq.
    2), with OOD images as further negatives:

    R = mean over ID images i of −1/|P(i)| Σ_{p ∈ P(i)} log(e_ip / Σ_{a ≠ i} e_ia).

    e_ij is exp(φ_i·φ_j/τ). P(i) are the other ID images of the class of i; an image without any is
    no anchor. a runs over all images of the batch. OOD images are neither anchors nor positives,
    since they need not resemble each other.
    """

    name, title = "contrastive", "supervised contrastive loss"
    weight = 0.5

    def forward(self, outputs: BatchOutputs) -> Tensor:
        features, labels = F.normalize(outputs.features, dim=1), outputs.labels
        columns = torch.arange(len(features), device=features.device)
        losses = []
        for anchors in columns[: outputs.id_count].split(ANCHORS):
            similarities = features[anchors] @ features.T / CONTRASTIVE_TEMPERATURE
            is_itself = anchors[:, None] == columns
            others = similarities.masked_fill(is_itself, -torch.inf).logsumexp(dim=1, keepdim=True)
            log_shares = (similarities - others)[:, : outputs.id_count]
            is_positive = (labels[anchors, None] == labels) & ~is_itself[:, : outputs.id_count]
            positives = is_positive.sum(dim=1)
            means = (log_shares * is_positive).sum(dim=1) / positives.clamp_min(1)
            losses.append(-means[positives > 0])
        found = torch.cat(losses)
        return found.mean() if len(found) else 0 * features.sum()
