"""Stable Diffusion 1's architecture with random weights, and what a user would bring along, for
benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from good_rt.classifier import Classifier, Resize, load_classifier, save_classifier
from good_rt.demo import assets

IMAGES = 12
"""Pictures of each class in the folder that stands for the user's."""


@dataclass(frozen=True)
class Widths:
    """Channels of UNet and VAE by level and of the light decoder, the text's width and layers, and
    the latents' size.

    The VAE shrinks by 8.
    """

    unet: tuple[int, ...]
    vae: tuple[int, ...]
    light: int
    text: int
    text_layers: int
    latent_size: int


FULL = Widths(
    (320, 640, 1280, 1280), (128, 256, 512, 512), light=64, text=768, text_layers=12, latent_size=64
)
"""Stable Diffusion 1.5: 860 M parameters in the UNet, 512x512 pixels."""
REDUCED = Widths(
    (64, 128, 256, 256), (32, 64, 128, 128), light=16, text=128, text_layers=2, latent_size=8
)


def make_all(folder: Path, widths: Widths) -> tuple[Path, Path, Path]:
    """Folders of the model, of a classifier and of images that are of its classes, each made
    once."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "model", folder / "classifier", folder / "images"
    makers = partial(make_model, widths=widths), make_classifier, make_images
    for path, make in zip(paths, makers, strict=True):
        if not (done := path.with_name(f"{path.name}.done")).exists():
            make(path)
            done.touch()
    return paths


def make_model(folder: Path, widths: Widths) -> None:
    """The diffusers folder of a Stable Diffusion 1 with random weights, in half precision as it is
    published."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=widths.latent_size,
        block_out_channels=widths.unet,
        cross_attention_dim=widths.text,
    )
    vae = AutoencoderKL(
        block_out_channels=widths.vae, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
        sample_size=8 * widths.latent_size, scaling_factor=0.18215,
    )  # fmt: skip
    config = CLIPTextConfig(
        hidden_size=widths.text,
        intermediate_size=4 * widths.text,
        num_hidden_layers=widths.text_layers,
        num_attention_heads=widths.text // 64,
    )
    text = CLIPTextModel(config)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = [part.half() for part in (vae, text, unet)]
    StableDiffusionPipeline(
        parts[0], parts[1], _tokenizer(folder / "tokenizer"), parts[2], scheduler, None, None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    channels = (widths.light,) * 4
    light = AutoencoderTiny(
        encoder_block_out_channels=channels, decoder_block_out_channels=channels
    )
    light.half().save_pretrained(light_decoder(folder))


def light_decoder(model: Path) -> Path:
    """Where the model's light decoder is."""
    return model / "light"


def _tokenizer(folder: Path) -> Any:
    """Letters alone, since CLIP's own vocabulary is not at hand."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz-"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({word: number for number, word in enumerate(words)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        **ends,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


def make_classifier(folder: Path) -> None:
    """The demo's classifier, which shrinks what it is given to its 32 pixels."""
    demo = load_classifier(assets.CLASSIFIER)
    size = demo.config.image_size
    save_classifier(
        Classifier(demo.network, replace(demo.config, resize=Resize(size, size, "bicubic"))), folder
    )


def make_images(folder: Path) -> None:
    images = assets.load_images("held_out")
    assert images.labels is not None
    for label, name in enumerate(assets.CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(images.images[images.labels == label][:IMAGES]):
            Image.fromarray(pixels[..., 0]).save(folder / name / f"{number}.png")
