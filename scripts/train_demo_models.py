"""Trains the demo's classifier, VAE and class-conditional latent UNet from Fashion-MNIST's classes
0 to 7; with `--near`, those of another split.

    python scripts/train_demo_models.py classifier --out build/demo
    python scripts/train_demo_models.py vae        --out build/demo
    python scripts/train_demo_models.py unet       --out build/demo  # needs the VAE
    python scripts/train_demo_models.py longer     --out build/demo  # needs the UNet
    python scripts/train_demo_models.py decoder    --out build/demo  # needs VAE and classifier
    python scripts/train_demo_models.py denoised   --out build/demo  # needs all of them
    python scripts/train_demo_models.py light      --out build/demo  # needs VAE and classifier
    python scripts/train_demo_models.py detailed   --out build/demo  # needs the UNet

Each stage keeps a checkpoint and resumes from it. Two CPU cores take about 20,
20, 50, 50, 5, 10, 10 and 40 minutes. For the shipped models `denoised` was also run once before
`longer`, and `detailed` once more, for 7,500 steps from a rate of 5e-4. `denoised` after `detailed`
made the samples no better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
import fashion_mnist
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DModel
from fitting import Fit, batches, fit, fit_unet
from safetensors.torch import load_file, save_file
from torch import Tensor

from good_rt.demo.network import SmallResNet

VAE_PHASES = ((2000, 1e-5, 0.3), (750, 5e-7, 0.1), (1200, 1e-8, 0.0))
"""(steps, weight of the KL term, weight of the L1 term): the KL term keeps the latents near normal
at first; as it falls the channels that it had silenced come to carry detail."""
NULL_CLASS = len(fashion_mnist.id_classes())


def images(split: fashion_mnist.Split) -> tuple[Tensor, Tensor]:
    """(N, 1, 32, 32) float in [-1, 1] and (N,) int64 labels."""
    x = torch.from_numpy(split.images).float()[:, None] / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(split.labels).long()


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flips half of the images and shifts each by up to 2 pixels."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    moves = torch.randint(0, 5, (len(x), 2), generator=generator)
    padded = F.pad(x, (2, 2, 2, 2), value=-1.0)
    rows = moves[:, :1] + torch.arange(32)
    columns = moves[:, 1:] + torch.arange(32)
    return padded[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][
        :, None
    ]


@click.group()
def main() -> None:
    """Trains one of the demo's models."""


def stage(function: Callable[..., None]) -> click.Command:
    """The options every stage has."""
    options: Iterable[Callable[[Callable[..., None]], Callable[..., None]]] = (
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            required=True,
            help="Folder of checkpoints and models.",
        ),
        click.option(
            "--source",
            type=click.Path(path_type=Path),
            default=fashion_mnist.SOURCE,
            show_default=True,
        ),
        click.option(
            "--near",
            type=(int, int),
            default=fashion_mnist.DEMO_NEAR,
            show_default=True,
            help="The two classes that no model sees.",
        ),
        click.option("--threads", default=2, show_default=True),
        click.option(
            "--steps", type=int, help="Optimiser steps; the default is what the shipped model had."
        ),
    )
    for option in options:
        function = option(function)
    return main.command()(function)


def prepare(
    out: Path, source: Path, near: tuple[int, int], threads: int
) -> dict[str, tuple[Tensor, Tensor]]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    return {name: images(split) for name, split in fashion_mnist.load(source, near).items()}


def erase(x: Tensor, generator: torch.Generator) -> Tensor:
    """Blackens a square of 4 to 12 pixels at a random place in half of the images (random erasing,
    1708.04896)."""
    side, top, left = (
        torch.randint(*bounds, (len(x), 1), generator=generator)
        for bounds in ((4, 13), (0, 28), (0, 28))
    )
    side = side * (torch.rand(len(x), 1, generator=generator) < 0.5)
    at = torch.arange(32)
    rows, columns = (at >= top) & (at < top + side), (at >= left) & (at < left + side)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], -1.0)


