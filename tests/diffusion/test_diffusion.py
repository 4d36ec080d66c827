"""diffusers folders against diffusers' own pipeline of calls, and each kind of damage by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from good_rt.diffusion import load_diffusion
from good_rt.errors import GoodRtError

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(model_dir, tmp_path / "model")


def test_a_latent_model_computes_what_diffusers_does(model_dir: Path) -> None:
    model = load_diffusion(model_dir)
    assert (model.sample_shape, model.image_shape, model.num_class_embeds) == (
        (4, 8, 8),
        (1, 32, 32),
        9,
    )
    unet, vae = (
        UNet2DModel.from_pretrained(model_dir / "unet"),
        AutoencoderKL.from_pretrained(model_dir / "vae"),
    )
    rng = torch.Generator().manual_seed(0)
    latents, images = (
        torch.randn(3, 4, 8, 8, generator=rng),
        torch.rand(3, 1, 32, 32, generator=rng) * 2 - 1,
    )
    t, labels = torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 8, 3])
    assert model.encoder is not None and model.decoder is not None
    with torch.no_grad():
        torch.testing.assert_close(
            model.network(latents, t, labels), unet(latents, t, class_labels=labels).sample
        )
        torch.testing.assert_close(model.decoder(latents), vae.decode(latents / 0.8).sample)
        torch.testing.assert_close(model.encoder(images), vae.encode(images).latent_dist.mean * 0.8)
    assert not any(
        p.requires_grad for p in [*model.network.parameters(), *model.decoder.parameters()]
    )


def test_the_levels_are_those_of_diffusers(model_dir: Path, pixel_dir: Path) -> None:
    for path, offset_end in ((model_dir, True), (pixel_dir, True)):
        model, scheduler = load_diffusion(path), DDIMScheduler.from_pretrained(path / "scheduler")
        scheduler.set_timesteps(10)
        alphas = scheduler.alphas_cumprod.double().numpy()[scheduler.timesteps.numpy()]
        np.testing.assert_allclose(model.sigmas(10)[:-1], np.sqrt((1 - alphas) / alphas), rtol=1e-6)
        assert (model.sigmas(10)[-1] == 0) == offset_end
        assert model.prediction_type == scheduler.config.prediction_type


def test_a_pixel_model_has_no_vae(pixel_dir: Path) -> None:
    model = load_diffusion(pixel_dir)
    assert model.encoder is None and model.decoder is None
    assert model.sample_shape == model.image_shape == (1, 32, 32)
    assert model.num_class_embeds is None
    assert model.clip == 1.0


def test_the_fingerprint_is_that_of_configs_and_weights(
    folder: Path, model_dir: Path, tmp_path: Path
) -> None:
    first = load_diffusion(model_dir).fingerprint
    assert load_diffusion(folder).fingerprint == first
    (folder / "README.md").write_text("does not count")
    assert load_diffusion(folder).fingerprint == first
    state = load_file(folder / UNET)
    state["conv_in.bias"][0] += 1e-3
    save_file(state, folder / UNET, {"format": "pt"})
    second = load_diffusion(folder).fingerprint
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("trailing", "leading"))
    assert len({first, second, load_diffusion(folder).fingerprint}) == 3


def edit(part: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / part).read_text())
        change(values)
        (folder / part).write_text(json.dumps(values))

    return apply


def damage_weight(folder: Path) -> None:
    state = load_file(folder / UNET)
    state["conv_in.weight"].view(-1)[7] = torch.nan
    save_file(state, folder / UNET, {"format": "pt"})


def lose_weight(folder: Path) -> None:
    state = load_file(folder / UNET)
    del state["conv_in.bias"]
    save_file(state, folder / UNET, {"format": "pt"})


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / UNET), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET).unlink()


def other_vae(folder: Path) -> None:
    AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=6, block_out_channels=(4,), norm_num_groups=4
    ).save_pretrained(folder / "vae")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"model is not a diffusers folder: unet/config\.json is missing"),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), r"unet/config\.json is missing"),
    "no scheduler": (
        lambda f: shutil.rmtree(f / "scheduler"),
        r"cannot read .*scheduler_config\.json",
    ),
    "empty vae": (
        lambda f: (f / "vae" / "config.json").unlink(),
        r"cannot read .*vae/config\.json",
    ),
    "no weights": (lambda f: (f / UNET).unlink(), r"unet has no \.safetensors weights$"),
    "pickle": (
        pickle_weights,
        r"diffusion_pytorch_model\.bin is a pickle and is not read: .*safe_serialization=True",
    ),
    "config no JSON": (
        lambda f: (f / "unet/config.json").write_text("x"),
        r"unet/config\.json is not valid JSON",
    ),
    "other class": (
        edit("unet/config.json", lambda v: v.update(_class_name="UNet1DModel")),
        "unet holds a UNet1DModel, which good-rt does not run; it runs UNet2DModel, ",
    ),
    "weight missing": (
        lose_weight,
        r"unet lacks the weight 'conv_in\.bias' \(1 missing in all\)",
    ),
    "NaN": (damage_weight, r"unet: weight 'conv_in\.weight' has values that are not finite"),
    "truncated": (
        lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:5000]),
        r"safetensors is not a safetensors file \(.+\); download it again",
    ),
    "other widths": (
        edit("unet/config.json", lambda v: v.update(block_out_channels=[16, 16])),
        r"unet: weight .+ has shape \(.+\), and config.json describes \(.+\); it belongs",
    ),
    "vae of another": (
        other_vae,
        "the VAE has 6 latent channels, the UNet takes 4; they do not belong together",
    ),
    "scheduler": (
        edit("scheduler/scheduler_config.json", lambda v: v.update(beta_schedule="sinus")),
        r"is not a scheduler's config that can be used \(.*sinus",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_is_named_in_one_line(folder: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(folder)
    with pytest.raises(GoodRtError, match=message) as caught:
        load_diffusion(folder)
    assert "\n" not in str(caught.value)
