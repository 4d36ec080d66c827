"""The noise process that a network was trained on, from its scheduler's config: levels of σ and the
denoiser for them.

Two kinds are known: discrete timesteps with ᾱ (all of DDPM's family, whatever sampler the config
names), and flow matching. Both give the sampler the same: an array of σ, and x̂0 = denoise(y, σ,
labels).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from good_rt.diffusion.parts import quiet_loading
from good_rt.errors import GoodRtError
from good_rt.files import read_json
from good_rt.method.denoiser import (
    PREDICTIONS,
    Condition,
    Denoiser,
    DiscreteDenoiser,
    FlowDenoiser,
    Network,
    class_labels,
)
from good_rt.method.schedule import FloatArray, Spacing, ddim_sigmas

SMALLEST_ALPHA = 2.0**-24
"""ᾱ of pure noise, where a schedule reaches 0; as in diffusers' Euler scheduler."""
LARGEST_FLOW = 1 - 1e-5
"""s of pure noise, where flow matching starts at 1: σ = s/(1−s) is to be finite."""


class Process(Protocol):
    """What the sampler and the export need of a noise process."""

    @property
    def about(self) -> str:
        """Description in one line."""
        ...

    def sigmas(self, steps: int) -> FloatArray:
        """The (steps + 1,) falling σ that the model's scheduler visits.

        Args:
            steps: Number of the sampler's steps.
        """
        ...

    def levels(self, count: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(count,) timesteps of trained levels, and the factors of signal and noise in the
        network's input.

        Args:
            count: Number of levels, from the noisiest to the cleanest.
        """
        ...

    def denoiser(
        self,
        network: Network,
        *,
        differentiable: Network | None = None,
        condition: Condition = class_labels,
        null_class: int | None = None,
        cfg_scale: float = 1.0,
        cfg_sigma_max: float = math.inf,
    ) -> Denoiser:
        """x̂0 = denoise(y, σ, labels) of the network's prediction.

        Args:
            network: Computes x̂0; may be an engine without gradient.
            differentiable: What gradients go back through; None for no gradient.
            condition: Turns labels into the network's further inputs.
            null_class: The label ∅; None where the model has no unconditional class.
            cfg_scale: Scale of classifier-free guidance; 1 is without.
            cfg_sigma_max: Largest σ at which classifier-free guidance acts.

        Raises:
            GoodRtError: classifier-free guidance is asked of a model without unconditional class.
        """
        ...


@dataclass(frozen=True)
class DiscreteProcess:
    """Timesteps 0 … T−1: x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε (Ho et al., arXiv 2006.11239, Eq. 4).

    Attributes:
        alphas_cumprod: (T,) ᾱ.
        prediction_type: What the network predicts, by diffusers' name.
        spacing: Which timesteps the scheduler visits.
        steps_offset: Added to "leading" timesteps.
        final_alpha_cumprod: ᾱ of the last level; 1.0 is σ = 0.
        clip: Bounds x̂0 to [−clip, clip]; None for no bound.
    """

    alphas_cumprod: FloatArray
    prediction_type: str = "epsilon"
    spacing: Spacing = "leading"
    steps_offset: int = 0
    final_alpha_cumprod: float = 1.0
    clip: float | None = None

    @property
    def about(self) -> str:
        return f"{len(self.alphas_cumprod)} discrete timesteps, {self.prediction_type}"

    def sigmas(self, steps: int) -> FloatArray:
        return ddim_sigmas(
            self.alphas_cumprod, steps, self.spacing, self.steps_offset, self.final_alpha_cumprod
        )

    def levels(self, count: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        # rounded in float32, as torch.linspace counts
        timesteps = (
            np.linspace(len(self.alphas_cumprod) - 1, 0, count, dtype=np.float32)
            .round()
            .astype(np.float64)
        )
        alphas = self.alphas_cumprod[timesteps.astype(int)]
        return timesteps, np.sqrt(alphas), np.sqrt(1 - alphas)

    def denoiser(
        self,
        network: Network,
        *,
        differentiable: Network | None = None,
        condition: Condition = class_labels,
        null_class: int | None = None,
        cfg_scale: float = 1.0,
        cfg_sigma_max: float = math.inf,
    ) -> Denoiser:
        return DiscreteDenoiser(
            network,
            self.alphas_cumprod,
            self.prediction_type,
            null_class,
            cfg_scale,
            cfg_sigma_max,
            self.clip,
            differentiable=differentiable,
            condition=condition,
        )


@dataclass(frozen=True)
class FlowProcess:
    """x_t = (1−s) x_0 + s n with s in [0, 1] (Lipman et al., arXiv 2210.02747; Esser et al., arXiv
    2403.03206).

    Attributes:
        config: Config of a FlowMatchEulerDiscreteScheduler.
        tokens: Length of the network's image sequence, which decides a dynamic shift.
        even: Whether the levels before the shift are 1, …, 1/steps, as in Flux's pipeline;
            otherwise they are the scheduler's.
    """

    config: Mapping[str, Any]
    tokens: int
    even: bool = False

    @property
    def about(self) -> str:
        shift = (
            "dynamic shift"
            if self.config["use_dynamic_shifting"]
            else f"shift {self.config['shift']:g}"
        )
        return f"flow matching, {shift}"

    @property
    def timesteps(self) -> int:
        return int(self.config["num_train_timesteps"])

    def sigmas(self, steps: int) -> FloatArray:
        if not 1 <= steps <= self.timesteps:
            raise GoodRtError(f"steps must be between 1 and {self.timesteps}, not {steps}")
        from diffusers import FlowMatchEulerDiscreteScheduler

        with quiet_loading():
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(self.config))
            levels = np.linspace(1, 1 / steps, steps).tolist() if self.even else None
            scheduler.set_timesteps(steps, sigmas=levels, mu=self._shift())
        flow = np.minimum(scheduler.sigmas.double().numpy(), LARGEST_FLOW)
        return flow / (1 - flow)

    def _shift(self) -> float | None:
        """μ, linear in the number of tokens (Esser et al., arXiv 2403.03206, Sec. 5.3.2)."""
        if not self.config["use_dynamic_shifting"]:
            return None
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        few, many, low, high = (float(self.config[name]) for name in names)
        return low + (high - low) * (self.tokens - few) / (many - few)

    def levels(self, count: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        flow = np.linspace(LARGEST_FLOW, 1 / self.timesteps, count)
        return self.timesteps * flow, 1 - flow, flow

    def denoiser(
        self,
        network: Network,
        *,
        differentiable: Network | None = None,
        condition: Condition = class_labels,
        null_class: int | None = None,
        cfg_scale: float = 1.0,
        cfg_sigma_max: float = math.inf,
    ) -> Denoiser:
        return FlowDenoiser(
            network, self.timesteps, null_class, cfg_scale, cfg_sigma_max,
            differentiable=differentiable, condition=condition,
        )  # fmt: skip


def load_process(path: Path, tokens: int, even: bool = False) -> Process:
    """The process of a scheduler_config.json, with the defaults of the sampler that it names.

    Args:
        path: The file.
        tokens: Length of the network's image sequence.
        even: See `FlowProcess`.

    Raises:
        GoodRtError: the config is damaged, or of another kind of process.
    """
    import diffusers

    settings = read_json(path)
    name = settings.get("_class_name", "DDIMScheduler")
    kind = (
        getattr(diffusers, name, None)
        if isinstance(name, str) and name.endswith("Scheduler")
        else None
    )
    if kind is None:
        raise GoodRtError(
            f"{path} names {name!r}, which is no scheduler of diffusers {diffusers.__version__}"
        )
    with quiet_loading():
        try:
            scheduler = kind.from_config(settings)
        except (TypeError, ValueError, NotImplementedError, ImportError) as error:
            raise GoodRtError(
                f"{path} is not a scheduler's config that can be used ({error})"
            ) from None
    config = scheduler.config
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        if config.invert_sigmas:
            raise GoodRtError(
                f"{path}: good-rt does not run inverted flow matching (invert_sigmas)"
            )
        return FlowProcess(dict(config), tokens, even)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise GoodRtError(
            f"{path} holds a {name}, whose noise good-rt does not know; it knows schedulers with "
            "discrete timesteps (DDPM, DDIM, PNDM, Euler, DPM-Solver, …) and "
            "FlowMatchEulerDiscreteScheduler"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise GoodRtError(
            f"{path}: unknown prediction type {prediction!r}; known are {', '.join(PREDICTIONS)}"
        )
    if config.get("thresholding"):
        raise GoodRtError(
            f"{path}: good-rt does not run dynamic thresholding; set thresholding to false"
        )
    return DiscreteProcess(
        alphas_cumprod=np.maximum(alphas.double().numpy(), SMALLEST_ALPHA),
        prediction_type=prediction,
        spacing=config.get("timestep_spacing", "leading"),
        steps_offset=config.get("steps_offset", 0),
        final_alpha_cumprod=float(getattr(scheduler, "final_alpha_cumprod", 1.0)),
        clip=config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None,
    )
