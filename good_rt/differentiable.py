"""An engine and its VJP engine as one function that autograd can go back through.

Engines have no backward pass of their own; with the graph that `good_rt.export.vjp` writes they get one, and guidance,
denoiser and a user's own terms in PyTorch differentiate through them as through any module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _WithVjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], vjp: Callable[..., Tensor], x: Tensor, *rest: Tensor) -> Tensor:
        ctx.vjp = vjp
        ctx.save_for_backward(x, *rest)
        return run(x, *rest)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *rest = ctx.saved_tensors
        return None, None, ctx.vjp(cotangent.contiguous(), x, *rest), *(None for _ in rest)


def with_vjp(run: Callable[..., Tensor], vjp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``run(x, *rest)`` -> y and ``vjp(v, x, *rest)`` -> (∂y/∂x)ᵀ v as one function, differentiable in x alone."""

    def differentiable(x: Tensor, *rest: Tensor) -> Tensor:
        y: Tensor = _WithVjp.apply(run, vjp, x, *rest)  # type: ignore[no-untyped-call]
        return y

    return differentiable
