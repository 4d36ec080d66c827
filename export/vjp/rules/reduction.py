"""Rules of sums, means, extremes and norms along axes, and of the softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from good_rt.export.vjp.rules.registry import Gradient, rule

aten = torch.ops.aten


def _axes(x: Tensor, axes: Any) -> list[int]:
    if axes is None or axes == []:
        return list(range(x.ndim))
    return [axis % x.ndim for axis in ([axes] if isinstance(axes, int) else axes)]


def _kept(g: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """The cotangent of a reduction with its reduced axes back, of length 1."""
    if not keepdim:
        for axis in sorted(axes):
            g = g.unsqueeze(axis)
    return g


def _spread(g: Tensor, x: Tensor, axes: Sequence[int]) -> Tensor:
    """Repeats g along the axes to the lengths of x; the others, the batch among them, are left as
    they are."""
    return g.expand([x.shape[axis] if axis in axes else -1 for axis in range(x.ndim)])


@rule(aten.sum.dim_IntList, aten.sum.default)
def _sum(
    x: Tensor, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> tuple[Tensor, Sequence[Gradient]]:
    along = _axes(x, axes)
    return x.sum(along, keepdim=keepdim), (lambda g: _spread(_kept(g, along, keepdim), x, along),)


@rule(aten.mean.dim, aten.mean.default)
def _mean(
    x: Tensor, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> tuple[Tensor, Sequence[Gradient]]:
    along = _axes(x, axes)
    count = math.prod(x.shape[axis] for axis in along)
    return x.mean(along, keepdim=keepdim), (
        lambda g: _spread(_kept(g, along, keepdim) * (1 / count), x, along),
    )


@rule(aten.amax.default)
def _amax(x: Tensor, axes: Any = None, keepdim: bool = False) -> tuple[Tensor, Sequence[Gradient]]:
    return _extreme(x.amax(_axes(x, axes), keepdim=True), x, axes, keepdim)


@rule(aten.amin.default)
def _amin(x: Tensor, axes: Any = None, keepdim: bool = False) -> tuple[Tensor, Sequence[Gradient]]:
    return _extreme(x.amin(_axes(x, axes), keepdim=True), x, axes, keepdim)


def _extreme(
    kept: Tensor, x: Tensor, axes: Any, keepdim: bool
) -> tuple[Tensor, Sequence[Gradient]]:
    """The extreme value with its axes kept -> the reduction; equal elements share the gradient, as
    in torch."""
    along = _axes(x, axes)

    def gradient(g: Tensor) -> Tensor:
        reached = (x == kept).to(x.dtype)
        return reached * (_kept(g, along, keepdim) / reached.sum(along, keepdim=True))

    return kept if keepdim else kept.squeeze(tuple(along)), (gradient,)


@rule(aten.var.correction)
def _var(
    x: Tensor, axes: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> tuple[Tensor, Sequence[Gradient]]:
    along = _axes(x, axes)
    count = math.prod(x.shape[axis] for axis in along) - (1 if correction is None else correction)
    centred = x - x.mean(along, keepdim=True)
    output = (centred * centred).sum(along, keepdim=keepdim) / count
    return output, (lambda g: centred * (_kept(g, along, keepdim) * (2 / count)),)


@rule(aten.linalg_vector_norm.default)
def _vector_norm(
    x: Tensor, order: float = 2, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> tuple[Tensor, Sequence[Gradient | None]]:
    along = _axes(x, axes)
    output = torch.linalg.vector_norm(x, order, along, keepdim)
    if order != 2:
        return output, (None,)
    # the gradient at 0 is 0, as in torch
    kept = _kept(output, along, keepdim)
    return output, (lambda g: x * torch.where(kept == 0, 0.0, _kept(g, along, keepdim) / kept),)


@rule(aten._softmax.default)
def _softmax(x: Tensor, axis: int, half_to_float: bool) -> tuple[Tensor, Sequence[Gradient]]:
    output = torch.softmax(x, axis)
    return output, (lambda g: _softmax_pullback(g, output, axis),)


def _softmax_pullback(g: Tensor, output: Tensor, axis: int) -> Tensor:
    return output * (g - (g * output).sum(axis, keepdim=True))


@rule(aten._log_softmax.default)
def _log_softmax(x: Tensor, axis: int, half_to_float: bool) -> tuple[Tensor, Sequence[Gradient]]:
    output = torch.log_softmax(x, axis)
    return output, (lambda g: g - torch.exp(output) * g.sum(axis, keepdim=True),)


@rule(aten.logsumexp.default)
def _logsumexp(x: Tensor, axes: Any, keepdim: bool = False) -> tuple[Tensor, Sequence[Gradient]]:
    along = _axes(x, axes)
    output = torch.logsumexp(x, along, keepdim)
    return output, (
        lambda g: torch.exp(x - _kept(output, along, keepdim)) * _kept(g, along, keepdim),
    )
