"""Autoencoders of latent models as two modules: images to latents as the network sees them, and
back.

`AutoencoderKL` is what most models ship, `VQModel` what the first latent models did, and
`AutoencoderTiny` a light one that also stands in for another's decoder where gradients go through
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from good_rt.diffusion.parts import load_diffusers_part
from good_rt.errors import GoodRtError

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


class DecoderModule(nn.Module):
    """latents (N, C, H, W) as the network sees them -> images (N, c, H', W') in about [-1, 1].

    Args:
        vae: A diffusers autoencoder.
        scaling_factor: The network's latents over the autoencoder's, after the shift.
        shift: Subtracted from the autoencoder's latents before scaling.
    """

    def __init__(self, vae: nn.Module, scaling_factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.vae, self.scaling_factor, self.shift = vae, scaling_factor, shift

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(
            latents / self.scaling_factor + self.shift, return_dict=False
        )[0]  # type: ignore[operator]
        return images


class EncoderModule(nn.Module):
    """images (N, c, H', W') in [-1, 1] -> latents (N, C, H, W) as the network sees them, the
    posterior's mean.

    Args:
        vae: A diffusers autoencoder.
        scaling_factor: See `DecoderModule`.
        shift: See `DecoderModule`.
    """

    def __init__(self, vae: nn.Module, scaling_factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.vae, self.scaling_factor, self.shift = vae, scaling_factor, shift

    def forward(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode(images, return_dict=False)[0]  # type: ignore[operator]
        latents: Tensor = encoded if isinstance(encoded, Tensor) else encoded.mean
        return (latents - self.shift) * self.scaling_factor


@dataclass(frozen=True)
class Autoencoder:
    """Both halves of an autoencoder.

    Attributes:
        encoder: Images to latents.
        decoder: Latents to images.
        latent_channels: Channels of the latents.
        image_channels: Channels of the images.
        factor: Height of an image over that of its latents.
    """

    encoder: EncoderModule
    decoder: DecoderModule
    latent_channels: int
    image_channels: int
    factor: int

    def image_shape(self, sample_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, H', W') of the images.

        Args:
            sample_shape: (C, H, W) of the latents.
        """
        return self.image_channels, self.factor * sample_shape[1], self.factor * sample_shape[2]


def load_autoencoder(folder: Path) -> Autoencoder:
    """Reads an autoencoder's folder.

    Raises:
        GoodRtError: it cannot be loaded, or its latents are normalised by statistics, which good-rt
            does not support.
    """
    vae = load_diffusers_part(folder, AUTOENCODERS)
    latent_channels, image_channels, factor = shapes_of(vae.config, folder)
    scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    return Autoencoder(
        EncoderModule(vae, scale, shift).eval(), DecoderModule(vae, scale, shift).eval(),
        latent_channels, image_channels, factor,
    )  # fmt: skip


def shapes_of(config: dict[str, object], folder: Path) -> tuple[int, int, int]:
    """Latent channels, image channels, and the height of an image over that of its latents.

    Args:
        config: The autoencoder's config.
        folder: Its folder, for errors.

    Raises:
        GoodRtError: the latents are normalised by statistics.
    """
    if config.get("latents_mean") is not None:
        raise GoodRtError(
            f"{folder}: latents_mean and latents_std are not known to good-rt; use another "
            "autoencoder"
        )
    blocks = config.get("decoder_block_out_channels") or config.get("block_out_channels")
    latents, images = config.get("latent_channels"), config.get("out_channels")
    assert isinstance(blocks, list | tuple) and isinstance(latents, int) and isinstance(images, int)
    return latents, images, 2 ** (len(blocks) - 1)
