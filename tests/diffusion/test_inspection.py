"""What `inspect` says of a folder, without its weights, against the model that is loaded from
it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from diffusers import AutoencoderTiny, UNet2DModel

from good_rt.diffusion import load_diffusion
from good_rt.diffusion.inspection import header, inspect_model
from good_rt.errors import GoodRtError


def test_a_latent_model(model_dir: Path) -> None:
    found, model = inspect_model(model_dir), load_diffusion(model_dir)
    assert found.runs and found.kind == "UNet, unconditional or by class label"
    assert (found.sample_shape, found.image_shape) == (model.sample_shape, model.image_shape)
    assert model.decoder is not None
    counts = [
        sum(p.numel() for p in module.parameters()) for module in (model.network, model.decoder)
    ]
    assert [part.parameters for part in found.parts] == counts
    assert [part.class_name for part in found.parts] == ["UNet2DModel", "AutoencoderKL"]
    assert {part.stored for part in found.parts} == {("F32",)}
    assert found.weights_bytes == 4 * sum(counts)
    assert (
        found.condition == "9 class labels" and found.guidance_free and not found.learned_variance
    )
    assert found.process == "1000 discrete timesteps, epsilon"
    names = {graph.name: graph.inputs for graph in found.graphs}
    assert names["network"] == ("sample", "timestep", "class_labels")
    assert set(names) == {"network", "network_vjp", "vae_encoder", "vae_decoder", "decoder_vjp"}
    assert found.activation_bytes is not None and found.activation_bytes > 4 * 100 * 8 * 8
    assert json.loads(json.dumps(found.to_json()))["runs"]


def test_a_pixel_model(pixel_dir: Path) -> None:
    found = inspect_model(pixel_dir, image_shape=(1, 32, 32), classes=8)
    assert found.runs and found.condition is None
    assert {graph.name for graph in found.graphs} == {"network", "network_vjp"}
    assert inspect_model(pixel_dir, image_size=16).image_shape == (1, 16, 16)


def test_every_problem_is_said(model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_dir, tmp_path / "model")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    AutoencoderTiny(latent_channels=6).save_pretrained(folder / "vae")
    found = inspect_model(folder, image_shape=(3, 32, 32), classes=10)
    assert not found.runs
    text = "\n".join(found.problems)
    for part in (
        "is a pickle",
        "scheduler_config.json is not valid JSON",
        "6 latent channels, the UNet takes 4",
    ):
        assert part in text
    assert "knows 9 classes, the classifier 10" in text
    assert len(found.problems) == 4 and all("\n" not in problem for problem in found.problems)
    assert (
        "the classifier takes 32x32 pixels, 3 channels"
        in inspect_model(model_dir, image_shape=(3, 32, 32)).problems[0]
    )


def test_an_unknown_network_and_no_model_at_all(model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_dir, tmp_path / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(
        json.dumps({**config, "_class_name": "UNet1DModel"})
    )
    found = inspect_model(folder)
    assert (
        found.kind == "unknown network UNet1DModel"
        and "which good-rt does not run" in found.problems[0]
    )
    with pytest.raises(GoodRtError, match="is not a diffusers folder"):
        inspect_model(tmp_path)


def test_headers_are_read_alone(tmp_path: Path) -> None:
    UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    ).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = header(path)
    assert whole["conv_in.weight"] == ("F32", 36)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[: 8 + size])  # no weights at all
    assert header(path) == whole
    for damaged in (b"", b"\x05", path.read_bytes()[:40], b"\x02" + bytes(7) + b"[]"):
        path.write_bytes(damaged)
        with pytest.raises(GoodRtError, match="is not a safetensors file"):
            header(path)
