"""Stable Diffusion 3 and 3.5: a transformer of joint image and text tokens, by flow matching (arXiv
2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.diffusion.base import Family, Shape
from good_rt.diffusion.conditioning import Conditioner, TextPrompts
from good_rt.diffusion.text import CLIP, CLIP_TOKENS, T5, encode
from good_rt.errors import GoodRtError

SD3_T5_TOKENS = 256


class Sd3Module(nn.Module):
    """(sample (N, C, H, W), timestep (N,) float32, context (N, L, D), pooled (N, P)) -> velocity
    (N, C, H, W)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        output: Tensor = self.transformer(sample, context, pooled, timestep, return_dict=False)[0]
        return output


class Sd3(Family):
    classes = ("SD3Transformer2DModel",)
    about = "Stable Diffusion 3, by text"
    patch = 2

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        super().check(config, folder)
        for part in ("text_encoder", "text_encoder_2"):
            if not (folder / part).is_dir():
                raise GoodRtError(
                    f"{folder} has no {part}/, which its prompts need; take the whole model folder"
                )

    def module(self, network: nn.Module, config: Mapping[str, Any], shape: Shape) -> nn.Module:
        return Sd3Module(network)

    def condition_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        tokens = CLIP_TOKENS + SD3_T5_TOKENS
        return {
            "context": (tokens, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

    def conditioner(
        self, config: Mapping[str, Any], folder: Path, image_shape: Shape
    ) -> Conditioner | None:
        return TextPrompts(partial(encode_three, folder, config["joint_attention_dim"]))

    def text_parts(self, folder: Path) -> tuple[str, ...]:
        suffixes = ("", "_2", "_3") if (folder / "text_encoder_3").is_dir() else ("", "_2")
        return tuple(
            f"{part}{suffix}" for suffix in suffixes for part in ("text_encoder", "tokenizer")
        )


def encode_three(folder: Path, width: int, prompts: list[str]) -> dict[str, Tensor]:
    """The network's inputs by name: "context" (P, L, D) and "pooled" (P, D').

    "context" is both CLIPs' penultimate hidden states side by side, followed by T5's last one,
    zeros where T5 is left out, as the model was trained to do without. "pooled" is both CLIPs'
    pooled embeddings side by side.

    Args:
        folder: The model's folder.
        width: Width of T5's hidden states.
        prompts: P texts.

    Raises:
        GoodRtError: an encoder or tokenizer is missing.
    """
    clips = [encode(folder, suffix, prompts, CLIP) for suffix in ("", "_2")]
    hidden = torch.cat([clip.penultimate for clip in clips if clip.penultimate is not None], -1)
    if (folder / "text_encoder_3").is_dir():
        long = encode(folder, "_3", prompts, T5, SD3_T5_TOKENS).last
    else:
        long = hidden.new_zeros(len(prompts), SD3_T5_TOKENS, width)
    hidden = F.pad(hidden, (0, long.shape[-1] - hidden.shape[-1]))
    pooled = torch.cat([clip.pooled for clip in clips if clip.pooled is not None], -1)
    return {"context": torch.cat([hidden, long], 1), "pooled": pooled}
