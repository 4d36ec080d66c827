"""Engines that autograd can go back through: a network's forward half, and the half that pulls a
cotangent back.

Engines have no backward pass of their own; with the graphs that `good_rt.export` writes they get
one, and denoiser, guidance and a user's own terms in PyTorch differentiate through them as through
any module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from good_rt.engines.base import Engine, NativeEngine, TensorSpec, check_inputs
from good_rt.errors import GoodRtError


@dataclass(frozen=True)
class Residuals:
    """What the backward half needs of a batch of ``count`` samples: tensors, or the runtime's own
    values."""

    count: int
    values: Mapping[str, Any]


class VjpPair:
    """Two engines as one: (*inputs) -> (output, *residuals), and (cotangent, *residuals) ->
    gradient.

    As an `Engine` it takes the cotangent with the inputs and gives output and gradient; `forward`
    and `backward` are its halves, and calling `function()` on tensors is differentiable in the
    first input.
    """

    def __init__(self, forward: Engine, backward: Engine) -> None:
        self._forward, self._backward = forward, backward
        self.output = next(iter(forward.outputs))
        names = [
            name for name in backward.inputs if name in forward.outputs or name in forward.inputs
        ]
        self._residuals = tuple(names)
        cotangents = {name: spec for name, spec in backward.inputs.items() if name not in names}
        self.inputs: Mapping[str, TensorSpec] = {**cotangents, **forward.inputs}
        self.outputs: Mapping[str, TensorSpec] = {
            self.output: forward.outputs[self.output],
            **backward.outputs,
        }
        same_runtime = type(forward) is type(backward) and isinstance(forward, NativeEngine)
        self._native = [name for name in names if same_runtime and name != self.output]

    def check_forward(self, arrays: Mapping[str, Tensor]) -> None:
        """Raises GoodRtError, which names the input, when the forward half does not take these."""
        check_inputs(self._forward, arrays)

    def forward(self, **arrays: Tensor) -> tuple[Tensor, Any]:
        """The output, and the residuals that `backward` takes."""
        outputs = _run(self._forward, arrays, self._native)
        values = {**arrays, **outputs}
        residuals = {name: values[name] for name in self._residuals}
        count = len(next(iter(arrays.values())))
        return values[self.output], Residuals(count, residuals)

    def backward(self, cotangent: Tensor, residuals: Any) -> Tensor:
        """Jᵀv of the cotangent v, with respect to the first input. Raises GoodRtError for a v of
        another length."""
        if len(cotangent) != residuals.count:
            raise GoodRtError(
                f"there are {len(cotangent)} cotangents for {residuals.count} samples"
            )
        arrays = {"cotangent": cotangent, **residuals.values}
        gradient: Tensor = _run(self._backward, arrays)["gradient"]
        return gradient

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        check_inputs(self, arrays)
        output, residuals = self.forward(**{name: arrays[name] for name in self._forward.inputs})
        return {self.output: output, "gradient": self.backward(arrays["cotangent"], residuals)}

    def function(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The output of the inputs in their order, differentiable in the first."""
        y: Tensor = _ThroughPair.apply(self, x, *rest)  # type: ignore[no-untyped-call]
        return y


def _run(engine: Engine, arrays: Mapping[str, Any], native: Collection[str] = ()) -> dict[str, Any]:
    return engine.run(arrays, native) if isinstance(engine, NativeEngine) else engine(**arrays)


class _ThroughPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pair: VjpPair, *inputs: Tensor) -> Tensor:
        names = [name for name in pair.inputs if name != "cotangent"]
        output, ctx.residuals = pair.forward(**dict(zip(names, inputs, strict=True)))
        ctx.pair, ctx.others = pair, len(inputs) - 1
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient = ctx.pair.backward(cotangent.contiguous(), ctx.residuals)
        return None, gradient, *([None] * ctx.others)