@stage
def classifier(
    out: Path, source: Path, near: tuple[int, int], threads: int, steps: int | None
) -> None:
    """SmallResNet with SGD, flips, shifts and random erasing, in bfloat16; its weights' moving
    average is kept."""
    data = prepare(out, source, near, threads)
    x, y = data["train"]
    model = SmallResNet().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(erase(augment(x[index], generator), generator))
        return F.cross_entropy(logits.float(), y[index])

    plan = Fit("classifier", out, 128, steps or 30 * (len(x) // 128), ema=0.999, clip=5.0)
    fit(model, optimiser, loss, len(x), plan)
    for name in ("held_out", "test"):
        guess = batches(model, data[name][0]).argmax(1)
        click.echo(f"classifier accuracy on {name}: {(guess == data[name][1]).float().mean():.4f}")
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, out / "classifier.safetensors"
    )


@stage
def vae(out: Path, source: Path, near: tuple[int, int], threads: int, steps: int | None) -> None:
    """AutoencoderKL, 32x32x1 to 8x8x8."""
    data = prepare(out, source, near, threads)
    x, _ = data["train"]
    model = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        sample_size=32,
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).to(memory_format=torch.channels_last)
    for phase, (phase_steps, kl_weight, l1_weight) in enumerate(VAE_PHASES):
        optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)

        def loss(
            index: Tensor, generator: torch.Generator, kl: float = kl_weight, l1: float = l1_weight
        ) -> Tensor:
            batch = augment(x[index], generator)
            posterior = model.encode(batch).latent_dist
            decoded = model.decode(posterior.sample(generator)).sample
            return (
                F.mse_loss(decoded, batch)
                + l1 * F.l1_loss(decoded, batch)
                + kl * posterior.kl().mean()
            )

        fit(model, optimiser, loss, len(x), Fit(f"vae{phase}", out, 48, steps or phase_steps))
        model.train().requires_grad_(True)
    model.eval().requires_grad_(False)
    latents = batches(lambda part: model.encode(part).latent_dist.mean, x[:8000])
    model.register_to_config(scaling_factor=1 / latents.std().item())
    test = data["test"][0]
    decoded = batches(lambda part: model.decode(model.encode(part).latent_dist.mean).sample, test)
    click.echo(
        f"vae test MSE {F.mse_loss(decoded, test):.5f}, latent std by channel "
        f"{latents.std(dim=(0, 2, 3))}"
    )
    model.save_pretrained(out / "vae")


def frozen_classifier(out: Path) -> SmallResNet:
    """What the stage ``classifier`` made."""
    network = SmallResNet()
    network.load_state_dict(load_file(out / "classifier.safetensors"))
    return network.eval().requires_grad_(False)


