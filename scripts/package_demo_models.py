"""Packs what train_demo_models.py made into the package: half precision, diffusers folders,
classifier folder.

python scripts/package_demo_models.py --source build/demo --out good_rt/demo/assets/models
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import fashion_mnist
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file

from good_rt.classifier import Classifier, ClassifierConfig, save_classifier
from good_rt.demo.network import SmallResNet


@click.command()
@click.option("--source", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--near", type=(int, int), default=fashion_mnist.DEMO_NEAR, show_default=True)
def main(source: Path, out: Path, near: tuple[int, int]) -> None:
    """Writes OUT/diffusion, OUT/gradient_decoder and OUT/classifier."""
    shutil.rmtree(out, ignore_errors=True)
    for kind, name, folder in (
        (UNet2DModel, "unet", out / "diffusion" / "unet"),
        (AutoencoderKL, "vae", out / "diffusion" / "vae"),
        (AutoencoderTiny, "light", out / "gradient_decoder"),
    ):
        kind.from_pretrained(source / name).half().save_pretrained(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # where it was trained is nobody's business
        if kind is AutoencoderTiny:
            config.pop(
                "block_out_channels"
            )  # diffusers writes it, and warns of it when it reads it
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    DDIMScheduler.from_pretrained(source / "scheduler").save_pretrained(
        out / "diffusion" / "scheduler"
    )
    names = tuple(fashion_mnist.NAMES[label] for label in fashion_mnist.id_classes(near))
    described = ClassifierConfig("small_resnet", names, channels=1, image_size=32)
    network = SmallResNet()
    network.load_state_dict(load_file(source / "classifier.safetensors"))
    save_classifier(Classifier(network, described), out / "classifier")


if __name__ == "__main__":
    main()
