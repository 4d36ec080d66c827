"""How each aten operation is pulled back: one rule an operation, in tensor operations that ONNX
runtimes run fast.

`good_rt.export.vjp` walks an exported graph and asks here for each operation's output and its
gradients; an architecture that needs another operation needs one more rule here and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.export.group_norm import group_mean, normalised

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
    return x.reshape(_inferred(other.shape))


def _inferred(shape: Sequence[Any]) -> list[Any]:
    """A shape with -1 for its symbolic length if there is just one, which saves runtimes from
    computing it."""
    symbolic = [size for size in shape if not isinstance(size, int)]
    return (
        [size if isinstance(size, int) else -1 for size in shape]
        if len(symbolic) == 1
        else list(shape)
    )


# --- arithmetic
# -------------------------------------------------------------------------------------------------------


@rule(aten.add.Tensor, aten.add.Scalar)
def _add(x: Any, y: Any, *, alpha: float = 1) -> tuple[Tensor, Sequence[Gradient]]:
    output = torch.add(x, y, alpha=alpha)
    return output, (
        lambda g: unbroadcast(g, x),
        lambda g: unbroadcast(g if alpha == 1 else g * alpha, y),
    )


@rule(aten.sub.Tensor, aten.sub.Scalar)
def _sub(x: Any, y: Any, *, alpha: float = 1) -> tuple[Tensor, Sequence[Gradient]]:
    output = torch.sub(x, y, alpha=alpha)
    return output, (lambda g: unbroadcast(g, x), lambda g: unbroadcast(g * -alpha, y))


@rule(aten.rsub.Scalar)
def _rsub(x: Tensor, y: float, alpha: float = 1) -> tuple[Tensor, Sequence[Gradient]]:
    return y - alpha * x, (lambda g: g * -alpha,)


@rule(aten.neg.default)
def _neg(x: Tensor) -> tuple[Tensor, Sequence[Gradient]]:
    return -x, (lambda g: -g,)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(x: Any, y: Any) -> tuple[Tensor, Sequence[Gradient]]:
    return x * y, (lambda g: unbroadcast(g * y, x), lambda g: unbroadcast(g * x, y))


@rule(aten.div.Tensor, aten.div.Scalar)
def _div(x: Any, y: Any) -> tuple[Tensor, Sequence[Gradient]]:
    if (
        not isinstance(y, Tensor) and y == 1
    ):  # diffusers divides by an output scale that is nearly always 1
        return x, (lambda g: g,)
    output = x / y
    return output, (lambda g: unbroadcast(g / y, x), lambda g: unbroadcast(-g * output / y, y))


@rule(aten.pow.Tensor_Scalar)
def _pow(x: Tensor, exponent: float) -> tuple[Tensor, Sequence[Gradient]]:
    if exponent == 2:
        return x * x, (lambda g: g * (2 * x),)
    return x**exponent, (lambda g: g * (exponent * x ** (exponent - 1)),)


@rule(aten.maximum.default)
def _maximum(x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[Gradient]]:
    return torch.maximum(x, y), (
        lambda g: unbroadcast(masked(g, x >= y), x),
        lambda g: unbroadcast(masked(g, x < y), y),
    )


@rule(aten.minimum.default)
def _minimum(x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[Gradient]]:
    return torch.minimum(x, y), (
        lambda g: unbroadcast(masked(g, x <= y), x),
        lambda g: unbroadcast(masked(g, x > y), y),
    )


@rule(aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default)
def _clamp(
    x: Tensor, low: float | None = None, high: float | None = None
) -> tuple[Tensor, Sequence[Gradient]]:
    output = torch.clamp(x, low, high)
    return output, (lambda g: masked(g, output == x),)


@rule(aten.clamp_max.default)
def _clamp_max(x: Tensor, high: float) -> tuple[Tensor, Sequence[Gradient]]:
    return _clamp(x, None, high)


@rule(aten.where.self)
def _where(condition: Tensor, x: Any, y: Any) -> tuple[Tensor, Sequence[Gradient | None]]:
    return torch.where(condition, x, y), (
        None,
        lambda g: unbroadcast(masked(g, condition), x),
        lambda g: unbroadcast(masked(g, ~condition), y),
    )


@rule(aten.masked_fill.Scalar)
def _masked_fill(x: Tensor, mask: Tensor, value: float) -> tuple[Tensor, Sequence[Gradient]]:
    return x.masked_fill(mask, value), (lambda g: unbroadcast(masked(g, ~mask), x),)


# --- functions of one element
# -----------------------------------------------------------------------------------------

SLOPES: dict[Any, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    # operation: (the function, its derivative from input x and output y)
    aten.exp.default: (torch.exp, lambda x, y: y),
    aten.expm1.default: (torch.expm1, lambda x, y: y + 1),
    aten.log.default: (torch.log, lambda x, y: 1 / x),
    aten.log1p.default: (torch.log1p, lambda x, y: 1 / (x + 1)),
    aten.sqrt.default: (torch.sqrt, lambda x, y: 0.5 / y),
    aten.rsqrt.default: (torch.rsqrt, lambda x, y: -0.5 * y / x),
    aten.reciprocal.default: (torch.reciprocal, lambda x, y: -y * y),
    aten.abs.default: (torch.abs, lambda x, y: torch.sign(x)),
    aten.sin.default: (torch.sin, lambda x, y: torch.cos(x)),
    aten.cos.default: (torch.cos, lambda x, y: -torch.sin(x)),
    aten.erf.default: (torch.erf, lambda x, y: (2 / math.sqrt(math.pi)) * torch.exp(-x * x)),
    aten.sigmoid.default: (torch.sigmoid, lambda x, y: y * (1 - y)),
    aten.tanh.default: (torch.tanh, lambda x, y: 1 - y * y),
}
for _operation, (_function, _slope) in SLOPES.items():

    def _elementwise(
        x: Tensor,
        function: Callable[[Tensor], Tensor] = _function,
        slope: Callable[[Tensor, Tensor], Tensor] = _slope,
    ) -> tuple[Tensor, Sequence[Gradient]]:
        output = function(x)
        return output, (lambda g: g * slope(x, output),)

    RULES[_operation] = _elementwise


@rule(aten.relu.default)
def _relu(x: Tensor) -> tuple[Tensor, Sequence[Gradient]]:
    output = torch.relu(x)
    return output, (lambda g: masked(g, output > 0),)


@rule(aten.leaky_relu.default)
def _leaky_relu(x: Tensor, slope: float = 0.01) -> tuple[Tensor, Sequence[Gradient]]:
    return F.leaky_relu(x, slope), (lambda g: masked(g, x > 0) * (1 - slope) + g * slope,)


@rule(aten.elu.default)
def _elu(
    x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> tuple[Tensor, Sequence[Gradient]]:
    output = aten.elu.default(x, alpha, scale, input_scale)
    return output, (
        lambda g: g * torch.where(x > 0, scale, input_scale * (output + alpha * scale)),
    )


@rule(aten.softplus.default)
def _softplus(
    x: Tensor, beta: float = 1.0, threshold: float = 20.0
) -> tuple[Tensor, Sequence[Gradient]]:
    return F.softplus(x, beta, threshold), (lambda g: g * torch.sigmoid(x * beta),)


@rule(aten.silu.default)
def _silu(x: Tensor) -> tuple[Tensor, Sequence[Gradient]]:
    sigmoid = torch.sigmoid(x)
    output = x * sigmoid
    return output, (lambda g: g * (sigmoid * (x - output + 1)),)


@rule(aten.gelu.default)
def _gelu(x: Tensor, *, approximate: str = "none") -> tuple[Tensor, Sequence[Gradient]]:
    if approximate == "none":
        cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
        density = torch.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
        return x * cdf, (lambda g: g * (cdf + x * density),)
    # x·σ(2u) with u = √(2/π)(x + 0.044715 x³), which is the tanh form written with one sigmoid
    scale = 2 * math.sqrt(2 / math.pi)
    square = x * x
    gate = torch.sigmoid(x * (scale + scale * 0.044715 * square))
    output = x * gate
    return output, (
        lambda g: g * (gate + (output - output * gate) * (scale + 3 * scale * 0.044715 * square)),
    )


# --- shapes
# -----------------------------------------------------------------------------------------------------------


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


@rule(aten.clone.default)
def _identity(x: Tensor, *, memory_format: Any = None) -> tuple[Tensor, Sequence[Gradient]]:
    return x, (lambda g: g,)


@rule(aten._to_copy.default)
def _to_copy(
    x: Tensor, *, dtype: torch.dtype | None = None, **_: Any
) -> tuple[Tensor, Sequence[Gradient]]:
    return x.to(dtype or x.dtype), (lambda g: g.to(x.dtype),)


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


@rule(aten.slice.Tensor)
def _slice(
    x: Tensor, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> tuple[Tensor, Sequence[Gradient | None]]:
    output = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    size = x.shape[axis]
    if not isinstance(
        size, int
    ):  # a slice of the whole batch is no slice; of a part of it would fix its size
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
        g = apart.reshape(_inferred([*spread[:axis], spread[axis] * step, *spread[axis + 2 :]]))
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


# --- reductions
# -------------------------------------------------------------------------------------------------------


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


# --- products
# ---------------------------------------------------------------------------------------------------------


@rule(aten.linear.default)
def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Sequence[Gradient]]:
    return F.linear(x, weight, bias), (lambda g: g @ weight,)


@rule(aten.mm.default, aten.bmm.default)
def _matmul(x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[Gradient]]:
    return x @ y, (lambda g: g @ y.transpose(-2, -1), lambda g: x.transpose(-2, -1) @ g)


@rule(aten.addmm.default)
def _addmm(
    bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1
) -> tuple[Tensor, Sequence[Gradient]]:
    return torch.addmm(bias, x, y, beta=beta, alpha=alpha), (
        lambda g: unbroadcast(g * beta, bias),
        lambda g: g @ y.transpose(0, 1) * alpha,
        lambda g: x.transpose(0, 1) @ g * alpha,
    )


@rule(aten.scaled_dot_product_attention.default)
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Sequence[Gradient]]:
    if enable_gqa or dropout:
        raise GoodRtError(
            "aten.scaled_dot_product_attention has no gradient rule with dropout or grouped queries"
        )
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)

    output = weights @ value

    @cache
    def score_gradient(g: Tensor) -> Tensor:
        # the softmax's pullback, whose sum over the keys is taken over the (fewer) channels instead
        return weights * (g @ value.transpose(-2, -1) - (g * output).sum(-1, keepdim=True)) * factor

    return output, (
        lambda g: score_gradient(g) @ key,
        lambda g: score_gradient(g).transpose(-2, -1) @ query,
        lambda g: weights.transpose(-2, -1) @ g,
    )


@rule(aten.convolution.default)
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> tuple[Tensor, Sequence[Gradient]]:
    output = aten.convolution(
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    axes = range(weight.ndim - 2)
    none = [0] * len(axes)
    reach = [dilation[i] * (weight.shape[2 + i] - 1) for i in axes]

    def gradient(g: Tensor) -> Tensor:
        if transposed:
            return aten.convolution(g, weight, None, stride, padding, dilation, False, none, groups)
        if all(step == 1 for step in stride) and all(
            pad <= size for pad, size in zip(padding, reach, strict=True)
        ):
            # a plain convolution with the flipped kernel, which runtimes are far faster at than at
            # the transposed one
            flipped = _flipped(weight, groups)
            outer = [size - pad for pad, size in zip(padding, reach, strict=True)]
            return aten.convolution(g, flipped, None, stride, outer, dilation, False, none, groups)
        rest = [(x.shape[2 + i] + 2 * padding[i] - reach[i] - 1) % stride[i] for i in axes]
        return aten.convolution(g, weight, None, stride, padding, dilation, True, rest, groups)

    return output, (gradient,)


def _flipped(weight: Tensor, groups: int) -> Tensor:
    """The kernel (in, out / groups, ...) whose convolution is the transposed one of ``weight``."""
    outputs, inputs = weight.shape[:2]
    grouped = weight.reshape(groups, outputs // groups, inputs, *weight.shape[2:]).transpose(1, 2)
    return grouped.reshape(groups * inputs, outputs // groups, *weight.shape[2:]).flip(
        list(range(2, weight.ndim))
    )


# --- normalisation
# ----------------------------------------------------------------------------------------------------


@rule(aten.group_norm.default)
def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> tuple[Tensor, Sequence[Gradient]]:
    """y = γ·r·c + β and dx = ĝ − mean ĝ − r²·mean(ĝ·c)·c with c = x − μ, r = 1/√(σ² + ε), ĝ =
    γ·r·g.

    As few passes over the whole, and as few small operations, as there can be: at batch 1 each
    takes as long as a pass.
    """
    output, centred, rstd, factor = normalised(x, groups, weight, bias, eps)

    def gradient(g: Tensor) -> Tensor:
        g = g.reshape(-1, *centred.shape[1:]) * factor
        slope = (
            group_mean(g * centred) * rstd * rstd
        )  # rstd² itself would overflow in half precision
        return like(g - (centred * slope + group_mean(g)), x)

    return like(output, x), (gradient,)


@rule(aten.instance_norm.default)
def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> tuple[Tensor, Sequence[Gradient | None]]:
    if not use_input_stats:
        return F.instance_norm(x, mean, variance, weight, bias, False, momentum, eps), (None,)
    return _group_norm(x, x.shape[1], weight, bias, eps)


@rule(aten.layer_norm.default)
def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> tuple[Tensor, Sequence[Gradient]]:
    along = list(range(-len(shape), 0))
    centred = x - x.mean(along, keepdim=True)
    rstd = torch.rsqrt((centred * centred).mean(along, keepdim=True) + eps)
    normal = centred * rstd
    output = normal if weight is None else normal * weight
    output = output if bias is None else output + bias

    def gradient(g: Tensor) -> Tensor:
        scaled = g if weight is None else g * weight
        mean, slope = scaled.mean(along, keepdim=True), (scaled * normal).mean(along, keepdim=True)
        return (scaled - normal * slope - mean) * rstd

    return output, (gradient,)


@rule(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Any, Sequence[Gradient]]:
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    scale = scale.reshape(-1, *[1] * (x.ndim - 2))
    output = F.batch_norm(x, mean, variance, weight, bias, False, momentum, eps)
    return (output, None, None), (
        lambda gs: gs[0] * scale,
    )  # the batch's own statistics are for training alone


# --- resampling
# -------------------------------------------------------------------------------------------------------


@rule(aten.upsample_nearest2d.vec)
def _upsample_nearest(
    x: Tensor, size: Sequence[int] | None, scales: Sequence[float] | None
) -> tuple[Tensor, Sequence[Gradient | None]]:
    output = aten.upsample_nearest2d.vec(x, size, scales)
    height, width = output.shape[2] // x.shape[2], output.shape[3] // x.shape[3]
    if (x.shape[2] * height, x.shape[3] * width) != tuple(output.shape[2:]):
        return output, (None,)
    # the sum over each block, as a pooling: torch's own backward is a scatter with accumulation,
    # which TensorRT refuses
    return output, (lambda g: F.avg_pool2d(g, (height, width)) * (height * width),)


@rule(aten.avg_pool2d.default)
def _avg_pool(
    x: Tensor,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> tuple[Tensor, Sequence[Gradient | None]]:
    output = F.avg_pool2d(
        x, kernel, stride or kernel, padding, ceil_mode, count_include_pad, divisor
    )
    if (ceil_mode and _cut_off(x, kernel, stride or kernel, padding)) or (
        any(padding) and not count_include_pad
    ):
        return output, (None,)
    channels = x.shape[1]
    weight = torch.full((channels, 1, *kernel), 1 / (divisor or math.prod(kernel)), dtype=x.dtype)
    _, (gradient,) = _convolution(
        x, weight, None, list(stride or kernel), list(padding), [1, 1], False, [0, 0], channels
    )
    return output, (gradient,)


def _cut_off(x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes) -> bool:
    """Whether a last window reaches beyond the edge, which is all that ``ceil_mode`` is about."""
    whole = zip(
        x.shape[2:], [*kernel, *kernel], [*stride, *stride], [*padding, *padding], strict=False
    )
    return any((size + 2 * pad - width) % step for size, width, step, pad in whole)


@rule(aten.max_pool2d.default)
def _max_pool(
    x: Tensor,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0, 0),
    dilation: Sizes = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Sequence[Gradient | None]]:
    output = F.max_pool2d(x, kernel, stride or kernel, padding, dilation, ceil_mode)
    if ceil_mode and _cut_off(x, kernel, stride or kernel, padding):
        return output, (None,)
    channels, size, padding = x.shape[1], math.prod(kernel), [*padding, *padding][:2]
    steps, apart = [*(stride or kernel), *(stride or kernel)][:2], [*dilation, *dilation][:2]
    around = [padding[1], padding[1], padding[0], padding[0]]
    # each window's elements as channels, by a convolution; what is outside is low, yet finite in
    # half precision too
    padded = F.pad(x, around, value=-6e4)
    picks = torch.eye(size, dtype=x.dtype).reshape(size, 1, *kernel).repeat(channels, 1, 1, 1)
    windows, (spread,) = _convolution(
        padded, picks, None, steps, [0, 0], apart, False, [0, 0], channels
    )
    windows = windows.reshape(-1, channels, size, *output.shape[2:])
    places = torch.arange(size).reshape(1, 1, size, 1, 1)
    chosen = (windows.argmax(2, keepdim=True) == places).to(
        x.dtype
    )  # the first of equal ones, as in torch

    def gradient(g: Tensor) -> Tensor:
        shares = (g.unsqueeze(2) * chosen).reshape(-1, channels * size, *output.shape[2:])
        return F.pad(spread(shares), [-edge for edge in around])

    return output, (gradient,)
