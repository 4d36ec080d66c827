"""Rules of operations on one element at a time: arithmetic, comparisons, activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.export.vjp.rules.registry import RULES, Gradient, masked, rule, unbroadcast

aten = torch.ops.aten


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
    # diffusers divides by an output scale that is nearly always 1
    if not isinstance(y, Tensor) and y == 1:
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


@rule(aten._to_copy.default)
def _to_copy(
    x: Tensor, *, dtype: torch.dtype | None = None, **_: Any
) -> tuple[Tensor, Sequence[Gradient]]:
    return x.to(dtype or x.dtype), (lambda g: g.to(x.dtype),)


@rule(aten.clone.default)
def _identity(x: Tensor, *, memory_format: Any = None) -> tuple[Tensor, Sequence[Gradient]]:
    return x, (lambda g: g,)
