"""Diffusion models from diffusers folders: UNet, VAE and scheduler config as what the sampler and the export need.

Only local files in safetensors are read. Weights may be stored in half precision; in memory they are float32.
"""

from __future__ import annotations

import hashlib
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from good_rt.errors import GoodRtError
from good_rt.files import read_json, sha256
from good_rt.schedule import FloatArray, Spacing, ddim_sigmas

if TYPE_CHECKING:
    from collections.abc import Iterator


class UNetModule(nn.Module):
    """(sample (N, C, H, W), timestep (N,) float32[, class_labels (N,) int64]) -> prediction (N, C, H, W)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        output: Tensor = self.unet(sample, timestep, class_labels=class_labels, return_dict=False)[0]
        return output


class DecoderModule(nn.Module):
    """latents (N, C, H, W), scaled as the UNet sees them -> images (N, c, H', W') in about [-1, 1]."""

    def __init__(self, vae: nn.Module, scaling_factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.vae, self.scaling_factor, self.shift = vae, scaling_factor, shift

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(latents / self.scaling_factor + self.shift, return_dict=False)[0]  # type: ignore[operator]
        return images


class EncoderModule(nn.Module):
    """images (N, c, H', W') in [-1, 1] -> latents (N, C, H, W), the posterior's mean scaled as the UNet sees it."""

    def __init__(self, vae: nn.Module, scaling_factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.vae, self.scaling_factor, self.shift = vae, scaling_factor, shift

    def forward(self, images: Tensor) -> Tensor:
        latents: Tensor = self.vae.encode(images, return_dict=False)[0].mean  # type: ignore[operator]
        return (latents - self.shift) * self.scaling_factor


@dataclass(frozen=True)
class DiffusionModel:
    """A diffusion model as PyTorch modules and its schedule.

    ``sample_shape`` (C, H, W) is what the UNet denoises, ``image_shape`` what comes out; for a pixel model they agree,
    and ``encoder`` and ``decoder`` are None.
    """

    unet: UNetModule
    encoder: EncoderModule | None
    decoder: DecoderModule | None
    alphas_cumprod: FloatArray
    prediction_type: str
    spacing: Spacing
    steps_offset: int
    final_alpha_cumprod: float
    clip: float | None
    sample_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    num_class_embeds: int | None
    fingerprint: str

    def sigmas(self, steps: int) -> FloatArray:
        """The (steps + 1,) σ that the model's own scheduler visits."""
        return ddim_sigmas(self.alphas_cumprod, steps, self.spacing, self.steps_offset, self.final_alpha_cumprod)


def load_diffusion(folder: Path) -> DiffusionModel:
    """Reads a diffusers folder with unet/, scheduler/ and, for a latent model, vae/.

    Raises GoodRtError when a part is missing, damaged, pickled, of an unknown class, or not finite.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

    if not (folder / "unet" / "config.json").exists():
        raise GoodRtError(f"{folder} is not a diffusers folder: unet/config.json is missing")
    unet = _load_part(UNet2DModel, folder / "unet")
    vae = _load_part(AutoencoderKL, folder / "vae") if (folder / "vae").is_dir() else None
    path = folder / "scheduler" / "scheduler_config.json"
    settings = read_json(path)
    with _quiet():
        try:
            scheduler = DDIMScheduler.from_config(settings)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise GoodRtError(f"{path} is not a scheduler's config that can be used ({error})") from None
    config = scheduler.config
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    sample_shape = (unet.config.in_channels, height, width)
    image_shape = sample_shape
    encoder = decoder = None
    if vae is not None:
        if vae.config.latent_channels != unet.config.in_channels:
            raise GoodRtError(
                f"{folder}: the VAE has {vae.config.latent_channels} latent channels, the UNet takes "
                f"{unet.config.in_channels}; they do not belong together"
            )
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        image_shape = (vae.config.out_channels, factor * height, factor * width)
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        encoder, decoder = EncoderModule(vae, scale, shift).eval(), DecoderModule(vae, scale, shift).eval()
    return DiffusionModel(
        unet=UNetModule(unet).eval(),
        encoder=encoder,
        decoder=decoder,
        alphas_cumprod=scheduler.alphas_cumprod.double().numpy(),
        prediction_type=config.prediction_type,
        spacing=config.timestep_spacing,
        steps_offset=config.steps_offset,
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        clip=config.clip_sample_range if config.clip_sample else None,
        sample_shape=sample_shape,
        image_shape=image_shape,
        num_class_embeds=unet.config.num_class_embeds,
        fingerprint=_fingerprint(folder),
    )


def _load_part(kind: Any, folder: Path) -> Any:
    """One diffusers model from a local folder, in safetensors alone."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != kind.__name__:
        raise GoodRtError(f"{folder} holds a {config.get('_class_name')}; so far good-rt runs {kind.__name__}")
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        pickled = [path.name for path in folder.glob("*.bin")]
        hint = f"; {pickled[0]} is a pickle and is not read: save it with safe_serialization=True" if pickled else ""
        raise GoodRtError(f"{folder} has no .safetensors weights{hint}")
    with _quiet():
        try:
            model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
        except Exception as error:  # diffusers raises many kinds; all of them mean that the files do not fit
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise GoodRtError(f"{folder} cannot be loaded ({first}); save it again with save_pretrained") from None
    model = model.float().eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise GoodRtError(f"{folder}: weight {name!r} has values that are not finite; train or convert it again")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' remarks on loading, which are not about anything that a user can change."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _fingerprint(folder: Path) -> str:
    """One hash of all configs and weights of the model."""
    digest = hashlib.sha256()
    for part in ("unet", "vae", "scheduler"):
        for path in sorted((folder / part).glob("*")):
            if path.suffix in {".json", ".safetensors"}:
                digest.update(f"{part}/{path.name}:{sha256(path)}\n".encode())
    return digest.hexdigest()
