"""The rule of convolutions, plain and transposed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from good_rt.export.vjp.rules.registry import Gradient, rule

aten = torch.ops.aten


@rule(aten.convolution.default)
def convolution(
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
