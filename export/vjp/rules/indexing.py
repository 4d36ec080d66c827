"""Rules of operations that pick a part of a tensor, and of padding, which puts it back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.export.vjp.rules.registry import Gradient, inferred_shape, rule

aten = torch.ops.aten


@rule(aten.slice.Tensor)
def _slice(
    x: Tensor, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> tuple[Tensor, Sequence[Gradient | None]]:
    output = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    size = x.shape[axis]
    # a slice of the whole batch changes nothing; a slice of a part of it would fix the batch size
    if not isinstance(size, int):
        whole = not start and step == 1 and (end is None or not isinstance(end, int) or end >= size)
        return (x, (lambda g: g,)) if whole else (output, (None,))
    first, last, _ = slice(start, end).indices(size)
    return output, (lambda g: _scattered(g, axis, first, last, step, size),)


def _scattered(g: Tensor, axis: int, first: int, last: int, step: int, size: int) -> Tensor:
    """Zeros of ``size`` along the axis with g at first:last:step, as padding: runtimes have no fast
    scatter."""
    if step > 1:
        spread = [*g.shape[: axis + 1], step, *g.shape[axis + 1 :]]
        apart = F.pad(g.unsqueeze(axis + 1), [0, 0] * (g.ndim - axis - 1) + [0, step - 1])
        g = apart.reshape(
            inferred_shape([*spread[:axis], spread[axis] * step, *spread[axis + 2 :]])
        )
        g = g.narrow(axis, 0, last - first) if g.shape[axis] > last - first else g
    after = size - first - g.shape[axis]
    return F.pad(g, [0, 0] * (g.ndim - axis - 1) + [first, after]) if first or after else g


@rule(aten.select.int)
def _select(x: Tensor, axis: int, index: int) -> tuple[Tensor, Sequence[Gradient]]:
    axis, size = axis % x.ndim, x.shape[axis]
    place = index % size if index < 0 else index
    return x.select(axis, index), (
        lambda g: _scattered(g.unsqueeze(axis), axis, place, place + 1, 1, size),
    )


@rule(aten.constant_pad_nd.default)
def _pad(x: Tensor, padding: Sequence[int], value: float = 0) -> tuple[Tensor, Sequence[Gradient]]:
    return F.pad(x, list(padding), value=value), (lambda g: F.pad(g, [-size for size in padding]),)