def scaled_latents(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Images (N, 1, 32, 32) -> their latents (N, 8, 8, 8) as the UNet sees them."""
    return batches(lambda part: vae.encode(part).latent_dist.mean * vae.config.scaling_factor, x)


def perceptual_distance(network: SmallResNet, first: Tensor, second: Tensor) -> Tensor:
    """Squared difference of the network's feature maps, relative to the second's, summed over its
    stages."""
    a, b = network.stem(first), network.stem(second)
    total = torch.zeros(())
    for block in network.stages:
        a, b = block(a), block(b)
        total = total + F.mse_loss(a, b) / b.square().mean()
    return total


@stage
def decoder(
    out: Path, source: Path, near: tuple[int, int], threads: int, steps: int | None
) -> None:
    """Goes on with the VAE's decoder alone, on slightly noisy latents: less blur in what the
    classifier looks at."""
    data = prepare(out, source, near, threads)
    x, _ = data["train"]
    model = AutoencoderKL.from_pretrained(out / "vae").to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(False)
    network = frozen_classifier(out)
    parts = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    optimiser = torch.optim.AdamW(parts, 1e-3, weight_decay=1e-4)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        batch = augment(x[index], generator)
        with torch.no_grad():
            latents = model.encode(batch).latent_dist.mean
        noise = 0.05 / model.config.scaling_factor * torch.randn(latents.shape, generator=generator)
        decoded = model.decode(latents + noise).sample
        return F.mse_loss(decoded, batch) + 0.01 * perceptual_distance(network, decoded, batch)

    fit(model, optimiser, loss, len(x), Fit("decoder", out, 48, steps or 1_500))
    test = data["test"][0]
    decoded = batches(lambda part: model.decode(model.encode(part).latent_dist.mean).sample, test)
    click.echo(f"vae test MSE {F.mse_loss(decoded, test):.5f}")
    model.save_pretrained(out / "vae")


@stage
def light(out: Path, source: Path, near: tuple[int, int], threads: int, steps: int | None) -> None:
    """A small AutoencoderTiny for the VAE's latents, through whose decoder guidance's gradients go.

    Most of its blocks are where the latents are small: a block at full size would cost as much as
    16 of those.
    """
    data = prepare(out, source, near, threads)
    x, _ = data["train"]
    teacher = AutoencoderKL.from_pretrained(out / "vae").eval()
    latents = scaled_latents(teacher, x)
    network = frozen_classifier(out)
    model = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        latent_channels=latents.shape[1],
        encoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        decoder_block_out_channels=(16, 16, 16),
        num_decoder_blocks=(4, 1, 0),
    ).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-4)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        batch, z = x[index], latents[index]
        decoded = model.decode(z + 0.05 * torch.randn(z.shape, generator=generator)).sample
        encoded = F.mse_loss(
            model.encode(batch).latents, z
        )  # unused here, but a whole autoencoder is what is saved
        return (
            F.mse_loss(decoded, batch)
            + 0.01 * perceptual_distance(network, decoded, batch)
            + 0.01 * encoded
        )

    fit(model, optimiser, loss, len(x), Fit("light", out, 64, steps or 4_000))
    test = data["test"][0]
    decoded = batches(lambda part: model.decode(part).sample, scaled_latents(teacher, test))
    click.echo(f"light decoder's test MSE {F.mse_loss(decoded, test):.5f}")
    model.save_pretrained(out / "light")


@stage
def unet(out: Path, source: Path, near: tuple[int, int], threads: int, steps: int | None) -> None:
    """UNet2DModel with v-prediction; a tenth of the labels is dropped for classifier-free
    guidance."""
    data = prepare(out, source, near, threads)
    x, y = data["train"]
    encoder = AutoencoderKL.from_pretrained(out / "vae").eval()
    cache = out / "latents.safetensors"
    if not cache.exists():
        save_file(
            {"latents": scaled_latents(encoder, torch.cat([x, x.flip(3)])).contiguous()}, cache
        )
    latents = load_file(cache)["latents"]
    labels = torch.cat([y, y])
    channels = latents.shape[1]
    model = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2,
        norm_num_groups=16,
        attention_head_dim=32,
        num_class_embeds=NULL_CLASS + 1,
    )
    plan = Fit("unet", out, 96, steps or 7_500, ema=0.999)
    fit_unet(model, latents, labels, NULL_CLASS, out, plan)


@stage
def longer(out: Path, source: Path, near: tuple[int, int], threads: int, steps: int | None) -> None:
    """Goes on with the UNet, on images as they are: garments face one way, and mirrored ones are no
    longer wanted."""
    data = prepare(out, source, near, threads)
    x, y = data["train"]
    latents = scaled_latents(AutoencoderKL.from_pretrained(out / "vae").eval(), x)
    model = UNet2DModel.from_pretrained(out / "unet")
    plan = Fit("longer", out, 96, steps or 16_000, ema=0.999)
    fit_unet(model, latents, y, NULL_CLASS, out, plan, lr=6e-4)


@stage
def detailed(
    out: Path, source: Path, near: tuple[int, int], threads: int, steps: int | None
) -> None:
    """Goes on with the UNet, most often at the noise levels where details are decided."""
    data = prepare(out, source, near, threads)
    x, y = data["train"]
    latents = scaled_latents(AutoencoderKL.from_pretrained(out / "vae").eval(), x)
    model = UNet2DModel.from_pretrained(out / "unet")
    plan = Fit("detailed", out, 96, steps or 12_000, ema=0.999)
    fit_unet(model, latents, y, NULL_CLASS, out, plan, lr=6e-4, details=True)


def denoise_last(
    unet: UNet2DModel, scheduler: DDIMScheduler, z: Tensor, labels: Tensor, steps: int
) -> Tensor:
    """Noises real latents as far as the last ``steps`` of 25 sampling steps begin, and samples from
    there (CFG 1.2)."""
    scheduler.set_timesteps(25)
    times = scheduler.timesteps[-steps:]
    z = scheduler.add_noise(z, torch.randn_like(z), times[:1])
    for t in times:
        wanted, free = (
            unet(z, t, class_labels=labels).sample,
            unet(z, t, torch.full_like(labels, NULL_CLASS)).sample,
        )
        z = scheduler.step(free + 1.2 * (wanted - free), t, z, eta=1.0).prev_sample
    return z


@stage
def denoised(
    out: Path, source: Path, near: tuple[int, int], threads: int, steps: int | None
) -> None:
    """Goes on with the decoder on latents that the UNet denoised, so that it makes up for what the
    UNet leaves out."""
    data = prepare(out, source, near, threads)
    x, y = data["train"]
    model = AutoencoderKL.from_pretrained(out / "vae").to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(False)
    scale = model.config.scaling_factor
    cache = out / "denoised.safetensors"
    if not cache.exists():
        unet = UNet2DModel.from_pretrained(out / "unet").eval()
        scheduler = DDIMScheduler.from_pretrained(out / "scheduler")
        index = torch.randperm(len(x))[:12_000]
        parts = []
        with torch.no_grad():
            for number, part in enumerate(index.split(250)):
                latents = model.encode(x[part]).latent_dist.mean * scale
                parts.append(
                    denoise_last(unet, scheduler, latents, y[part], (2, 2, 3, 4, 5)[number % 5])
                )
        save_file({"latents": torch.cat(parts).contiguous(), "index": index}, cache)
    pairs = load_file(cache)
    network = frozen_classifier(out)
    trained = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    optimiser = torch.optim.AdamW(trained, 5e-4, weight_decay=1e-4)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        part = torch.randint(len(pairs["latents"]), index.shape, generator=generator)
        batch, target = augment(x[index], generator), x[pairs["index"][part]]
        with torch.no_grad():
            latents = model.encode(batch).latent_dist.mean
        decoded = model.decode(torch.cat([latents, pairs["latents"][part] / scale])).sample
        rebuilt, made = decoded.chunk(2)
        exact = F.mse_loss(rebuilt, batch) + 0.25 * F.mse_loss(made, target)
        return exact + 0.03 * perceptual_distance(network, decoded, torch.cat([batch, target]))

    fit(model, optimiser, loss, len(x), Fit("denoised", out, 32, steps or 2_000))
    test = data["test"][0]
    decoded = batches(lambda part: model.decode(model.encode(part).latent_dist.mean).sample, test)
    click.echo(f"vae test MSE {F.mse_loss(decoded, test):.5f}")
    model.save_pretrained(out / "vae")


if __name__ == "__main__":
    main()
