"""The gradients of guided diffusion: Monte-Carlo smoothing, mean guidance and the limits on their
size.

Equations of GOOD (arXiv 2510.17131) after TFG (Ye et al., arXiv 2409.15761, Alg. 1);
`good_rt.method.sampler` takes the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from good_rt.config.settings import GuidanceConfig
from good_rt.errors import NonFiniteError
from good_rt.method.classifier_guidance import Guidance

Decoder = Callable[[Tensor], Tensor]
"""latents (N, C, H, W) -> images (N, c, H', W') in about [-1, 1]; the identity for pixel models."""
LEVEL_WEIGHTS = {"img": 0.0, "feat": 1.0, "both": 0.5}
"""λ of ℓ = (1−λ)·ℓ_img/s_img + λ·ℓ_feat/s_feat by kind of guidance."""


def smoothed(guidance: Guidance, images: Tensor, width: float, noise: Tensor | None) -> Tensor:
    """ℓ̃(x) = log mean_{j≤M} exp ℓ(x + σ_t δ_j), (N,) (TFG, arXiv 2409.15761, "implicit dynamics").

    Args:
        guidance: ℓ.
        images: (N, C, H, W) x.
        width: σ_t.
        noise: (M, N, C, H, W) δ; None for ℓ(x) itself.
    """
    if noise is None:
        return guidance(images)
    samples = (images + width * noise).flatten(0, 1)
    return torch.logsumexp(guidance(samples).unflatten(0, noise.shape[:2]), dim=0) - math.log(
        len(noise)
    )


@runtime_checkable
class LatentGuidance(Protocol):
    """A guidance of latents with its own gradient: an engine of decoder, classifier and bank
    together.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def value_and_gradient(self, latents: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ (N,) and ∇ℓ (N, C, H, W) in the latents.

        Args:
            latents: (N, C, H, W).
            offset: (N, c, H', W'), added to the decoded images.
        """
        ...


def value_and_gradient(
    guidance: Guidance | LatentGuidance,
    decoder: Decoder,
    x0: Tensor,
    width: float,
    draw: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """ℓ̃(D(x̂0)) (N,) and ∇_{x̂0} ℓ̃(D(x̂0)) (N, C, H, W).

    Autograd goes through decoder and guidance, unless the guidance computes its gradient itself.

    Args:
        guidance: ℓ.
        decoder: D; unused where the guidance takes latents.
        x0: x̂0 (N, C, H, W).
        width: σ_t of the smoothing.
        draw: Draws the smoothing's noise δ (M, N, c, H', W') for images (N, c, H', W'); None for no
            smoothing.
    """
    if isinstance(guidance, LatentGuidance):
        return _smoothed_from_parts(guidance, x0, width, draw)
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_(True)
        images = decoder(x0)
        value = smoothed(guidance, images, width, None if draw is None else draw(images))
        (gradient,) = torch.autograd.grad(value.sum(), x0)
    return value.detach(), gradient


def _smoothed_from_parts(
    guidance: LatentGuidance, x0: Tensor, width: float, draw: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor]:
    """ℓ̃ and ∇ℓ̃ = Σ_j softmax_j(ℓ_j) ∇ℓ_j from every Monte-Carlo sample's own value and
    gradient."""
    nothing = x0.new_zeros(len(x0), *guidance.image_shape)
    if draw is None:
        return guidance.value_and_gradient(x0, nothing)
    parts = [guidance.value_and_gradient(x0, offset) for offset in width * draw(nothing)]
    values, gradients = (torch.stack(part) for part in zip(*parts, strict=True))
    total = torch.logsumexp(values, dim=0)
    # not values.softmax: even of one value it wakes PyTorch's threads, which spin for milliseconds
    # beside the engine
    weights = (values - total).exp()[:, :, None, None, None]
    return total - math.log(len(values)), (weights * gradients).sum(dim=0)


def limited(gradient: Tensor, value: Tensor, config: GuidanceConfig, step: int) -> Tensor:
    """The gradient (N, C, H, W) after clipping by norm, scaling and the band on ℓ, for each sample.

    Args:
        gradient: (N, C, H, W).
        value: ℓ (N,).
        config: ``step``, ``clip`` and ``band`` set the limits.
        step: The sampler's step, for errors.

    Raises:
        NonFiniteError: a value or gradient is NaN or infinite; it names the step and the samples.
    """
    flat = gradient.flatten(1)
    wrong = ~(flat.isfinite().all(dim=1) & value.isfinite())
    if wrong.any():
        raise NonFiniteError(step, wrong.nonzero()[:, 0].tolist())
    norm = torch.linalg.vector_norm(flat, dim=1)
    factor = torch.ones_like(norm)
    if config.step == "unit":
        # a zero gradient stays zero: there is no direction to follow
        factor = torch.where(norm > 0, math.sqrt(flat.shape[1]) / norm, torch.zeros_like(norm))
    elif config.clip is not None:
        factor = (config.clip / norm).clamp(max=1.0)
    if config.band is not None:
        low, high = config.band
        factor = factor * ((high - value) / (high - low)).clamp(0.0, 1.0)
    return gradient * factor[:, None, None, None]
