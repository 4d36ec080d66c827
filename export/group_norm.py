"""Group normalisation with sums taken row by row first, for groups so large that a runtime's one
long sum loses digits.

ONNX Runtime's InstanceNormalization, which group_norm becomes, adds a group's elements one after
the other: of the million that a VAE's decoder has at 512x512 pixels, a picture with flat areas is
then off by 1e-2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

LARGE_GROUP = 2**16
"""Elements of a group beyond which its sums are taken in stages."""


def is_large(shape: torch.Size, groups: int) -> bool:
    """Whether so many groups of a tensor (N, C, ...) are large."""
    return math.prod(shape[1:]) // groups > LARGE_GROUP


def group_mean(x: Tensor) -> Tensor:
    """(N, G, C / G, pixels) or (N, G, C / G, H, W) -> each group's mean, axes kept; of the latter
    row by row."""
    if x.ndim == 4:
        return x.mean((2, 3), keepdim=True)
    return x.mean(-1, keepdim=True).mean(-2, keepdim=True).mean(2, keepdim=True)


def normalised(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (N, C, ..., W) -> its group norm and x less the groups' means, the groups' 1 / std, and
    that times the weight.

    The first two are (N, G, C / G, pixels), where the groups are large (N, G, C / G, H, W); the
    others broadcast.
    """
    channels, pixels = x.shape[1], math.prod(x.shape[2:])
    rows = (pixels // x.shape[-1], x.shape[-1]) if is_large(x.shape, groups) else (pixels,)
    per_channel = (1, groups, channels // groups, *[1] * len(rows))
    grouped = x.reshape(-1, groups, channels // groups, *rows)
    centred = grouped - group_mean(grouped)
    # ONNX Runtime's ReduceL2 would take one pass, and twice the time of these two
    rstd = torch.rsqrt(group_mean(centred * centred) + eps)  # (N, G, 1, ...)
    factor = rstd if weight is None else rstd * weight.reshape(per_channel)  # (N, G, C / G, ...)
    output = centred * factor
    return output if bias is None else output + bias.reshape(per_channel), centred, rstd, factor


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """aten.group_norm of x (N, C, ..., W), in stages where the groups are large."""
    if is_large(x.shape, groups):
        return normalised(x, groups, weight, bias, eps)[0].reshape(-1, *x.shape[1:])
    pixels = math.prod(x.shape[2:])
    return torch.native_group_norm(x, weight, bias, x.shape[0], x.shape[1], pixels, groups, eps)[0]


def stage_large_groups(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with its large group norms in stages; the same program where there is none."""
    norms: list[Any] = [
        node for node in program.graph.nodes if node.target is aten.group_norm.default
    ]
    if not any(is_large(node.args[0].meta["val"].shape, node.args[1]) for node in norms):
        return program
    return program.run_decompositions({aten.group_norm.default: group_norm})
