"""Flux: a flow-matching transformer on latents packed two by two, with rotary positions and a
pooled text embedding.

The guidance-distilled kind takes the guidance's strength as an input, which is the default of
Flux's pipeline here; classifier-free guidance comes on top, if it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from good_rt.diffusion.base import Family, Shape
from good_rt.diffusion.conditioning import Conditioner, TextPrompts
from good_rt.diffusion.text import CLIP, T5, encode
from good_rt.errors import GoodRtError

FLUX_T5_TOKENS = 512
SIDE = 128
"""Height and width of the latents, which the config does not say."""
GUIDANCE = 3.5


class FluxModule(nn.Module):
    """(sample (N, C, H, W), timestep (N,) float32, context (N, L, D), pooled (N, P)[, guidance
    (N,)]) -> velocity."""

    positions: Tensor

    def __init__(self, transformer: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.transformer, self.shape = transformer, shape
        rows, columns = (torch.arange(size // 2) for size in shape[1:])
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        self.register_buffer(
            "positions", torch.cat([torch.zeros(len(grid), 1), grid], 1).float(), persistent=False
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        channels, height, width = self.shape
        packed = sample.reshape(-1, channels, height // 2, 2, width // 2, 2).permute(
            0, 2, 4, 1, 3, 5
        )
        packed = packed.reshape(-1, (height // 2) * (width // 2), 4 * channels)
        words = self.positions.new_zeros(context.shape[1], 3)
        output: Tensor = self.transformer(
            packed,
            context,
            pooled,
            timestep / 1000,
            self.positions,
            words,
            guidance,
            return_dict=False,
        )[0]
        output = output.reshape(-1, height // 2, width // 2, channels, 2, 2).permute(
            0, 3, 1, 4, 2, 5
        )
        return output.reshape(-1, channels, height, width)


class Flux(Family):
    classes = ("FluxTransformer2DModel",)
    about = "Flux, by text"
    patch = 2
    even_levels = True

    def sample_shape(self, config: Mapping[str, Any]) -> Shape:
        return config["in_channels"] // 4, SIDE, SIDE

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        super().check(config, folder)
        for part in ("text_encoder", "text_encoder_2"):
            if not (folder / part).is_dir():
                raise GoodRtError(
                    f"{folder} has no {part}/, which its prompts need; take the whole model folder"
                )

    def module(self, network: nn.Module, config: Mapping[str, Any], shape: Shape) -> nn.Module:
        return FluxModule(network, shape)

    def condition_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        shapes = {
            "context": (FLUX_T5_TOKENS, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }
        return {**shapes, "guidance": ()} if config["guidance_embeds"] else shapes

    def conditioner(
        self, config: Mapping[str, Any], folder: Path, image_shape: Shape
    ) -> Conditioner | None:
        return TextPrompts(partial(encode_both, folder, config["guidance_embeds"]))

    def text_parts(self, folder: Path) -> tuple[str, ...]:
        return "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"


def encode_both(folder: Path, guided: bool, prompts: list[str]) -> dict[str, Tensor]:
    """The network's inputs by name: "context" (P, L, D), T5's last hidden state, "pooled" (P, D'),
    CLIP's pooled embedding, and "guidance" (P,) where the network takes it.

    Args:
        folder: The model's folder.
        guided: Whether the network takes the guidance's strength.
        prompts: P texts.

    Raises:
        GoodRtError: an encoder or tokenizer is missing.
    """
    pooled, context = (
        encode(folder, "", prompts, CLIP).pooled,
        encode(folder, "_2", prompts, T5, FLUX_T5_TOKENS).last,
    )
    assert pooled is not None
    inputs = {"context": context, "pooled": pooled}
    return {**inputs, "guidance": torch.full((len(prompts),), GUIDANCE)} if guided else inputs
