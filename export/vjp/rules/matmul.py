"""Rules of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.export.vjp.rules.registry import Gradient, rule, unbroadcast

aten = torch.ops.aten


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
