"""Pairs of operations that are pulled back as one, before a graph is differentiated.

Decoders and UNets enlarge by 2 before a 3x3 convolution at every level: the pair, and its gradient,
take 16 products a pixel where the two, one after the other, take 36. And a convolution with batch
norm's fixed statistics after it is a convolution with other weights.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from good_rt.export.vjp.rules import Gradient, rule

aten = torch.ops.aten

FACTOR = 2


def enlarged_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, C, H, W), weight (C', C, 3, 3) -> (N, C', 2H, 2W): convolution with padding 1 of x
    enlarged by 2.

    It is never enlarged: of the 3x3 pixels under the kernel, 2x2 are different ones, so that each
    of the four places in a block has a kernel of 2x2, and the four results are interleaved.
    """
    return interleaved(
        [
            F.conv2d(
                F.pad(x, (1 - right, right, 1 - down, down)),
                _taps(_taps(weight, down, 2), right, 3),
                bias,
            )
            for down in range(FACTOR)
            for right in range(FACTOR)
        ]
    )


def interleaved(places: Sequence[Tensor]) -> Tensor:
    """Four of (N, C, H, W) -> (N, C, 2H, 2W): the four pixels of each block of 2x2, in the order of
    reading."""
    channels, height, width = places[0].shape[1:]
    rows = [
        torch.stack(list(pair), -1).reshape(-1, channels, height, 2 * width)
        for pair in (places[:2], places[2:])
    ]
    return torch.stack(rows, 3).reshape(-1, channels, 2 * height, 2 * width)


def _taps(weight: Tensor, place: int, axis: int) -> Tensor:
    """Of a kernel's three taps along an axis, those on one pixel added: the last two in a block's
    first place."""
    first, second, third = weight.unbind(axis)
    return torch.stack((first + second, third) if place else (first, second + third), axis)


@rule(enlarged_convolution)
def _enlarged_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Sequence[Gradient]]:
    """The gradient is a convolution with stride 2: its 4x4 kernel is the sum of the four shifted
    over a block."""
    outputs, inputs = weight.shape[:2]
    flipped = weight.transpose(0, 1).flip(2, 3).reshape(-1, 1, 3, 3)
    spread = F.conv2d(F.pad(flipped, (1, 1, 1, 1)), torch.ones_like(flipped[:1, :, :2, :2]))
    kernel = spread.reshape(inputs, outputs, 4, 4)
    return enlarged_convolution(x, weight, bias), (
        lambda g: F.conv2d(g, kernel, stride=FACTOR, padding=1),
    )


def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Folds a batch norm with fixed statistics into the weights of the convolution before it, whose
    output nothing else reads."""
    for node in list(graph.graph.nodes):
        if node.target is not operator.getitem or node.args[1] != 0:
            continue
        norm: Any = node.args[0]
        if (
            norm.target is not aten._native_batch_norm_legit_no_training.default
            or len(norm.users) > 1
        ):
            continue
        convolution: Any = norm.args[0]
        transposed = convolution.target is aten.convolution.default and convolution.args[6]
        if (
            convolution.target is not aten.convolution.default
            or transposed
            or len(convolution.users) > 1
        ):
            continue
        sources = [*convolution.args[1:3], *norm.args[1:5]]
        if any(source is not None and source.op != "get_attr" for source in sources):
            continue  # weights that are computed
        found: list[Any] = [
            None if source is None else operator.attrgetter(source.target)(graph)
            for source in sources
        ]
        weight, bias, gamma, beta, mean, variance = found
        scale = torch.rsqrt(variance + norm.args[6])
        scale = scale if gamma is None else scale * gamma
        shift = -mean * scale if bias is None else (bias - mean) * scale
        names = [f"folded_{node.name}_{part}" for part in ("weight", "bias")]
        graph.register_buffer(
            names[0], (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).detach()
        )
        graph.register_buffer(names[1], (shift if beta is None else shift + beta).detach())
        with graph.graph.inserting_before(convolution):
            folded = [graph.graph.get_attr(name) for name in names]
        folded[0].meta, folded[1].meta = dict(convolution.args[1].meta), {}
        convolution.update_arg(1, folded[0])
        convolution.update_arg(2, folded[1])
        node.replace_all_uses_with(convolution)
        graph.graph.erase_node(node)
        graph.graph.erase_node(norm)


def join_enlargements(graph: fx.Graph) -> None:
    """Puts `enlarged_convolution` in the place of each enlargement by 2 that only a 3x3
    convolution reads."""
    for node in list(graph.nodes):
        if node.target is not aten.convolution.default or not _plain(node):
            continue
        arguments: Any = node.args
        large, weight, bias = arguments[:3]
        if large.target is not aten.upsample_nearest2d.vec or len(large.users) > 1:
            continue
        small = large.args[0]
        if large.meta["val"].shape[2:] != tuple(
            FACTOR * size for size in small.meta["val"].shape[2:]
        ):
            continue
        with graph.inserting_before(node):
            joined = graph.call_function(enlarged_convolution, (small, weight, bias))
        joined.meta = node.meta
        node.replace_all_uses_with(joined)
        graph.erase_node(node)
        graph.erase_node(large)


def _plain(node: fx.Node) -> bool:
    """A 3x3 convolution of stride, padding and dilation 1, without groups."""
    arguments: Any = node.args
    _, weight, _, stride, padding, dilation, transposed, _, groups = arguments
    ones = all(tuple(value) == (1, 1) for value in (stride, padding, dilation))
    return tuple(weight.meta["val"].shape[2:]) == (3, 3) and ones and not transposed and groups == 1
