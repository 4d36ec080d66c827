"""Rules of pooling and of enlargement by nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.export.vjp.rules.convolution import convolution
from good_rt.export.vjp.rules.registry import Gradient, Sizes, rule

aten = torch.ops.aten


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
    _, (gradient,) = convolution(
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
    windows, (spread,) = convolution(
        padded, picks, None, steps, [0, 0], apart, False, [0, 0], channels
    )
    windows = windows.reshape(-1, channels, size, *output.shape[2:])
    places = torch.arange(size).reshape(1, 1, size, 1, 1)
    # of equal values the first, as in torch
    chosen = (windows.argmax(2, keepdim=True) == places).to(x.dtype)

    def gradient(g: Tensor) -> Tensor:
        shares = (g.unsqueeze(2) * chosen).reshape(-1, channels * size, *output.shape[2:])
        return F.pad(spread(shares), [-edge for edge in around])

    return output, (gradient,)
