"""What a combination is, and the register of all.

A combination makes one score out of J standardised discrepancies; it increases in each of them. It
is fitted on held-out ID images, some also on generated OOD images, never on a test set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from good_rt.errors import GoodRtError


@dataclass(frozen=True, eq=False)
class FitValues:
    """What a combination is fitted on: standardised discrepancies.

    Attributes:
        id: (N, J) float64 of held-out ID images.
        ood: (M, J) float64 of generated OOD images; None where there are none.
        ood_weights: (M,) weight of each OOD image.
    """

    id: Tensor
    ood: Tensor | None = None
    ood_weights: Tensor | None = None

    def generated(self, name: str) -> tuple[Tensor, Tensor]:
        """OOD values (M, J) and their weights (M,), of mean 1.

        Args:
            name: The combination, for the error.

        Raises:
            GoodRtError: there are none.
        """
        if self.ood is None:
            raise GoodRtError(
                f"the combination {name} is fitted on generated images; give some, or choose sum"
            )
        weights = self.ood.new_ones(len(self.ood)) if self.ood_weights is None else self.ood_weights
        return self.ood, weights / weights.mean()


class Combination(Protocol):
    """Standardised discrepancies (N, J) -> (N,), in operations that every ONNX runtime has."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Each discrepancy's share of the score where all are equal; they sum to 1."""
        ...

    def __call__(self, standardised: Tensor) -> Tensor: ...


FitCombination = Callable[[FitValues], Combination]
COMBINATIONS: dict[str, FitCombination] = {}
"""What fits each combination, by its name in job files."""
FITTED_ON_GENERATED: set[str] = set()
"""Those that need generated images."""


def combination(
    name: str, *, generated: bool = False
) -> Callable[[FitCombination], FitCombination]:
    """Decorator that enters the function that fits a combination.

    Args:
        name: Its key in `COMBINATIONS`.
        generated: Whether it needs generated images.
    """

    def enter(fit: FitCombination) -> FitCombination:
        COMBINATIONS[name] = fit
        if generated:
            FITTED_ON_GENERATED.add(name)
        return fit

    return enter


def constant(numbers: Sequence[Any], like: Tensor) -> Tensor:
    """Numbers, or rows of numbers, as a tensor of the type and on the device of ``like``."""
    return torch.tensor(numbers, dtype=like.dtype).to(like.device)


def equal_weights(count: int) -> tuple[float, ...]:
    """``count`` weights of 1/count."""
    return (1 / count,) * count
