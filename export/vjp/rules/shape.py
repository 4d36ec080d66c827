"""Rules of operations that move elements: reshape, permute, broadcast, concatenate, split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from good_rt.export.vjp.rules.registry import Gradient, Sizes, like, rule, unbroadcast

aten = torch.ops.aten


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _reshape(x: Tensor, shape: Sequence[Any]) -> tuple[Tensor, Sequence[Gradient]]:
    return like(x, x.reshape(shape)), (lambda g: like(g, x),)


@rule(aten.unsqueeze.default)
def _unsqueeze(x: Tensor, axis: int) -> tuple[Tensor, Sequence[Gradient]]:
    return x.unsqueeze(axis), (lambda g: g.squeeze(axis),)


@rule(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def _squeeze(x: Tensor, *axes: Any) -> tuple[Tensor, Sequence[Gradient]]:
    return torch.squeeze(x, *axes), (lambda g: like(g, x),)


@rule(aten.permute.default)
def _permute(x: Tensor, order: Sequence[int]) -> tuple[Tensor, Sequence[Gradient]]:
    forward = [axis % x.ndim for axis in order]
    inverse = [forward.index(axis) for axis in range(x.ndim)]
    return x.permute(forward), (lambda g: g.permute(inverse),)


@rule(aten.flip.default)
def _flip(x: Tensor, axes: Sizes) -> tuple[Tensor, Sequence[Gradient]]:
    return x.flip(axes), (lambda g: g.flip(axes),)


@rule(aten.expand.default)
def _expand(
    x: Tensor, shape: Sequence[Any], *, implicit: bool = False
) -> tuple[Tensor, Sequence[Gradient]]:
    return x.expand(shape), (lambda g: unbroadcast(g, x),)


@rule(aten.cat.default)
def _cat(parts: Sequence[Tensor], axis: int = 0) -> tuple[Tensor, Sequence[Gradient]]:
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.shape[axis])
    return torch.cat(list(parts), axis), [
        lambda g, start=start, end=end: _slice_of(g, axis, start, end)
        for start, end in pairwise(ends)
    ]


def _slice_of(x: Tensor, axis: int, start: int, end: int) -> Tensor:
    return x.narrow(axis, start, end - start)


@rule(aten.split_with_sizes.default)
def _split(x: Tensor, sizes: Sequence[int], axis: int = 0) -> tuple[Any, Sequence[Gradient]]:
    outputs = torch.split(x, list(sizes), axis)
    return outputs, (
        lambda gs: torch.cat(
            [torch.zeros_like(out) if g is None else g for g, out in zip(gs, outputs, strict=True)],
            axis,
        ),
    )


@rule(aten.unbind.int)
def _unbind(x: Tensor, axis: int = 0) -> tuple[Any, Sequence[Gradient]]:
    outputs = torch.unbind(x, axis)
    return outputs, (
        lambda gs: torch.stack(
            [torch.zeros_like(out) if g is None else g for g, out in zip(gs, outputs, strict=True)],
            axis,
        ),
    )
