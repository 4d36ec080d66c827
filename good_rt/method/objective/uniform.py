"""Outlier exposure: uniform predictions for OOD images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from good_rt.method.objective.base import Objective, objective
from good_rt.method.outputs import BatchOutputs


@objective
class UniformObjective(Objective):
    """The mean cross-entropy of OOD images to the uniform distribution over the K classes
    (Hendrycks et al., arXiv 1812.04606). It is at least log K; the weight is theirs."""

    name, title = "uniform", "cross-entropy of OOD images to the uniform distribution"
    weight = 0.5

    def forward(self, outputs: BatchOutputs) -> Tensor:
        return -F.log_softmax(outputs.logits[outputs.id_count :], dim=1).mean()
