"""x̂0 = denoise(y, σ, labels): one signature for every diffusion model, whatever its network
predicts.

Only this file turns y and σ into what the network was trained on (x_t and a timestep). The sampler
sees only this signature and the vector-Jacobian product that variance guidance needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from good_rt.errors import GoodRtError
from good_rt.method.schedule import FloatArray, alpha_cumprod_of, sigma_of

Network = Callable[..., Tensor]
"""(sample (N, C, H, W), timestep (N,) float32, *condition (N, …)) -> (N, C, H, W); without
condition where labels are None."""

Condition = Callable[[Tensor], tuple[Tensor, ...]]
"""labels (N,) int64 -> the network's further inputs, (N, …) each."""


PullBack = Callable[[Tensor], Tensor]
"""v of the shape of x̂0 -> (∂x̂0/∂y)ᵀ v of the shape of y."""


class Denoiser(Protocol):
    """The estimate of the clean latent, and its vector-Jacobian product."""

    def __call__(self, y: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        """x̂0 (N, C, H, W) of y.

        Args:
            y: (N, C, H, W) noisy latents.
            sigma: Their noise level.
            labels: (N,) int64 classes; None for an unconditional model.
        """
        ...

    def vjp(self, y: Tensor, sigma: float, labels: Tensor | None) -> tuple[Tensor, PullBack]:
        """x̂0 (N, C, H, W), and the function v -> (∂x̂0/∂y)ᵀ v, which may be called once.

        Args:
            y: (N, C, H, W) noisy latents.
            sigma: Their noise level.
            labels: (N,) int64 classes; None for an unconditional model.

        Raises:
            GoodRtError: the network has no gradient.
        """
        ...


def x0_from_noise(output: Tensor, y: Tensor, sigma: float) -> Tensor:
    """ε-prediction: x̂0 = (x_t − √(1−ᾱ) ε̂)/√ᾱ = y − σ ε̂, (N, C, H, W) (Tweedie).

    Args:
        output: (N, C, H, W) ε̂.
        y: (N, C, H, W) noisy latents.
        sigma: Their noise level.
    """
    return y - sigma * output


def x0_from_velocity(output: Tensor, y: Tensor, sigma: float) -> Tensor:
    """v-prediction: x̂0 = √ᾱ x_t − √(1−ᾱ) v̂ = (y/√(1+σ²) − σ v̂)/√(1+σ²), (N, C, H, W) (Salimans &
    Ho, arXiv 2202.00512, App. D).

    Args:
        output: (N, C, H, W) v̂.
        y: (N, C, H, W) noisy latents.
        sigma: Their noise level.
    """
    scale = (1 + sigma**2) ** -0.5
    return scale * (scale * y - sigma * output)


def x0_from_sample(output: Tensor, y: Tensor, sigma: float) -> Tensor:
    """x0-prediction: the network's output itself, (N, C, H, W).

    Args:
        output: (N, C, H, W) x̂0.
        y: (N, C, H, W) noisy latents; unused.
        sigma: Their noise level; unused.
    """
    return output


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "epsilon": x0_from_noise,
    "v_prediction": x0_from_velocity,
    "sample": x0_from_sample,
}
"""diffusers' names of what a network predicts -> x̂0 of (output, y, σ)."""


def class_labels(labels: Tensor) -> tuple[Tensor, ...]:
    """The condition of a network that takes the labels themselves."""
    return (labels,)


def remembered(condition: Condition) -> Condition:
    """The same condition with its last result cached: a sampler asks for the same labels at every
    step.
    """
    last: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def of(labels: Tensor) -> tuple[Tensor, ...]:
        if not last or last[0][0].shape != labels.shape or not torch.equal(last[0][0], labels):
            last[:] = [(labels, condition(labels))]
        return last[0][1]

    return of


