"""Rules of group, instance, layer and batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.export.group_norm import group_mean, normalised
from good_rt.export.vjp.rules.registry import Gradient, like, rule

aten = torch.ops.aten


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
        # rstd² itself would overflow in half precision
        slope = group_mean(g * centred) * rstd * rstd
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
    # the batch's own statistics are only used in training
    return (output, None, None), (lambda gs: gs[0] * scale,)
