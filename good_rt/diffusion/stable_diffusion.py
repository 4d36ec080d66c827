"""Stable Diffusion 1, 2 and XL: UNet2DConditionModel, which attends to the embedding of a text.

XL (Podell et al., arXiv 2307.01952) reads two encoders, and is told a pooled embedding and the
image's size as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from good_rt.diffusion.base import Family, Shape, predicted_channels
from good_rt.diffusion.conditioning import Conditioner, TextPrompts
from good_rt.diffusion.text import CLIP, CLIP_TOKENS, encode
from good_rt.errors import GoodRtError
from good_rt.files import read_json


class TextUNetModule(nn.Module):
    """(sample (N, C, H, W), timestep (N,) float32, context (N, L, D)[, pooled (N, P), time_ids (N,
    6)]) -> output."""

    def __init__(self, unet: nn.Module, channels: int | None = None) -> None:
        super().__init__()
        self.unet, self.channels = unet, channels

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
        output: Tensor = self.unet(
            sample, timestep, context, added_cond_kwargs=added, return_dict=False
        )[0]
        return output if self.channels is None else output[:, : self.channels]


class StableDiffusion(Family):
    classes = ("UNet2DConditionModel",)
    about = "Stable Diffusion 1, 2 or XL, by text"

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        super().check(config, folder)
        for name, known in (
            ("addition_embed_type", (None, "text_time")),
            ("class_embed_type", (None,)),
            ("num_class_embeds", (None,)),
            ("encoder_hid_dim_type", (None,)),
            ("time_embedding_type", ("positional",)),
        ):
            if config[name] not in known:
                raise GoodRtError(f"{folder}: {name} {config[name]!r} is not run by good-rt")
        if not (folder / "text_encoder").is_dir():
            raise GoodRtError(
                f"{folder} has no text_encoder/, which its prompts need; take the whole model "
                "folder"
            )

    def module(self, network: nn.Module, config: Mapping[str, Any], shape: Shape) -> nn.Module:
        channels = predicted_channels(config)
        return TextUNetModule(network, channels if config["out_channels"] != channels else None)

    def condition_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        width = config["cross_attention_dim"]
        shapes: dict[str, tuple[int, ...]] = {
            "context": (CLIP_TOKENS, width if isinstance(width, int) else width[0])
        }
        if config["addition_embed_type"] is not None:
            pooled = (
                config["projection_class_embeddings_input_dim"]
                - 6 * config["addition_time_embed_dim"]
            )
            shapes |= {"pooled": (pooled,), "time_ids": (6,)}
        return shapes

    def conditioner(
        self, config: Mapping[str, Any], folder: Path, image_shape: Shape
    ) -> Conditioner | None:
        if config["addition_embed_type"] is None:
            return TextPrompts(partial(encode_one, folder))
        index = folder / "model_index.json"
        zeroed = index.exists() and read_json(index).get("force_zeros_for_empty_prompt", True)
        return TextPrompts(
            partial(encode_two, folder, image_shape), ("context", "pooled") if zeroed else ()
        )

    def text_parts(self, folder: Path) -> tuple[str, ...]:
        two = (folder / "text_encoder_2").is_dir()
        return ("text_encoder", "tokenizer", *(("text_encoder_2", "tokenizer_2") if two else ()))


def encode_one(folder: Path, prompts: list[str]) -> dict[str, Tensor]:
    """The input of Stable Diffusion 1 and 2 by name: "context" (P, L, D), CLIP's last hidden state.

    Args:
        folder: The model's folder.
        prompts: P texts.

    Raises:
        GoodRtError: the encoder or tokenizer is missing.
    """
    return {"context": encode(folder, "", prompts, CLIP).last}


def encode_two(folder: Path, image_shape: Shape, prompts: list[str]) -> dict[str, Tensor]:
    """XL's inputs by name: "context" (P, L, D), both encoders' penultimate hidden states side by
    side, "pooled" (P, D'), the second's pooled embedding, and "time_ids" (P, 6), size, crop and
    target size.

    Args:
        folder: The model's folder.
        image_shape: (C, H, W) of the images.
        prompts: P texts.

    Raises:
        GoodRtError: an encoder or tokenizer is missing.
    """
    first, second = (encode(folder, suffix, prompts, CLIP) for suffix in ("", "_2"))
    assert (
        first.penultimate is not None
        and second.penultimate is not None
        and second.pooled is not None
    )
    sizes = torch.tensor([*image_shape[1:], 0, 0, *image_shape[1:]], dtype=torch.float32)
    return {
        "context": torch.cat([first.penultimate, second.penultimate], -1),
        "pooled": second.pooled.clone(),
        "time_ids": sizes.repeat(len(prompts), 1),
    }
