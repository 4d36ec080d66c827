"""A small stand-in of OpenOOD's data folder, with shipped images, and a checkpoint with random
weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from good_rt.demo import assets

COUNTS = {"train": 60, "val": 20, "test": 20}
OOD_SETS = {
    "cifar10": {"cifar100": "near", "tin": "validation", "mnist": "mnist", "svhn": "emoji"}
    | {"texture": "textures", "places365": "photos"},
    "imagenet200": {"ssb_hard": "near", "ninco": "validation", "inaturalist": "photos"}
    | {"textures": "textures", "openimage_o": "emoji"},
}
"""OpenOOD's test sets -> the shipped images that stand for them."""
SOURCES = {"train": "train", "val": "held_out", "test": "test"}


def write_tree(data: Path, benchmark: str, ood_images: int = 10) -> None:
    """Writes lists and images of a benchmark in OpenOOD's layout.

    Args:
        data: The folder.
        benchmark: A key of `OOD_SETS`.
        ood_images: Images of each OOD set; every other one is wider than high.
    """
    lists = data / "benchmark_imglist" / benchmark
    lists.mkdir(parents=True)
    large = benchmark == "imagenet200"
    id_folder = "images_largescale" if large else "images_classic"
    for part, count in COUNTS.items():
        images = assets.load_images(SOURCES[part])
        write_list(
            data / id_folder,
            lists / f"{part}_{benchmark}.txt",
            images.images[:count],
            [int(label) for label in images.labels[:count]],
        )
    for name, source in OOD_SETS[benchmark].items():
        folder = "images_classic" if name == "textures" else id_folder
        images = assets.load_images(source).images[:ood_images]
        wide = [np.pad(image, ((0, 0), (0, 7 * (n % 2)), (0, 0))) for n, image in enumerate(images)]
        write_list(data / folder, lists / f"test_{name}.txt", wide, [-1] * len(wide))


def write_list(
    folder: Path, path: Path, images: Sequence[NDArray[np.uint8]], labels: Sequence[int]
) -> None:
    """Writes images as PNG files, and their list."""
    lines = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{path.stem}/{label}/{number:04}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / name)
        lines.append(f"{name} {label}\n")
    path.write_text("".join(lines))


def write_checkpoint(network: nn.Module, path: Path, seed: int = 0) -> None:
    """Writes a network's random weights as OpenOOD does: a pickled state dict."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
