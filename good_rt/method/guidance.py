"""The gradients of guided diffusion: Monte-Carlo smoothing, mean guidance and the limits on their
size.

Equations of GOOD (arXiv 2510.17131) after TFG (Ye et al., arXiv 2409.15761, Alg. 1);
`good_rt.method.sampler` takes the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from good_rt.errors import GoodRtError, NonFiniteError
from good_rt.method.discrepancy import Guidance
from good_rt.method.schedule import Trend

Decoder = Callable[[Tensor], Tensor]
"""latents (N, C, H, W) -> images (N, c, H', W') in about [-1, 1]; the identity for pixel models."""


@dataclass(frozen=True)
class GuidanceConfig:
    """How strongly, when and how often the sampler follows ∇ℓ̃.

    With ``step="unit"`` each sample's gradient is scaled to root mean square 1, so that ``rho`` and
    ``mu`` are in units of the latents' spread and mean the same for every classifier; with "raw"
    they multiply the gradient itself.
    """

    rho: float = 0.0
    """ρ̄, mean strength of variance guidance (through the UNet)."""
    mu: float = 0.0
    """μ̄, mean strength of mean guidance (on x̂0 alone)."""
    sigma: float = 0.0
    """σ̄, width of the Gaussian smoothing of ℓ in image space; 0 for none."""
    rho_schedule: Trend = "constant"
    mu_schedule: Trend = "constant"
    sigma_schedule: Trend = "decrease"
    n_recur: int = 1
    """N_recur, passes over each noise level."""
    n_iter: int = 1
    """N_iter, mean-guidance steps in each pass."""
    n_mc: int = 1
    """M, Monte-Carlo samples of the smoothing."""
    step: Literal["unit", "raw"] = "unit"
    clip: float | None = None
    """Largest Euclidean norm of a sample's gradient, for ``step="raw"``; "unit" steps have a fixed
    norm."""
    span: tuple[float, float] = (0.0, 1.0)
    """The part of the trajectory that is guided: from and to, as shares of the steps taken."""
    every: int = 1
    """Guides every n-th step of the span alone; the steps between cost what an unguided one
    does."""
    band: tuple[float, float] | None = None
    """(low, high) of ℓ: full strength below low, none above high, linear between, so that samples
    stay images."""

    def __post_init__(self) -> None:
        for name in ("rho", "mu", "sigma"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise GoodRtError(
                    f"guidance's {name} must be a finite number of at least 0, not "
                    f"{getattr(self, name)}"
                )
        for name in ("n_recur", "n_iter", "n_mc", "every"):
            if getattr(self, name) < 1:
                raise GoodRtError(
                    f"guidance's {name} must be at least 1, not {getattr(self, name)}"
                )
        if self.clip is not None and not self.clip > 0:
            raise GoodRtError(f"guidance's clip must be greater than 0, not {self.clip}")
        if not 0 <= self.span[0] < self.span[1] <= 1:
            raise GoodRtError(
                f"guidance's span must be (from, to) with 0 <= from < to <= 1, not {self.span}"
            )
        if self.band is not None and not self.band[0] < self.band[1]:
            raise GoodRtError(
                f"guidance's band must be (low, high) with low < high, not {self.band}"
            )

    @property
    def active(self) -> bool:
        """Whether the sampler needs any gradient at all."""
        return self.rho > 0 or self.mu > 0

    def guides(self, step: int, steps: int) -> bool:
        """Whether this step of so many is guided."""
        first, last = (round(share * steps) for share in self.span)
        return self.active and first <= step < last and (step - first) % self.every == 0


def smoothed(guidance: Guidance, images: Tensor, width: float, noise: Tensor | None) -> Tensor:
    """ℓ̃(x) = log mean_{j≤M} exp ℓ(x + σ_t δ_j): images (N, C, H, W), noise δ (M, N, C, H, W) ->
    (N,).

    Without noise it is ℓ(x) itself. (TFG, arXiv 2409.15761, "implicit dynamics".)
    """
    if noise is None:
        return guidance(images)
    samples = (images + width * noise).flatten(0, 1)
    return torch.logsumexp(guidance(samples).unflatten(0, noise.shape[:2]), dim=0) - math.log(
        len(noise)
    )


@runtime_checkable
class LatentGuidance(Protocol):
    """A guidance of latents that brings its own gradient, as an engine of decoder and classifier
    together does."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def value_and_gradient(self, latents: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """latents (N, C, H, W), what is added to the decoded images (N, c, H', W') -> ℓ (N,), ∇ℓ
        (N, C, H, W)."""
        ...


def value_and_gradient(
    guidance: Guidance | LatentGuidance,
    decoder: Decoder,
    x0: Tensor,
    width: float,
    draw: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """ℓ̃(D(x̂0)) (N,) and ∇_{x̂0} ℓ̃(D(x̂0)), of the shape of x̂0 (N, C, H, W).

    ``draw`` makes the smoothing's noise δ (M, N, c, H', W') for images (N, c, H', W'); None for no
    smoothing. Autograd goes through decoder and guidance, unless the guidance brings its own
    gradient.
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
    """The gradient (N, C, H, W) after clipping by norm, scaling and the band on ℓ (N,), each sample
    by itself.

    Raises NonFiniteError that names the step and the samples of a NaN or infinite value or
    gradient.
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
