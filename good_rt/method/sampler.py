"""The guided sampler: DDIM in σ-space with variance guidance, mean guidance and recurrence.

One short generator that reads like the algorithm (GOOD, arXiv 2510.17131; TFG, arXiv 2409.15761,
Alg. 1). It is pure: the same seeds give the same images, whatever the batch they are in, as far as
the networks do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from good_rt.config.settings import GuidanceConfig
from good_rt.errors import NonFiniteError
from good_rt.method.classifier_guidance import Guidance
from good_rt.method.denoiser import Denoiser
from good_rt.method.guidance import Decoder, LatentGuidance, limited, value_and_gradient
from good_rt.method.schedule import FloatArray, alpha_cumprod_of, smoothing_widths, strengths


@dataclass(frozen=True)
class Step:
    """The state after one step of the sampler.

    Attributes:
        index: The step, from 0.
        sigma: Noise level of ``y``.
        y: (N, C, H, W) noisy latents.
        x0: (N, C, H, W) estimate x̂0 before guidance.
        value: ℓ̃ (N,) before guidance; None where the step is not guided.
    """

    index: int
    sigma: float
    y: Tensor
    x0: Tensor
    value: Tensor | None


def sample_seeds(job_seed: int, indices: Sequence[int]) -> list[int]:
    """One seed per sample, which depends only on the job's seed and the sample's index.

    Args:
        job_seed: Seed of all samples.
        indices: Positions of the samples in the generated set.
    """
    return [
        int(np.random.SeedSequence((job_seed, index)).generate_state(1, np.uint64)[0] >> 1)
        for index in indices
    ]


class Noise:
    """Standard normal noise with one stream per sample, so it does not depend on the batch.

    Args:
        seeds: One seed per sample.
        stream: Number of the stream; streams of one seed are independent.
    """

    def __init__(self, seeds: Sequence[int], stream: int) -> None:
        states = (
            np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0] for seed in seeds
        )
        self._generators = [torch.Generator().manual_seed(int(state >> 1)) for state in states]

    def __call__(self, like: Tensor) -> Tensor:
        """(N, …) noise of the shape, type and device of ``like``, drawn in float32."""
        drawn = [torch.randn(like.shape[1:], generator=generator) for generator in self._generators]
        return torch.stack(drawn).to(like)


def ddim_step(
    y: Tensor, x0: Tensor, sigma: float, sigma_next: float, eta: float, noise: Noise
) -> Tensor:
    """DDIM_η(y, x̂0, σ_t → σ_{t−1}), (N, C, H, W) (Song et al., arXiv 2010.02502, Eq. 12 and 16,
    divided by √ᾱ_{t−1}).

    σ_up² = η² σ_{t−1}² (σ_t² − σ_{t−1}²)/σ_t² is fresh noise, the rest of σ_{t−1}² keeps its
    direction.

    Args:
        y: (N, C, H, W) at σ_t.
        x0: x̂0 (N, C, H, W).
        sigma: σ_t.
        sigma_next: σ_{t−1}.
        eta: η; 0 is deterministic.
        noise: Draws the fresh noise.
    """
    up = eta * sigma_next * np.sqrt(sigma**2 - sigma_next**2) / sigma
    down = np.sqrt(max(sigma_next**2 - up**2, 0.0))
    y_next = x0 + float(down) / sigma * (y - x0)
    return y_next + float(up) * noise(y) if up > 0 else y_next


@dataclass(frozen=True)
class GuidedModel:
    """What the sampler evaluates at every step.

    Attributes:
        denoiser: x̂0 of y and σ, with its vector-Jacobian product where ρ > 0.
        decoder: D, which `guidance` differentiates; the identity for pixel models.
        guidance: The discrepancy ℓ that is climbed; None samples without guidance.
    """

    denoiser: Denoiser
    decoder: Decoder
    guidance: Guidance | LatentGuidance | None = None


@dataclass(frozen=True)
class SampleBatch:
    """The N latents that are sampled together.

    Attributes:
        seeds: One seed per sample (`sample_seeds`).
        shape: (C, H, W) of one latent.
        labels: (N,) int64 class of each sample; None for an unconditional model.
        strength: (N,) factor of ρ and μ of each sample; None for 1.
        dtype: Floating-point type of the latents.
        device: Where the models are; the noise is the same on every device.
    """

    seeds: Sequence[int]
    shape: tuple[int, int, int]
    labels: Tensor | None = None
    strength: Tensor | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def empty(self) -> Tensor:
        """An uninitialised (N, C, H, W) tensor of the batch's type and device."""
        return torch.empty((len(self.seeds), *self.shape), dtype=self.dtype, device=self.device)

    def strength_factor(self) -> float | Tensor:
        """1, or the strengths as an (N, 1, 1, 1) tensor."""
        if self.strength is None:
            return 1.0
        return self.strength.to(self.device, self.dtype)[:, None, None, None]


