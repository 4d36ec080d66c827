"""Stable Diffusion's real width on a CPU: export with parity, gradients included, and one guided step; time and memory.

    python benchmarks/scale.py --work build/scale

The architecture of Stable Diffusion 1.5 (860 M parameters, 512x512 pixels, 64x64 latents) with random weights, its
gradients through a light decoder (AutoencoderTiny). Every part is a command in a process of its own, whose peak memory
is its own; an interrupted benchmark goes on in the same folder. It takes about 12 GB of disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from record import Bar, write_result
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from good_rt.classifier import Classifier, Resize, load_classifier, save_classifier
from good_rt.demo import assets
from good_rt.export.manifest import Manifest
from good_rt.files import read_json, write_json

IMAGES = 12
"""Pictures of each class in the folder that stands for the user's."""
BAR_GIB = 20


def make_model(folder: Path) -> None:
    """The diffusers folder of a Stable Diffusion 1.5 with random weights, in half precision as it is published."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
        scaling_factor=0.18215,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    parts = [part.half() for part in (vae, text, unet)]
    StableDiffusionPipeline(
        parts[0], parts[1], _tokenizer(folder / "tokenizer"), parts[2], scheduler, None, None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    AutoencoderTiny().half().save_pretrained(folder / "light")


def _tokenizer(folder: Path) -> Any:
    """Letters alone, since CLIP's own vocabulary is not at hand."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz-"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>", **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


def make_classifier(folder: Path) -> None:
    """The demo's classifier, which shrinks what it is given to its 32 pixels."""
    demo = load_classifier(assets.CLASSIFIER)
    size = demo.config.image_size
    save_classifier(Classifier(demo.network, replace(demo.config, resize=Resize(size, size, "bicubic"))), folder)


def make_images(folder: Path) -> None:
    images = assets.load_images("held_out")
    assert images.labels is not None
    for label, name in enumerate(assets.CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(images.images[images.labels == label][:IMAGES]):
            Image.fromarray(pixels[..., 0]).save(folder / name / f"{number}.png")


def measured(command: list[str], out: Path) -> dict[str, float]:
    """Runs a command and returns its seconds and peak memory; once, then from the folder."""
    path = out.with_name(f"{out.name}.measured.json")
    if not path.exists():
        began = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise click.ClickException(f"`{' '.join(command)}` ended with status {status}")
        write_json(path, {"seconds": time.perf_counter() - began, "peak_gib": usage.ru_maxrss / 2**20})
    return read_json(path)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default="build/scale", show_default=True)
def main(work: Path) -> None:
    """Measures, and writes benchmarks/results/scale.json."""
    work.mkdir(parents=True, exist_ok=True)
    model, classifier, images, engines = (work / name for name in ("model", "classifier", "images", "engines"))
    for path, make in ((model, make_model), (classifier, make_classifier), (images, make_images)):
        if not (done := path.with_name(f"{path.name}.done")).exists():
            make(path)
            done.touch()
    common = ["--model", str(model), "--classifier", str(classifier), "--id", str(images)]
    light = ["--gradient-decoder", str(model / "light")]
    one = ["-n", "1", "--batch", "1", "--steps", "1", "--no-twins", "--guidance", "img"]
    commands = {
        "inspect": ["inspect", str(model), "--json"],
        "export": ["export", *common, *light, "--parity-batch", "1", "-o", str(engines)],
        "step, torch": ["generate", *common, *light, *one, "--mu", "0.1", "--rho", "0.1", "--engine", "torch"],
        "step, engines": [
            "generate", *common, *light, *one, "--mu", "0.1", "--rho", "0.1", "--engines", str(engines),
            "--gradients", "engine",
        ],
    }  # fmt: skip
    found = {}
    for name, arguments in commands.items():
        out = work / name.replace(", ", "-")
        more = ["-o", str(out)] if arguments[0] == "generate" else []
        found[name] = measured(["good-rt", *arguments, *more], out)
        click.echo(f"{name}: {found[name]['seconds']:.0f} s, {found[name]['peak_gib']:.1f} GiB")
    manifest = Manifest.read(engines)
    parity = {
        graph: max(row.max_relative for row in manifest.parity if row.graph == graph)
        for graph in dict.fromkeys(row.graph for row in manifest.parity)
    }
    figures = {
        "cores": len(os.sched_getaffinity(0)),
        "commands": found,
        "parity": parity,
        "gigabytes": {name: entry.bytes / 1e9 for name, entry in manifest.graphs.items()},
        "external": {name: list(entry.data) for name, entry in manifest.graphs.items() if entry.data},
    }
    peak = max(row["peak_gib"] for row in found.values())
    bars = [
        Bar("peak memory, GiB", peak, "<=", BAR_GIB),
        Bar("largest relative difference of any graph", max(parity.values()), "<=", 1e-3),
    ]
    write_result("scale", figures, bars)


if __name__ == "__main__":
    main()
