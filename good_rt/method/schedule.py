"""Noise schedules as arrays of σ, and the schedules of guidance strength over them.

A schedule is a decreasing float64 array; the sampler walks it from the first value to the last. In
σ-space, y = x_t / √ᾱ_t and σ_t = √((1−ᾱ_t)/ᾱ_t), so that ᾱ_t = 1 / (1 + σ_t²).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from good_rt.config.settings import Trend
from good_rt.errors import GoodRtError

Spacing = Literal["leading", "trailing", "linspace"]
FloatArray = NDArray[np.float64]


def sigma_of(alphas_cumprod: FloatArray) -> FloatArray:
    """σ = √((1−ᾱ)/ᾱ), elementwise."""
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def alpha_cumprod_of(sigma: FloatArray | float) -> FloatArray:
    """ᾱ = 1/(1+σ²), elementwise."""
    return 1 / (1 + np.square(np.asarray(sigma, np.float64)))


def timesteps(
    train_steps: int, steps: int, spacing: Spacing = "trailing", offset: int = 0
) -> NDArray[np.int64]:
    """The (steps,) falling timesteps that diffusers' schedulers visit (Lin et al., arXiv
    2305.08891, Tab. 2).

    Args:
        train_steps: Timesteps that the model was trained on.
        steps: How many of them are visited.
        spacing: Which ones.
        offset: Added to "leading" timesteps.

    Raises:
        GoodRtError: ``steps`` is not between 1 and ``train_steps``.
    """
    if not 1 <= steps <= train_steps:
        raise GoodRtError(f"steps must be between 1 and {train_steps}, not {steps}")
    if spacing == "linspace":
        return np.linspace(0, train_steps - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "trailing":
        return np.arange(train_steps, 0, -train_steps / steps).round().astype(np.int64)[:steps] - 1
    return (np.arange(steps) * (train_steps // steps))[::-1].astype(np.int64) + offset


def ddim_sigmas(
    alphas_cumprod: FloatArray,
    steps: int,
    spacing: Spacing = "trailing",
    offset: int = 0,
    final_alpha_cumprod: float = 1.0,
) -> FloatArray:
    """(steps + 1,) falling σ, from the noisiest to σ of ``final_alpha_cumprod``.

    Args:
        alphas_cumprod: (T,) ᾱ of the trained model.
        steps: Number of the sampler's steps.
        spacing: Which timesteps are visited.
        offset: Added to "leading" timesteps.
        final_alpha_cumprod: ᾱ of the last level; 1.0 is σ = 0.

    Raises:
        GoodRtError: ``steps`` is not between 1 and T.
    """
    visited = alphas_cumprod[timesteps(len(alphas_cumprod), steps, spacing, offset)]
    return sigma_of(np.append(visited, final_alpha_cumprod).astype(np.float64))


def strengths(sigmas: FloatArray, mean: float, trend: Trend) -> FloatArray:
    """(T,) strengths ρ_t = ρ̄·T·s_t/Σs, whose mean is ``mean`` (TFG, arXiv 2409.15761, Sec. 4.2).

    Args:
        sigmas: (T + 1,) noise levels.
        mean: ρ̄ or μ̄.
        trend: s_t is 1 − ᾱ_t/ᾱ_{t−1} ("decrease": strong at first, like β), ᾱ_t/ᾱ_{t−1}
            ("increase") or 1 ("constant").
    """
    alphas = alpha_cumprod_of(sigmas)
    ratio = alphas[:-1] / alphas[1:]
    shape = {"decrease": 1 - ratio, "increase": ratio, "constant": np.ones_like(ratio)}[trend]
    return mean * len(shape) * shape / shape.sum()


def smoothing_widths(sigmas: FloatArray, mean: float, trend: Trend) -> FloatArray:
    """(T,) smoothing widths σ_t = σ̄·√(1−ᾱ_t) ("decrease") or σ̄ ("constant").

    Args:
        sigmas: (T + 1,) noise levels.
        mean: σ̄.
        trend: "decrease" or "constant".

    Raises:
        GoodRtError: the trend is "increase".
    """
    if trend == "increase":
        raise GoodRtError(
            'the smoothing width has the trends "decrease" and "constant", not "increase"; choose '
            "one of them"
        )
    noise = np.sqrt(1 - alpha_cumprod_of(sigmas[:-1]))
    return mean * (noise if trend == "decrease" else np.ones_like(noise))
