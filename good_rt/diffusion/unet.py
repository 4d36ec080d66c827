"""UNet2DModel: DDPM's networks in pixel or latent space, unconditional or by class label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from good_rt.diffusion.base import Family, Shape, predicted_channels
from good_rt.diffusion.conditioning import ClassLabels, Conditioner
from good_rt.errors import GoodRtError


class UNetModule(nn.Module):
    """(sample (N, C, H, W), timestep (N,) float32[, class_labels (N,) int64]) -> prediction (N, C,
    H, W).

    Args:
        unet: The diffusers network.
        channels: Channels of its output to keep, the first ones; None keeps all.
    """

    def __init__(self, unet: nn.Module, channels: int | None = None) -> None:
        super().__init__()
        self.unet, self.channels = unet, channels

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        output: Tensor = self.unet(sample, timestep, class_labels=class_labels, return_dict=False)[
            0
        ]
        return output if self.channels is None else output[:, : self.channels]


class UNet(Family):
    classes = ("UNet2DModel",)
    about = "UNet, unconditional or by class label"

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        super().check(config, folder)
        if config["time_embedding_type"] == "fourier":
            raise GoodRtError(
                f"{folder} is a score network of continuous time (fourier), which good-rt does not "
                "run"
            )
        if config["class_embed_type"] not in (None, "timestep") or (
            config["class_embed_type"] == "timestep" and config["num_class_embeds"] is None
        ):
            raise GoodRtError(
                f"{folder}: class_embed_type {config['class_embed_type']!r} is not run by good-rt"
            )

    def module(self, network: nn.Module, config: Mapping[str, Any], shape: Shape) -> nn.Module:
        channels = predicted_channels(config)
        return UNetModule(network, channels if config["out_channels"] != channels else None)

    def condition_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {} if config["num_class_embeds"] is None else {"class_labels": ()}

    def conditioner(
        self, config: Mapping[str, Any], folder: Path, image_shape: Shape
    ) -> Conditioner | None:
        labels = config["num_class_embeds"]
        return None if labels is None else ClassLabels(labels)
