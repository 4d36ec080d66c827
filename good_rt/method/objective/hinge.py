"""The squared hinge of the energy, with margins that follow from the original classifier."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.method.discrepancy.energy import image_level
from good_rt.method.objective.base import Objective, objective
from good_rt.method.outputs import BatchOutputs, OriginalOutputs

ID_TAIL = 0.95
"""The quantile of ID energies that a detector of the energy with α = 0.05 refuses from."""


@objective
class HingeObjective(Objective):
    """Energy fine-tuning (Liu et al., arXiv 2010.03759, Eq. 8), in units of the distance between
    its margins:

    R = mean over ID of max(0, (E − m_in)/(m_out − m_in))² + mean over OOD of max(0, (m_out −
    E)/(m_out − m_in))².

    The unit makes the weight mean the same for every classifier: an ID image at m_out costs 1, and
    so does an OOD image at m_in. Liu et al. tune both margins; `automatic_margins` sets them.

    Args:
        m_in: The energy that ID images should not exceed.
        m_out: The energy that OOD images should reach, above ``m_in``.
    """

    name, title = "hinge", "squared hinge of the energy"

    m_in: Tensor
    m_out: Tensor

    def __init__(self, m_in: float = 0.0, m_out: float = 1.0) -> None:
        super().__init__()
        # float64, in which m_in < m_out was checked
        self.register_buffer("m_in", torch.tensor(m_in, dtype=torch.float64))
        self.register_buffer("m_out", torch.tensor(m_out, dtype=torch.float64))

    @classmethod
    def start(cls, original: OriginalOutputs) -> Self:
        """Margins from the original classifier's energies of held-out images.

        Args:
            original: Its held-out outputs.

        Raises:
            GoodRtError: the energies do not vary.
        """
        outputs = original.held_out
        energies = image_level(outputs.logits)
        return cls(*automatic_margins(energies[: outputs.id_count], energies[outputs.id_count :]))

    def forward(self, outputs: BatchOutputs) -> Tensor:
        energies = (image_level(outputs.logits) - self.m_in) / (self.m_out - self.m_in)
        of_id, of_ood = energies[: outputs.id_count], energies[outputs.id_count :]
        return of_id.clamp_min(0).square().mean() + (1 - of_ood).clamp_min(0).square().mean()


def automatic_margins(id_energies: Tensor, ood_energies: Tensor) -> tuple[float, float]:
    """(m_in, m_out) with m_in < m_out.

    m_in is the median of ID energies: half of the ID images already satisfy it, and the others are
    drawn towards them, not all of them to ever lower energies. m_out is the median of generated
    images' energies, but at least the ID energies' `ID_TAIL`: generated images near the ID images
    must leave the energies that ID images have, and beyond the margin nothing is gained. If more
    than half of the ID energies are equal, m_out is a standard deviation above m_in instead.

    Args:
        id_energies: (N,) of held-out ID images.
        ood_energies: (M,) of held-out generated images; there may be none.

    Raises:
        GoodRtError: the energies do not vary, or are not finite.
    """
    known = id_energies.double()
    m_in, m_out = (float(torch.quantile(known, share)) for share in (0.5, ID_TAIL))
    if len(ood_energies):
        m_out = max(m_out, float(torch.quantile(ood_energies.double(), 0.5)))
    if not m_in < m_out:
        m_out = m_in + float(known.std(correction=0))
    if not m_in < m_out:
        raise GoodRtError(
            "the energies of held-out images do not vary, so the objective hinge has no margins; "
            "check the classifier and the images, or choose the objective logistic"
        )
    return m_in, m_out
