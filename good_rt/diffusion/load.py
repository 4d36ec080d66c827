"""From a folder, as diffusers saves it, to a `DiffusionModel`: which parts it has, and the family
of its network.

Each part has its folder (unet/ or transformer/, scheduler/, vae/, text_encoder/, …, with
or without a model_index.json); an unconditional UNet may lie beside its scheduler_config.json in
the folder itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from good_rt.diffusion.autoencoder import DecoderModule, load_autoencoder
from good_rt.diffusion.base import DiffusionModel, Family, Shape
from good_rt.diffusion.dit import DiT
from good_rt.diffusion.flux import Flux
from good_rt.diffusion.hub import local_folder
from good_rt.diffusion.parts import class_name, empty_part, fingerprint, load_diffusers_part
from good_rt.diffusion.process import load_process
from good_rt.diffusion.sd3 import Sd3
from good_rt.diffusion.stable_diffusion import StableDiffusion
from good_rt.diffusion.timesteps import fix_timesteps
from good_rt.diffusion.unet import UNet
from good_rt.errors import GoodRtError

FAMILIES: dict[str, Family] = {
    name: family
    for family in (UNet(), DiT(), StableDiffusion(), Sd3(), Flux())
    for name in family.classes
}
"""The family of each class of network, by the _class_name of its config.json."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of a model lie.

    Attributes:
        folder: The model's folder.
        network: Folder of the network.
        scheduler: The scheduler's config file.
        autoencoder: Folder of the autoencoder; None for a pixel model.
    """

    folder: Path
    network: Path
    scheduler: Path
    autoencoder: Path | None

    @property
    def class_name(self) -> str:
        return class_name(self.network)

    @property
    def family(self) -> Family:
        """The network's architecture.

        Raises:
            GoodRtError: good-rt does not run it.
        """
        name = self.class_name
        if name not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise GoodRtError(
                f"{self.network} holds a {name}, which good-rt does not run; it runs {known}"
            )
        return FAMILIES[name]

    @classmethod
    def of(cls, model: Path) -> Layout:
        """The layout of a folder, or of a name on the Hugging Face hub, which is downloaded.

        Args:
            model: The folder or name.

        Raises:
            GoodRtError: it holds no network.
        """
        folder = local_folder(model)
        candidates = [folder / "unet", folder / "transformer", folder]
        network = next((path for path in candidates if (path / "config.json").exists()), None)
        if network is None:
            raise GoodRtError(
                f"{folder} is not a diffusers folder: unet/config.json is missing, and "
                "transformer/config.json; give a folder as `save_pretrained` writes it, or a "
                "model's name on the hub"
            )
        scheduler = folder / "scheduler" / "scheduler_config.json"
        if network == folder and (folder / "scheduler_config.json").exists():
            scheduler = folder / "scheduler_config.json"
        autoencoder = next(
            (folder / name for name in ("vae", "vqvae") if (folder / name).is_dir()), None
        )
        return cls(folder, network, scheduler, autoencoder)

    def files(self) -> dict[str, Path]:
        """The parts that decide what the model computes, by name."""
        parts = {"unet": self.network, "scheduler": self.scheduler}
        if self.autoencoder is not None:
            parts["vae"] = self.autoencoder
        return parts | {name: self.folder / name for name in self.family.text_parts(self.folder)}


def load_diffusion(
    folder: Path, *, gradient_decoder: Path | None = None, image_size: int | None = None
) -> DiffusionModel:
    """A diffusion model from its folder, in evaluation mode on the CPU.

    Args:
        folder: A diffusers folder, or a name on the Hugging Face hub, which is downloaded where
            there is a connection.
        gradient_decoder: Folder of a light autoencoder (AutoencoderTiny) that replaces the decoder
            where gradients go through it.
        image_size: Height and width of the images, for networks that accept other sizes.

    Raises:
        GoodRtError: a part is missing, damaged, pickled, not finite, or of a class that good-rt
            does not run, or the parts do not fit together.
    """
    layout = Layout.of(folder)
    family = layout.family
    config = empty_part(layout.network).config
    family.check(config, layout.folder)
    network = load_diffusers_part(layout.network, family.classes)
    fix_timesteps(network)
    autoencoder = None if layout.autoencoder is None else load_autoencoder(layout.autoencoder)
    sample_shape = family.sample_shape(config)
    factor = 1 if autoencoder is None else autoencoder.factor
    if image_size is not None:
        sample_shape = resized(sample_shape, image_size, factor, family.patch)
    if autoencoder is not None:
        check_channels(layout.folder, autoencoder.latent_channels, sample_shape[0])
    image_shape = sample_shape if autoencoder is None else autoencoder.image_shape(sample_shape)
    if gradient_decoder is not None and autoencoder is None:
        raise GoodRtError(
            f"{layout.folder} is a pixel model, which has no decoder that {gradient_decoder} could "
            "stand in for"
        )
    light = (
        None
        if gradient_decoder is None
        else _light_decoder(gradient_decoder, sample_shape, image_shape)
    )
    tokens = (sample_shape[1] // family.patch) * (sample_shape[2] // family.patch)
    facts = [] if image_size is None else [f"image size {image_size}"]
    parts = layout.files() | ({} if gradient_decoder is None else {"light": gradient_decoder})
    return DiffusionModel(
        network=family.module(network, config, sample_shape).eval(),
        encoder=None if autoencoder is None else autoencoder.encoder,
        decoder=None if autoencoder is None else autoencoder.decoder,
        process=load_process(layout.scheduler, tokens, family.even_levels),
        conditioner=family.conditioner(config, layout.folder, image_shape),
        sample_shape=sample_shape,
        image_shape=image_shape,
        fingerprint=fingerprint(parts, *facts),
        light_decoder=light,
    )


def resized(shape: Shape, image_size: int, factor: int, patch: int = 1) -> Shape:
    """The sample's shape (C, H, W) for square images of another size.

    Args:
        shape: The sample's shape in the config.
        image_size: Height and width of the images.
        factor: Image size over sample size.
        patch: Height and width in the sample of one token.

    Raises:
        GoodRtError: the size is not a multiple of ``factor`` times ``patch``.
    """
    side = image_size // factor
    if side < 1 or image_size % (factor * patch):
        raise GoodRtError(
            f"the image size must be a multiple of {factor * patch}, not {image_size}"
        )
    return shape[0], side, side


def check_channels(folder: Path, latent: int, taken: int) -> None:
    """Checks that the autoencoder belongs to the network.

    Args:
        folder: The model's folder, for errors.
        latent: Channels of the autoencoder's latents.
        taken: Channels of the network's input.

    Raises:
        GoodRtError: the numbers differ.
    """
    if latent != taken:
        raise GoodRtError(
            f"{folder}: the VAE has {latent} latent channels, the UNet takes {taken}; they do not "
            "belong together"
        )


def _light_decoder(folder: Path, sample_shape: Shape, image_shape: Shape) -> DecoderModule:
    light = load_autoencoder(folder)
    check_channels(folder, light.latent_channels, sample_shape[0])
    if light.image_shape(sample_shape) != image_shape:
        raise GoodRtError(
            f"{folder} decodes to images of shape {light.image_shape(sample_shape)}, the model's "
            f"decoder to {image_shape}; both must agree"
        )
    return light.decoder
