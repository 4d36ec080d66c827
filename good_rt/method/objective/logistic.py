"""The logistic loss of the energy, GOOD's own objective."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from good_rt.method.discrepancy.energy import image_level
from good_rt.method.objective.base import objective
from good_rt.method.objective.separation import Separation
from good_rt.method.outputs import BatchOutputs, OriginalOutputs


@objective
class LogisticObjective(Separation):
    """BCE(g(−energy), is ID) with a learned head g, as in VOS (Du et al., arXiv 2202.01197, Eq. 6)
    and GOOD (arXiv 2510.17131)."""

    name, title = "logistic", "logistic loss of the energy"

    @classmethod
    def start(cls, original: OriginalOutputs) -> Self:
        """The head starts half-way between the energies of held-out ID and generated images.

        Args:
            original: Its held-out outputs.
        """
        started = cls()
        started.place_head(original.held_out)
        return started

    def discrepancy(self, outputs: BatchOutputs) -> Tensor:
        return image_level(outputs.logits)
