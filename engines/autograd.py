"""Engines that autograd can go back through: a network's forward half, and the half that pulls a
cotangent back.

Engines have no backward pass of their own; with the graphs that `good_rt.export` writes they get
one, and denoiser, guidance and a user's own terms in PyTorch differentiate through them as through
any module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from good_rt.engines.base import Engine, SideBySide, TensorSpec, are_rows, check_inputs
from good_rt.errors import GoodRtError

Residuals = Sequence[tuple[slice, Mapping[str, Any]]]
"""Each part of the batch, and what the backward half needs of it: tensors, or what the engines'
runtime gave."""


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
        # a half that would run the parts one after the other gains nothing of them
        both = type(forward) is type(backward) and isinstance(forward, SideBySide)
        self._kept = [name for name in names if both and name != self.output]
        self._divides = both and are_rows((*self.inputs.values(), *self.outputs.values()))

    def forward(self, **arrays: Tensor) -> tuple[Tensor, Residuals]:
        """The output, and the residuals that `backward` takes."""
        check_inputs(self._forward, arrays)
        parts = self._parts(len(next(iter(arrays.values()))))
        batches = (
            [arrays]
            if len(parts) == 1
            else [{name: array[part] for name, array in arrays.items()} for part in parts]
        )
        outputs = _each(self._forward, batches, self._kept)
        found = [{**batch, **values} for batch, values in zip(batches, outputs, strict=True)]
        residuals = [{name: values[name] for name in self._residuals} for values in found]
        return _joined([values[self.output] for values in found]), list(
            zip(parts, residuals, strict=True)
        )

    def backward(self, cotangent: Tensor, residuals: Residuals) -> Tensor:
        """Jᵀv of the cotangent v, with respect to the first input. Raises GoodRtError for a v of
        another length."""
        count = residuals[-1][0].stop
        if len(cotangent) != count:
            raise GoodRtError(f"there are {len(cotangent)} cotangents for {count} samples")
        cotangents = (
            [cotangent] if len(residuals) == 1 else [cotangent[part] for part, _ in residuals]
        )
        batches = [
            {"cotangent": v, **kept} for v, (_, kept) in zip(cotangents, residuals, strict=True)
        ]
        return _joined([outputs["gradient"] for outputs in _each(self._backward, batches)])

    def _parts(self, count: int) -> Sequence[slice]:
        halves = self._forward, self._backward
        divided = (
            [half.parts(count) for half in halves if isinstance(half, SideBySide)]
            if self._divides
            else []
        )
        return (
            divided[0]
            if divided and all(len(parts) > 1 for parts in divided)
            else [slice(0, count)]
        )

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        check_inputs(self, arrays)
        output, residuals = self.forward(**{name: arrays[name] for name in self._forward.inputs})
        return {self.output: output, "gradient": self.backward(arrays["cotangent"], residuals)}

    def function(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The output of the inputs in their order, differentiable in the first."""
        y: Tensor = _ThroughPair.apply(self, x, *rest)  # type: ignore[no-untyped-call]
        return y


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _each(
    engine: Engine, batches: Sequence[Mapping[str, Any]], kept: Collection[str] = ()
) -> list[dict[str, Any]]:
    return (
        engine.each(batches, kept)
        if isinstance(engine, SideBySide)
        else [engine(**batch) for batch in batches]
    )


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