def sample_steps(
    model: GuidedModel,
    sigmas: FloatArray,
    config: GuidanceConfig,
    batch: SampleBatch,
    eta: float = 1.0,
) -> Iterator[Step]:
    """Yields every step of the guided sampler; the last y, over √(1 + σ²), is the latents.

    Args:
        model: Denoiser, decoder and guidance.
        sigmas: (T + 1,) falling noise levels, the last one is that of the result.
        config: Strengths, smoothing and limits of the guidance.
        batch: Seeds, shape and classes of the latents.
        eta: 0 is deterministic DDIM, 1 has the noise of DDPM.

    Raises:
        NonFiniteError: a value is not finite; it names step and samples.
    """
    denoiser, decoder, guidance = model.denoiser, model.decoder, model.guidance
    trajectory, renoising, smoothing = (Noise(batch.seeds, stream) for stream in range(3))
    rho = strengths(sigmas, config.rho, config.rho_schedule)
    mu = strengths(sigmas, config.mu, config.mu_schedule)
    width = smoothing_widths(sigmas, config.sigma, config.sigma_schedule)

    def draw_smoothing(images: Tensor) -> Tensor:
        return torch.stack([smoothing(images) for _ in range(config.n_mc)])

    draw = draw_smoothing if config.sigma > 0 else None
    factor = batch.strength_factor()
    labels = None if batch.labels is None else batch.labels.to(batch.device)
    y = trajectory(batch.empty()) * float(np.sqrt(1 + sigmas[0] ** 2))

    for t, (sigma, sigma_next) in enumerate(
        zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)
    ):
        root_alpha = float(np.sqrt(alpha_cumprod_of(sigma)))
        for recurrence in range(config.n_recur):
            guided = guidance is not None and config.guides(t, len(mu))
            if guided and rho[t] > 0:
                x0, pull_back = denoiser.vjp(y, sigma, labels)
            else:
                x0 = denoiser(y, sigma, labels)
            value: Tensor | None = None
            shift = torch.zeros_like(x0)  # Δ, and what variance guidance adds to y_{t−1}
            push = torch.zeros_like(x0)
            if guided:
                assert guidance is not None
                value, gradient = value_and_gradient(guidance, decoder, x0, width[t], draw)
                if rho[t] > 0:
                    # ∇_{x_t} = ∇_y/√ᾱ_t; y_{t−1} += ρ_t ∇_{x_t}/(√α_t √ᾱ_{t−1}) = ρ_t/√ᾱ_t ∇_{x_t}
                    through_unet = pull_back(gradient) / root_alpha
                    push = factor * rho[t] / root_alpha * limited(through_unet, value, config, t)
                for iteration in range(config.n_iter if mu[t] > 0 else 0):
                    if iteration > 0:  # the first gradient, at Δ = 0, is the one above
                        _, gradient = value_and_gradient(
                            guidance, decoder, x0 + shift, width[t], draw
                        )
                    shift = shift + factor * mu[t] * limited(gradient, value, config, t)
            y_next = ddim_step(y, x0, sigma, sigma_next, eta, trajectory) + shift + push
            if recurrence + 1 < config.n_recur:
                y = y_next + float(np.sqrt(sigma**2 - sigma_next**2)) * renoising(y)
        wrong = ~y_next.flatten(1).isfinite().all(dim=1)
        if wrong.any():
            raise NonFiniteError(t, wrong.nonzero()[:, 0].tolist())
        y = y_next
        yield Step(t, sigma_next, y, x0, value)


def sample(
    model: GuidedModel,
    sigmas: FloatArray,
    config: GuidanceConfig,
    batch: SampleBatch,
    eta: float = 1.0,
) -> Tensor:
    """The latents (N, C, H, W) at the end of `sample_steps`; decode and clamp them to see images.

    Args:
        model: Denoiser, decoder and guidance.
        sigmas: (T + 1,) falling noise levels, the last one is that of the result.
        config: Strengths, smoothing and limits of the guidance.
        batch: Seeds, shape and classes of the latents.
        eta: 0 is deterministic DDIM, 1 has the noise of DDPM.

    Raises:
        NonFiniteError: a value is not finite; it names step and samples.
    """
    for step in sample_steps(model, sigmas, config, batch, eta):
        last = step
    return last.y / float(np.sqrt(1 + last.sigma**2))
