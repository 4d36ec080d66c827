"""Whether an exported graph computes what PyTorch computes, on real and random inputs at several
batch sizes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from good_rt.engines.base import Engine
from good_rt.export.vjp import GRADIENT

COMPARED_BATCHES = (1, 2, 5, 16)
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Default tolerances: |engine − torch| ≤ absolute + relative·|torch|, for every element."""
NUDGE, NUDGES = 3e-6, 16
"""How far, in relation to their size, and how often inputs are moved where a gradient may have
jumped: about as far as a deep network's rounding errors move its features."""


@dataclass(frozen=True)
class Parity:
    """The largest differences of one output over all inputs of one kind at one batch size.

    Attributes:
        graph: Name of the graph.
        output: Name of the output.
        inputs: Kind of the inputs, "real" or "random".
        batch: Batch size.
        max_absolute: Largest |engine − torch|.
        max_relative: The same, relative to the output's root mean square.
        excess: Largest |engine − torch| / (absolute + relative·|torch|); at most 1 passes.
    """

    graph: str
    output: str
    inputs: str
    batch: int
    max_absolute: float
    max_relative: float
    excess: float

    @property
    def ok(self) -> bool:
        return self.excess <= 1  # False for NaN as well


class AutogradVjp(nn.Module):
    """(*cotangents, *inputs) -> (*outputs, Jᵀv), by PyTorch's autograd.

    Args:
        module: Takes its inputs by position.
        cotangents: Number of cotangents, one for each output.
        wrt: Position of the input that J is taken with respect to.
    """

    def __init__(self, module: nn.Module, cotangents: int, wrt: int) -> None:
        super().__init__()
        self.module, self.cotangents, self.wrt = module, cotangents, wrt

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        cotangents, inputs = arrays[: self.cotangents], list(arrays[self.cotangents :])
        with torch.enable_grad():
            inputs[self.wrt] = inputs[self.wrt].detach().requires_grad_(True)
            found = self.module(*inputs)
            outputs = found if isinstance(found, tuple) else (found,)
            (gradient,) = torch.autograd.grad(outputs, inputs[self.wrt], cotangents)
        return (*(output.detach() for output in outputs), gradient)


@torch.no_grad()
def compare(
    graph: str,
    engine: Engine,
    module: nn.Module,
    inputs: Mapping[str, Callable[[int], Mapping[str, Tensor]]],
    *,
    batches: Sequence[int] = COMPARED_BATCHES,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
) -> list[Parity]:
    """Differences between an engine and its module, for each kind of inputs, batch size and output.

    A gradient jumps where a ReLU's input crosses 0 or another neighbour becomes the k-th, and
    rounding may put the engine or PyTorch on the other side. Therefore each element of a gradient
    must be PyTorch's at the inputs, in float32 or float64, or at inputs that are equal up to
    floating-point rounding.

    Args:
        graph: Name of the graph, for the result.
        engine: What is checked.
        module: The reference in PyTorch; takes the engine's inputs by position.
        inputs: What makes the inputs for a batch size, by kind ("real", "random").
        batches: Batch sizes.
        relative: Relative tolerance.
        absolute: Absolute tolerance; for a gradient in units of its root mean square.
    """
    rows = []
    for kind, make in inputs.items():
        for batch in batches:
            arrays = make(batch)
            found = engine(**arrays)
            expected = module(*(arrays[name] for name in engine.inputs))
            outputs = expected if isinstance(expected, tuple) else (expected,)
            for name, reference in zip(engine.outputs, outputs, strict=True):
                size = reference.double().abs()
                # relative to the output's own spread, since single elements may be near 0
                spread = size.square().mean().sqrt().clamp_min(1e-30)
                # a gradient has no scale of its own: its absolute tolerance is in units of its
                # spread
                floor = absolute * (spread if name == GRADIENT else 1.0)
                bound = (floor + relative * size).clamp_min(1e-300)
                difference = (found[name].double() - reference.double()).abs()
                if name == GRADIENT and not (difference <= bound).all():
                    given = [arrays[key] for key in engine.inputs]
                    difference = nearest(difference, bound, found[name], module, given)
                    if not (difference <= bound).all():
                        # a module may only compute in float32
                        with contextlib.suppress(RuntimeError):
                            difference = torch.minimum(
                                difference, (found[name].double() - exact(module, given)).abs()
                            )
                excess = difference / bound
                worst = float("nan") if excess.isnan().any() else float(excess.max())
                rows.append(
                    Parity(
                        graph,
                        name,
                        kind,
                        batch,
                        float(difference.max()),
                        float(difference.max() / spread),
                        worst,
                    )
                )
    return rows


def exact(module: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The gradient in float64, where rounding leaves nothing on the other side of a kink."""
    doubled = copy.deepcopy(module).double()
    gradient: Tensor = doubled(
        *(array.double() if array.is_floating_point() else array for array in inputs)
    )[-1]
    return gradient


def nearest(
    difference: Tensor,
    bound: Tensor,
    gradient: Tensor,
    module: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
) -> Tensor:
    """The differences of a gradient, each at most that from a gradient at inputs close by.

    Args:
        difference: |engine − torch| of each element.
        bound: Tolerance of each element; once all are met, the search ends.
        gradient: The engine's gradient.
        module: The reference in PyTorch; its last output is the gradient.
        inputs: Its inputs by position; floating-point ones are nudged by `NUDGE`.
    """
    for seed in range(NUDGES):
        if (difference <= bound).all():
            break
        generator = torch.Generator().manual_seed(seed)
        nudged = module(
            *(
                array * (1 + NUDGE * torch.randn(array.shape, generator=generator))
                if array.is_floating_point()
                else array
                for array in inputs
            )
        )[-1]
        difference = torch.minimum(difference, (gradient.double() - nudged.double()).abs())
    return difference
