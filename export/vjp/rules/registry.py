"""The registry of gradient rules, and the tensor helpers that several of them share.

A rule is registered by `rule`; `good_rt.export.vjp.trace` looks it up in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Gradient = Callable[[Any], Tensor]
"""The output's cotangent -> an argument's. Of several outputs it is a list, None where one is not
used."""
Rule = Callable[..., tuple[Any, Sequence[Gradient | None]]]
"""An operation's arguments -> its output, and a `Gradient` for each of its arguments in order,
lists spread out.

Arguments left out at the end, or None, are those the rule has no gradient for.
"""

AnyRule = TypeVar("AnyRule", bound=Rule)
Sizes = list[int] | tuple[int, ...]
"""Lengths or axes, as PyTorch takes them."""

aten = torch.ops.aten
RULES: dict[Any, Rule] = {}
ZERO_GRADIENT = {
    aten.detach.default,
    aten.sign.default,
    aten.floor.default,
    aten.ceil.default,
    aten.round.default,
    aten.trunc.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}
"""Operations whose output is constant almost everywhere."""


def rule(*operations: Any) -> Callable[[AnyRule], AnyRule]:
    """Registers a function as the rule of the operations."""

    def register(function: AnyRule) -> AnyRule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


def unbroadcast(gradient: Tensor, operand: Tensor) -> Tensor:
    """Sums a gradient over the axes along which the operand was broadcast."""
    if not isinstance(operand, Tensor):
        return gradient
    lead = gradient.ndim - operand.ndim
    # an axis of symbolic length is the batch, which the operand then shares: it is never 1 for one
    # and n for the other
    axes = [
        axis
        for axis, size in enumerate(operand.shape, lead)
        if isinstance(size, int)
        and size == 1
        and not (isinstance(gradient.shape[axis], int) and gradient.shape[axis] == 1)
    ]
    if axes:
        gradient = gradient.sum(axes, keepdim=True)
    return gradient.sum(list(range(lead))) if lead else gradient


def masked(gradient: Tensor, condition: Tensor) -> Tensor:
    """A finite gradient where the condition holds, else 0: a product, as ONNX Runtime's Where takes
    7 times as long."""
    return gradient * condition.to(gradient.dtype)


def like(x: Tensor, other: Tensor) -> Tensor:
    """x in the shape of ``other``; a single symbolic length is left to be inferred."""
    return x.reshape(inferred_shape(other.shape))


def inferred_shape(shape: Sequence[Any]) -> list[Any]:
    """A shape with -1 for its symbolic length if there is just one, which saves runtimes from
    computing it."""
    symbolic = [size for size in shape if not isinstance(size, int)]
    return (
        [size if isinstance(size, int) else -1 for size in shape]
        if len(symbolic) == 1
        else list(shape)
    )
