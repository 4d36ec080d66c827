"""The interfaces of a diffusion model of any architecture, and of an architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from good_rt.config.settings import PROMPT
from good_rt.diffusion.autoencoder import DecoderModule, EncoderModule
from good_rt.diffusion.conditioning import (
    ClassLabels,
    Conditioner,
    Conditioning,
    TextPrompts,
)
from good_rt.diffusion.process import DiscreteProcess, Process
from good_rt.errors import GoodRtError
from good_rt.method.schedule import FloatArray

Shape = tuple[int, int, int]
"""(C, H, W)."""


@dataclass(frozen=True)
class DiffusionModel:
    """A diffusion model as PyTorch modules, its noise process, and what conditions it.

    Attributes:
        network: (sample (N, C, H, W), timestep (N,) float32, *condition) -> prediction (N, C, H,
            W); a UNet or a transformer.
        encoder: Images to latents; None for a pixel model.
        decoder: Latents to images; None for a pixel model.
        process: Noise levels and the denoiser for them.
        conditioner: Conditions on classes; None for an unconditional model.
        sample_shape: (C, H, W) that the network denoises.
        image_shape: (C, H, W) of the images; the sample's for a pixel model.
        fingerprint: Hash of configs and weights.
        light_decoder: Replaces the decoder where gradients go through it.
    """

    network: nn.Module
    encoder: EncoderModule | None
    decoder: DecoderModule | None
    process: Process
    conditioner: Conditioner | None
    sample_shape: Shape
    image_shape: Shape
    fingerprint: str
    light_decoder: DecoderModule | None = None

    def to(self, device: torch.device | str) -> DiffusionModel:
        """Moves the modules to the device, in place, and returns the model."""
        for module in (self.network, self.encoder, self.decoder, self.light_decoder):
            if module is not None:
                module.to(device)
        return self

    def sigmas(self, steps: int) -> FloatArray:
        """The (steps + 1,) falling σ that the model's scheduler visits.

        Args:
            steps: Number of the sampler's steps.

        Raises:
            GoodRtError: the model was not trained on that many steps.
        """
        return self.process.sigmas(steps)

    def conditioning(
        self, classes: Sequence[str], templates: Sequence[str] = (PROMPT,)
    ) -> Conditioning | None:
        """The network's inputs for each class; None for an unconditional model.

        Args:
            classes: Names of the classifier's classes.
            templates: Prompts with {} in place of the class's name, for models that follow text.

        Raises:
            GoodRtError: the model has too few classes, or its text encoder cannot be loaded.
        """
        return None if self.conditioner is None else self.conditioner(classes, templates)

    @property
    def gradient_decoder(self) -> DecoderModule | None:
        """The decoder that gradients go through: the light one where there is one."""
        return self.light_decoder or self.decoder

    @property
    def text(self) -> bool:
        """Whether prompts condition it."""
        return isinstance(self.conditioner, TextPrompts)

    @property
    def num_class_embeds(self) -> int | None:
        """How many labels the network knows, if labels condition it."""
        return self.conditioner.count if isinstance(self.conditioner, ClassLabels) else None

    @property
    def alphas_cumprod(self) -> FloatArray:
        """ᾱ (T,) of a discrete process."""
        return self._discrete().alphas_cumprod

    @property
    def prediction_type(self) -> str:
        """What the network of a discrete process predicts, by diffusers' name."""
        return self._discrete().prediction_type

    @property
    def clip(self) -> float | None:
        """The bound of x̂0 that the scheduler asks for, if it does."""
        return self._discrete().clip

    def _discrete(self) -> DiscreteProcess:
        if not isinstance(self.process, DiscreteProcess):
            raise GoodRtError(f"the model has no discrete timesteps: {self.process.about}")
        return self.process


class Family(ABC):
    """One architecture: how its config is read and its network called; see
    `good_rt.diffusion.load`.

    A network that predicts twice its input's channels has learned its variance too, which is split
    off (Nichol & Dhariwal, arXiv 2102.09672).

    Attributes:
        classes: diffusers' names of its networks.
        about: Description in one line.
        patch: Height and width in the sample of one token.
        even_levels: Whether its pipeline spaces the levels of flow matching evenly.
    """

    classes: ClassVar[tuple[str, ...]]
    about: ClassVar[str]
    patch: ClassVar[int] = 1
    even_levels: ClassVar[bool] = False

    def sample_shape(self, config: Mapping[str, Any]) -> Shape:
        """(C, H, W) that the network denoises.

        Args:
            config: The network's config.

        Raises:
            GoodRtError: the config has no size.
        """
        size = config.get("sample_size")
        if size is None:
            raise GoodRtError(
                "the network's config has no sample_size, so that its images have no size; set it"
            )
        height, width = (size, size) if isinstance(size, int) else size
        return config["in_channels"], height, width

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        """Refuses variants of the architecture that good-rt does not run.

        Args:
            config: The network's config.
            folder: The model's folder.

        Raises:
            GoodRtError: the model is such a variant; it says which.
        """
        predicted_channels(config)

    @abstractmethod
    def module(self, network: nn.Module, config: Mapping[str, Any], shape: Shape) -> nn.Module:
        """The network as (sample, timestep (N,) float32, *condition) -> prediction of the sample's
        shape.

        Args:
            network: The diffusers network.
            config: Its config.
            shape: (C, H, W) of the sample.
        """

    @abstractmethod
    def conditioner(
        self, config: Mapping[str, Any], folder: Path, image_shape: Shape
    ) -> Conditioner | None:
        """What conditions the network; it loads nothing yet.

        Args:
            config: The network's config.
            folder: The model's folder.
            image_shape: (C, H, W) of the images.
        """

    @abstractmethod
    def condition_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The condition's inputs in the module's order, with their shapes for one image; labels
        are int64.

        Args:
            config: The network's config.
        """

    def text_parts(self, folder: Path) -> tuple[str, ...]:
        """The names of the parts that prompts need."""
        return ()


def misfits(
    made: Shape | None, taken: Shape | None, labels: int | None, classes: int | None
) -> list[str]:
    """Why a diffusion model and a classifier do not fit together, one line each.

    What is None is not compared.

    Args:
        made: (C, H, W) of the diffusion model's images.
        taken: (C, H, W) of the classifier's.
        labels: Number of classes that the diffusion model knows.
        classes: Number of the classifier's classes.
    """
    problems = []
    if made is not None and taken is not None and made != taken:
        problems.append(
            f"the diffusion model makes images of {_shape_text(made)}; the classifier takes "
            f"{_shape_text(taken)}: choose a diffusion model that makes those, or train one on "
            "these images"
        )
    if labels is not None and classes is not None and labels < classes:
        problems.append(
            f"the diffusion model knows {labels} classes, the classifier {classes}: choose one "
            "that was trained on the same classes, or on none"
        )
    return problems


def _shape_text(shape: Shape) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels, {channels} {'channel' if channels == 1 else 'channels'}"


def predicted_channels(config: Mapping[str, Any]) -> int:
    """Number of channels of the prediction, which come before those of the variance.

    Args:
        config: The network's config.

    Raises:
        GoodRtError: the output has another number of channels.
    """
    inputs, outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
    if outputs not in (inputs, 2 * inputs):
        raise GoodRtError(
            f"the network takes {inputs} channels and gives {outputs}, which is neither the "
            "prediction nor the prediction with its variance; models with further inputs, such as "
            "inpainting, are not run"
        )
    return int(inputs)
