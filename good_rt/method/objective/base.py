"""What an objective is, and the register of all.

The loss of a training is CE(ID) + w·R. The objective computes R, the regulariser that teaches the
network to tell ID from generated OOD images. It sets itself up from the original classifier, so
that it has no parameters that a user must tune.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, TypeVar

from torch import Tensor, nn

from good_rt.config.settings import TrainConfig
from good_rt.method.outputs import BatchOutputs, OriginalOutputs


class Objective(nn.Module):
    """Outputs for a batch -> R, a scalar of at least 0.

    Its parameters are trained with ``head_lr``. Parameters and buffers are its whole state, which
    the checkpoint keeps.
    """

    name: ClassVar[str]
    """Its key in `OBJECTIVES` and in job files."""
    title: ClassVar[str]
    """What R is, in reports."""
    weight: ClassVar[float] = 3.0
    """w, unless the settings say otherwise."""

    @classmethod
    def start(cls, original: OriginalOutputs) -> Self:
        """The objective at the start of a training.

        Args:
            original: What the original classifier gives for the images of the training; only what
                is asked for is computed.
        """
        return cls()

    def forward(self, outputs: BatchOutputs) -> Tensor:
        """R of a batch, with its gradient in logits and features.

        Args:
            outputs: Of at least one ID and one OOD image.
        """
        raise NotImplementedError

    def held_out(self, outputs: BatchOutputs) -> Tensor:
        """R of the held-out images, on which ID and OOD images have the same weight.

        Args:
            outputs: Of at least one ID and one OOD image.
        """
        return self(outputs)

    def update(self, outputs: BatchOutputs, step: int) -> None:
        """Follows the network after a step; most objectives need not.

        Args:
            outputs: What the step was computed from, without gradient.
            step: Number of the step, from 1.
        """

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a checkpoint.

        Args:
            state: What ``state_dict`` gave.
        """
        self.load_state_dict(dict(state))


ObjectiveKind = TypeVar("ObjectiveKind", bound=type[Objective])
OBJECTIVES: dict[str, type[Objective]] = {}
"""The objectives by name."""


def objective(kind: ObjectiveKind) -> ObjectiveKind:
    """Decorator that enters an `Objective`."""
    OBJECTIVES[kind.name] = kind
    return kind


def regulariser_weight(config: TrainConfig) -> float:
    """w: the weight that the settings name, else the objective's own."""
    return OBJECTIVES[config.objective].weight if config.weight is None else config.weight
