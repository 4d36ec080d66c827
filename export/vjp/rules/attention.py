"""The rule of scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from good_rt.errors import NoGradientRuleError
from good_rt.export.vjp.rules.registry import Gradient, rule

aten = torch.ops.aten


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
        raise NoGradientRuleError(
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