class NetworkDenoiser:
    """What denoisers of one network share: classifier-free guidance, clipping and the gradient.

    Classifier-free guidance is x̂0 = x̂0(∅) + w·(x̂0(c) − x̂0(∅)) (Ho & Salimans, arXiv 2207.12598,
    Eq. 6), with both halves in one batch.

    Attributes:
        network: Computes x̂0; may be an engine without gradient.
        null_class: The label ∅; None where the model has no unconditional class.
        cfg_scale: w; 1 is without classifier-free guidance.
        cfg_sigma_max: The guidance acts only at σ up to here: in more noise it costs diversity and
            gains nothing (Kynkäänniemi et al., arXiv 2404.07724).
        clip: Bounds x̂0 to [−clip, clip], as pixel models' schedulers ask for.
        differentiable: What `vjp` goes back through: a PyTorch network, or an engine with its VJP
            engine (`good_rt.engines.autograd`).
        condition: Turns labels into the network's further inputs.

    Raises:
        GoodRtError: classifier-free guidance is asked of a model without unconditional class.
    """

    network: Network
    null_class: int | None
    cfg_scale: float
    cfg_sigma_max: float
    clip: float | None
    differentiable: Network | None
    condition: Condition

    def __post_init__(self) -> None:
        if self.cfg_scale != 1 and self.null_class is None:
            raise GoodRtError(
                f"classifier-free guidance (scale {self.cfg_scale}) needs a model with an "
                "unconditional class; use scale 1"
            )

    def timestep(self, sigma: float) -> float:
        """σ -> the timestep that the network expects for this noise level."""
        raise NotImplementedError

    def input_scale(self, sigma: float) -> float:
        """The factor from y to the network's sample."""
        raise NotImplementedError

    def estimate(self, output: Tensor, y: Tensor, sigma: float) -> Tensor:
        """x̂0 (N, C, H, W) of the network's prediction.

        Args:
            output: (N, C, H, W) the network's output.
            y: (N, C, H, W) noisy latents.
            sigma: Their noise level.
        """
        raise NotImplementedError

    def __call__(self, y: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self._denoise(self.network, y, sigma, labels)

    def vjp(self, y: Tensor, sigma: float, labels: Tensor | None = None) -> tuple[Tensor, PullBack]:
        if self.differentiable is None:
            raise GoodRtError(
                "variance guidance (rho > 0) goes back through the network, and this engine has no "
                "gradient; set rho to 0 or use the PyTorch engine"
            )
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            x0 = self._denoise(self.differentiable, y, sigma, labels)
        return x0.detach(), lambda v: torch.autograd.grad(x0, y, v)[0]

    def _denoise(self, network: Network, y: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        x = y * self.input_scale(sigma)
        t = x.new_full((len(x),), self.timestep(sigma), dtype=torch.float32)
        if labels is None:
            output = network(x, t)
        elif self.cfg_scale == 1 or sigma > self.cfg_sigma_max:
            output = network(x, t, *self.condition(labels))
        else:
            assert self.null_class is not None  # checked at construction
            both = torch.cat([labels, torch.full_like(labels, self.null_class)])
            with_class, without = network(
                torch.cat([x, x]), torch.cat([t, t]), *self.condition(both)
            ).chunk(2)
            output = without + self.cfg_scale * (with_class - without)
        x0 = self.estimate(output, y, sigma)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class DiscreteDenoiser(NetworkDenoiser):
    """A network trained on discrete timesteps; see `NetworkDenoiser` for the other attributes.

    Attributes:
        alphas_cumprod: (T,) ᾱ of the trained timesteps.
        prediction: What the network predicts, a key of `PREDICTIONS`.

    Raises:
        GoodRtError: the prediction type is unknown.
    """

    network: Network
    alphas_cumprod: FloatArray
    prediction: str = "epsilon"
    null_class: int | None = None
    cfg_scale: float = 1.0
    cfg_sigma_max: float = math.inf
    clip: float | None = None
    differentiable: Network | None = None
    condition: Condition = class_labels

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise GoodRtError(
                f"unknown prediction type {self.prediction!r} in the scheduler's config; known are "
                f"{known}"
            )
        super().__post_init__()

    def timestep(self, sigma: float) -> float:
        """Exact for a trained σ, between two of them linear in log σ."""
        table = np.log(sigma_of(self.alphas_cumprod))
        return float(np.interp(np.log(sigma), table, np.arange(len(table))))

    def input_scale(self, sigma: float) -> float:
        """x_t = √ᾱ y."""
        return float(np.sqrt(alpha_cumprod_of(sigma)))

    def estimate(self, output: Tensor, y: Tensor, sigma: float) -> Tensor:
        return PREDICTIONS[self.prediction](output, y, sigma)


@dataclass(frozen=True)
class FlowDenoiser(NetworkDenoiser):
    """A network trained by flow matching: it predicts v = n − x_0 at x_t = (1−s) x_0 + s n.

    In σ-space y = x_t/(1−s) and σ = s/(1−s), so s = σ/(1+σ). See `NetworkDenoiser` for the other
    attributes.

    Attributes:
        timesteps: T; the network's timestep is s·T.
    """

    network: Network
    timesteps: int = 1000
    null_class: int | None = None
    cfg_scale: float = 1.0
    cfg_sigma_max: float = math.inf
    clip: float | None = None
    differentiable: Network | None = None
    condition: Condition = class_labels

    def timestep(self, sigma: float) -> float:
        return self.timesteps * sigma / (1 + sigma)

    def input_scale(self, sigma: float) -> float:
        """x_t = (1−s) y."""
        return 1 / (1 + sigma)

    def estimate(self, output: Tensor, y: Tensor, sigma: float) -> Tensor:
        """x̂0 = x_t − s v̂ = (y − σ v̂)/(1+σ)."""
        return y * (1 / (1 + sigma)) - (sigma / (1 + sigma)) * output
