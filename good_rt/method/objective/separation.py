"""The part that the objectives `logistic` and `mahalanobis` share: a logistic regression that tells
ID from OOD images by one number, with a learned head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.method.objective.base import Objective
from good_rt.method.outputs import BatchOutputs


class MonotoneHead(nn.Module):
    """g: a number (N,), higher = more ID -> logit (N,) that the image is ID, affine with a slope
    above 0.

    More of the number always means more ID. A head with hidden units, as in VOS, may call a band of
    numbers ID, and then the number is no longer a score.

    Args:
        middle: The number whose logit is 0 at the start.
    """

    def __init__(self, middle: float = 0.0) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(float(middle)))
        self.log_slope = nn.Parameter(torch.tensor(0.0))

    def forward(self, number: Tensor) -> Tensor:
        return self.log_slope.exp() * (number - self.middle)


class Separation(Objective):
    """BCE(g(−a), is ID) of a discrepancy a and a `MonotoneHead` g."""

    def __init__(self) -> None:
        super().__init__()
        self.head = MonotoneHead()

    def discrepancy(self, outputs: BatchOutputs) -> Tensor:
        """a (N,), higher = more OOD.

        Args:
            outputs: Of a batch.
        """
        raise NotImplementedError

    @torch.no_grad()
    def place_head(self, outputs: BatchOutputs) -> None:
        """Lets the head start half-way between the mean −a of ID and of OOD images.

        Args:
            outputs: Of held-out images.
        """
        negative = -self.discrepancy(outputs)
        parts = negative[: outputs.id_count], negative[outputs.id_count :]
        means = [float(part.mean()) for part in parts if len(part)]
        self.head.middle.fill_(sum(means) / len(means))

    def forward(self, outputs: BatchOutputs) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            self.head(-self.discrepancy(outputs)), outputs.is_id
        )

    def held_out(self, outputs: BatchOutputs) -> Tensor:
        log_odds = self.head(-self.discrepancy(outputs))
        is_id, is_ood = log_odds[: outputs.id_count], log_odds[outputs.id_count :]
        return 0.5 * (F.softplus(-is_id).mean() + F.softplus(is_ood).mean())
