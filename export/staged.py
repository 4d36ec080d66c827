"""Group normalisation with sums taken row by row first, for groups so large that a runtime's one long sum loses digits.

ONNX Runtime's InstanceNormalization, which group_norm becomes, adds a group's elements one after the other: of the
million that a VAE's decoder has at 512x512 pixels, a picture with flat areas is then off by 1e-2.
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


def centre(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """(N, G, C / G, H, W) less its groups' means, and the groups' variances (N, G, 1, 1, 1)."""
    size = math.prod(grouped.shape[2:])
    centred = grouped - _sum(grouped) * (1 / size)
    return centred, _sum(centred * centred) * (1 / size)


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True).sum((2, 3), keepdim=True)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """aten.group_norm of x (N, C, ..., W), in stages where the groups are large."""
    channels, pixels = x.shape[1], math.prod(x.shape[2:])
    if not is_large(x.shape, groups):
        return torch.native_group_norm(x, weight, bias, x.shape[0], channels, pixels, groups, eps)[0]
    grouped = x.reshape(-1, groups, channels // groups, pixels // x.shape[-1], x.shape[-1])
    centred, variance = centre(grouped)
    normal = centred * torch.rsqrt(variance + eps)
    per_channel = (1, groups, channels // groups, 1, 1)
    normal = normal if weight is None else normal * weight.reshape(per_channel)
    normal = normal if bias is None else normal + bias.reshape(per_channel)
    return normal.reshape(-1, *x.shape[1:])


def stage_large_groups(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with its large group norms in stages; the same program where there is none."""
    norms: list[Any] = [node for node in program.graph.nodes if node.target is aten.group_norm.default]
    if not any(is_large(node.args[0].meta["val"].shape, node.args[1]) for node in norms):
        return program
    return program.run_decompositions({aten.group_norm.default: group_norm})
