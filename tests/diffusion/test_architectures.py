"""Every architecture at tiny width: built as diffusers saves it, compared with diffusers' own
pipeline, and end to end: export, parity, gradients, images."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import BUILDERS, TOKENS, load, small_unet, taesd
from diffusers import (
    AutoencoderTiny,
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.models.embeddings import Timesteps
from torch import Tensor

from good_rt.classifier import Classifier
from good_rt.config.settings import ExportConfig, GenerationConfig, GuidanceConfig, SamplerConfig
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.diffusion import load_diffusion
from good_rt.diffusion.load import FAMILIES
from good_rt.diffusion.timesteps import FixedTimesteps
from good_rt.environment import CPU
from good_rt.errors import GoodRtError
from good_rt.export.export import export_models
from good_rt.export.graphs import FusedGuidance
from good_rt.export.manifest import load_engines
from good_rt.method.sampler import GuidedModel, Noise, SampleBatch, sample
from good_rt.models import Models
from good_rt.workflow.generator import Generator, make_generator

CLASSES = assets.CLASSES
PROMPT = "one {}"
STEPS, SCALE = 4, 2.5


def test_every_family_is_tested(folders: Callable[[str], Path]) -> None:
    from good_rt.diffusion.load import Layout

    assert {type(Layout.of(folders(name)).family) for name in BUILDERS} == {
        type(f) for f in FAMILIES.values()
    }


def by_pipeline(
    folder: Path, name: str, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """Images in [-1, 1] of the first classes, by diffusers' own pipeline, without noise on the
    way."""
    if name == "ddpm":
        scheduler = DDIMScheduler.from_pretrained(folder)
        pipeline: Any = DDIMPipeline(UNet2DModel.from_pretrained(folder), scheduler)
    else:
        pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if name in {"sd1", "sdxl"}:
        pipeline.scheduler = DDIMScheduler.from_config(
            {**pipeline.scheduler.config, "clip_sample": False}
        )
        if name == "sdxl":
            pipeline.scheduler.final_alpha_cumprod = torch.tensor(1.0)
    module = sys.modules[type(pipeline).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *arguments, **settings: latents)
    prompts = [PROMPT.replace("{}", label.replace("_", " ")) for label in CLASSES[: len(latents)]]
    common: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "output_type": "pt",
        "generator": torch.Generator(),
    }
    if name == "ddpm":
        output = DDIMScheduler.step
        monkeypatch.setattr(  # the pipeline itself does not split the variance off
            DDIMScheduler,
            "step",
            lambda self, found, *rest, **more: output(self, found[:, :1], *rest, **more),
        )
    if name in {"ddpm", "ldm"}:
        clipped = {"use_clipped_model_output": True} if name == "ddpm" else {}
        images = pipeline(len(latents), **{**common, "output_type": "np"}, **clipped).images
        return 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1
    if name == "dit":
        ids = [2 * number + 3 for number in range(len(latents))]
        return 2 * pipeline(ids, guidance_scale=SCALE, **common).images - 1
    settings: dict[str, Any] = {"prompt": prompts, "height": 32, "width": 32, **common}
    if name == "flux":
        packed = pipeline._pack_latents(latents, len(latents), 4, 8, 8)
        return 2 * pipeline(
            **settings, latents=packed, negative_prompt=[""] * len(prompts), true_cfg_scale=SCALE,
            max_sequence_length=TOKENS,
        ).images - 1  # fmt: skip
    if name == "sd3":
        settings["max_sequence_length"] = TOKENS
    return 2 * pipeline(**settings, latents=latents, guidance_scale=SCALE).images - 1


@pytest.mark.parametrize("name", BUILDERS)
def test_images_are_those_of_diffusers_pipeline(
    folders: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folders, name)
    assert model.image_shape == (1, 32, 32)
    seeds = [3, 4, 5]
    conditioning = model.conditioning(CLASSES, (PROMPT,))
    further: dict[str, Any] = {}
    if conditioning is not None:
        further = {"condition": conditioning, "null_class": conditioning.null, "cfg_scale": SCALE}
    latents = sample(
        GuidedModel(
            model.process.denoiser(model.network, **further), model.decoder or torch.nn.Identity()
        ),
        model.sigmas(STEPS),
        GuidanceConfig(mu=0.0),
        SampleBatch(seeds, model.sample_shape, None if conditioning is None else torch.arange(3)),
        eta=0.0,
    )
    with torch.no_grad():
        images = (model.decoder or torch.nn.Identity())(latents).clamp(-1, 1)
    expected = by_pipeline(
        folders(name), name, Noise(seeds, 0)(torch.empty(3, *model.sample_shape)), monkeypatch
    )
    assert float(expected.std()) > 0.02
    # flow matching starts at s = 1 there, and a little below here
    torch.testing.assert_close(
        images, expected, rtol=0, atol=3e-3 if name in {"sd3", "flux"} else 1e-4
    )


@pytest.mark.parametrize("settings", [(8, True, 0), (8, False, 1), (7, True, 0, 2)])
def test_timesteps_are_embedded_as_in_diffusers(settings: tuple[Any, ...]) -> None:
    steps = torch.tensor([0.0, 0.5, 12.25, 999.0, 3500.0])
    torch.testing.assert_close(
        FixedTimesteps(*settings)(steps), Timesteps(*settings)(steps), rtol=0, atol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_end_to_end(
    folders: Callable[[str], Path],
    name: str,
    classifier: Classifier,
    id_dir: Path,
    generator: Generator,
    make_config: Callable[..., GenerationConfig],
    tmp_path: Path,
) -> None:
    model = load(folders, name)
    models = Models(model, classifier, CPU)
    images = from_uint8(assets.load_images("held_out").images[:4])
    fused = FusedGuidance(generator.feature)
    manifest, done = export_models(
        models, tmp_path / "engines", ExportConfig(), images=images, fused=fused
    )
    assert done
    gradients = [row for row in manifest.parity if row.output == "gradient"]
    assert {"network_vjp", "network_vjp in two", "guidance_vjp"} <= {row.graph for row in gradients}
    assert max(row.max_relative for row in gradients) < 1e-3
    scale = 1.0 if model.conditioner is None else SCALE
    config = replace(
        make_config(),
        guidance=GuidanceConfig(mu=0.2, rho=0.2),
        sampler=SamplerConfig(2, cfg=scale, prompts=(PROMPT, "{}")),
    )
    engines = load_engines(tmp_path / "engines", {"model": model.fingerprint})
    expected_names = model.conditioning(CLASSES).names if model.conditioner is not None else ()
    assert tuple(engines["network"].inputs) == ("sample", "timestep", *expected_names)
    guided, indices = [], [0, 1, 2, 10, 11, 12]
    for given in (engines, None):
        one = make_generator(models, IdData(id_dir), config, given)
        # those of the fused graph
        one = replace(one, feature=generator.feature, scales=generator.scales)
        guided.append(one.images(config, indices).astype(int))
    # where a guided step lands on a kink of the classifier's ReLUs, weights that are 1e-6 off move
    # the image as much
    levels = np.abs(guided[0] - guided[1]).max(axis=(1, 2, 3))
    assert np.sort(levels)[-2] <= 3, levels
    assert np.abs(guided[1] - one.images(config, indices, guided=False)).max() > 3


def test_a_light_autoencoder_is_one(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(
        folders("dit"), tmp_path / "model", ignore=shutil.ignore_patterns("vae")
    )
    taesd(folder / "vae")
    model, vae = load_diffusion(folder), AutoencoderTiny.from_pretrained(folder / "vae")
    latents, images = torch.randn(2, 4, 8, 8), torch.rand(2, 1, 32, 32) * 2 - 1
    assert model.encoder is not None and model.decoder is not None
    with torch.no_grad():
        torch.testing.assert_close(model.decoder(latents), vae.decode(latents).sample)
        torch.testing.assert_close(model.encoder(images), vae.encode(images).latents)


def test_a_light_decoder_takes_the_gradients_alone(
    folders: Callable[[str], Path], tmp_path: Path, classifier: Classifier, id_dir: Path,
    make_config: Callable[..., GenerationConfig],
) -> None:  # fmt: skip
    taesd(tmp_path / "light")
    plain = load(folders, "sd2")
    model = load(folders, "sd2", gradient_decoder=tmp_path / "light")
    assert model.fingerprint != plain.fingerprint
    assert model.light_decoder is not None and model.gradient_decoder is model.light_decoder
    config = make_config(steps=2)
    config = replace(config, bank=replace(config.bank, size=20))
    light, usual = (
        make_generator(Models(one, classifier, CPU), IdData(id_dir), config)
        for one in (model, plain)
    )
    unguided, guided = (
        light.images(config, [0, 1], guided=guided).astype(int) for guided in (False, True)
    )
    np.testing.assert_array_equal(unguided, usual.images(config, [0, 1], guided=False))
    assert np.abs(guided - usual.images(config, [0, 1])).max() > 2
    assert np.abs(guided - unguided).max() > 2


def test_a_decoder_of_other_latents_or_images_is_refused(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    taesd(tmp_path / "channels", channels=6)
    taesd(tmp_path / "small", blocks=2)
    with pytest.raises(GoodRtError, match="6 latent channels, the UNet takes 4"):
        load(folders, "sd2", gradient_decoder=tmp_path / "channels")
    with pytest.raises(
        GoodRtError,
        match=r"decodes to images of shape \(1, 16, 16\), .* \(1, 32, 32\); both must agree",
    ):
        load(folders, "sd2", gradient_decoder=tmp_path / "small")
    with pytest.raises(GoodRtError, match="pixel model, which has no decoder"):
        load(folders, "ddpm", gradient_decoder=tmp_path / "small")


@pytest.mark.parametrize(("dtype", "variant"), [(torch.float16, "fp16"), (torch.bfloat16, None)])
def test_weights_in_half_precision_and_in_several_files(
    tmp_path: Path, dtype: torch.dtype, variant: str | None
) -> None:
    torch.manual_seed(1)
    unet = small_unet(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=9).to(dtype)
    unet.save_pretrained(tmp_path / "unet", variant=variant, max_shard_size="20KB")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    model = load_diffusion(tmp_path)
    for found, expected in zip(model.network.parameters(), unet.parameters(), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=0)


def test_prompts_are_rows_of_one_table(folders: Callable[[str], Path]) -> None:
    table = load(folders, "sd1").conditioning(CLASSES, ("one {}", "a {}"))
    assert table is not None
    count = len(CLASSES)
    assert (table.names, table.count, table.null, table.templates) == (
        ("context",),
        2 * count + 1,
        2 * count,
        2,
    )
    assert len({row.numpy().tobytes() for row in table.tables[0]}) == table.count
    labels, turn = torch.tensor([0, 3, 3]), torch.tensor([0, 1, 2])
    assert table.rows(labels, turn).tolist() == [0, count + 3, 3]
    alone = load(folders, "sd1").conditioning(CLASSES, ("a {}",))
    torch.testing.assert_close(alone(torch.tensor([3]))[0], table(torch.tensor([count + 3]))[0])
    with pytest.raises(
        GoodRtError, match=r"'a photo' has no place for the class's name; write \{\} there"
    ):
        load(folders, "sd1").conditioning(CLASSES, ("a photo",))


def test_labels_go_by_the_models_own_names(folders: Callable[[str], Path]) -> None:
    model = load(folders, "dit")
    table = model.conditioning((CLASSES[2], f"{CLASSES[0]}s"))
    assert table is not None
    assert table(torch.tensor([0, 1, 2]))[0].tolist() == [7, 3, 1000]
    assert model.conditioning(("neither", CLASSES[0])).tables[0].tolist() == [0, 1, 1000]
    with pytest.raises(GoodRtError, match="knows 1001 classes, the classifier 1002"):
        model.conditioning(("x",) * 1002)


def test_the_empty_prompt_of_xl_is_zero_where_it_was_trained_so(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = {}
    for forced in (True, False):
        folder = shutil.copytree(folders("sdxl"), tmp_path / str(forced))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(
            json.dumps({**index, "force_zeros_for_empty_prompt": forced})
        )
        table = load_diffusion(folder).conditioning(CLASSES)
        assert table is not None and table.names == ("context", "pooled", "time_ids")
        rows[forced] = table(torch.tensor([table.null]))
        assert rows[forced][2].tolist() == [[32, 32, 0, 0, 32, 32]]
    assert all(not part.any() for part in rows[True][:2]) and all(
        part.any() for part in rows[False][:2]
    )


def test_flow_matching_visits_the_schedulers_levels(folders: Callable[[str], Path]) -> None:
    process = load(folders, "sd3").process
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    flow = process.sigmas(7) / (1 + process.sigmas(7))
    np.testing.assert_allclose(flow, scheduler.sigmas.numpy(), atol=2e-5)
    assert process.sigmas(7)[-1] == 0 and (np.diff(process.sigmas(7)) < 0).all()
    with pytest.raises(GoodRtError, match="steps must be between 1 and 1000, not 0"):
        process.sigmas(0)
    assert "flow matching, shift 3" in process.about
    with pytest.raises(GoodRtError, match="no discrete timesteps"):
        _ = load(folders, "sd3").alphas_cumprod


def without(part: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / part)


def edited(part: str, **values: Any) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / part
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


def pickled(part: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(".bin"))

    return apply


def emptied(part: str) -> Callable[[Path], object]:
    return lambda folder: [path.unlink() for path in (folder / part).iterdir()]


TRANSFORMER, UNET, SCHEDULER = (
    "transformer/config.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
)
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no encoder": (
        "sd1",
        without("text_encoder"),
        r"has no text_encoder/, which its prompts need; take the whole",
    ),
    "no second encoder": ("sdxl", without("text_encoder_2"), "has no text_encoder_2/"),
    "no tokenizer": ("sd1", without("tokenizer"), "has no tokenizer/"),
    "empty tokenizer": ("sd1", emptied("tokenizer"), "not a tokenizer that can be"),
    "pickled encoder": (
        "sd1",
        pickled("text_encoder"),
        r"text_encoder has no .*model\.bin is a pickle and is not",
    ),
    "other encoder": (
        "sd1",
        edited("text_encoder/config.json", architectures=["BertModel"]),
        "holds a BertModel, which good-rt does",
    ),
    "inpainting": (
        "sd1",
        edited(UNET, in_channels=9),
        "takes 9 channels and gives 4, which is neither",
    ),
    "other conditions": (
        "sd1",
        edited(UNET, class_embed_type="timestep"),
        "class_embed_type 'timestep' is not run by",
    ),
    "other transformer": (
        "dit",
        edited(TRANSFORMER, _class_name="PixArtTransformer2DModel"),
        "holds a PixArtTransformer2DModel, which good-rt does not run; it runs UNet2DModel",
    ),
    "no scheduler's name": (
        "sd2",
        edited(SCHEDULER, _class_name="Mystery"),
        "names 'Mystery', which is no scheduler",
    ),
    "continuous": (
        "sd2",
        edited(SCHEDULER, _class_name="ScoreSdeVeScheduler"),
        "whose noise good-rt does not know",
    ),
    "prediction": (
        "sd2",
        edited(SCHEDULER, prediction_type="score"),
        "unknown prediction type 'score'; known are",
    ),
    "inverted": ("sd3", edited(SCHEDULER, invert_sigmas=True), "inverted flow matching"),
    "latents": (
        "sd3",
        edited("vae/config.json", latents_mean=[0.0] * 4),
        "latents_mean and latents_std are not known",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_in_one_line(
    folders: Callable[[str], Path], tmp_path: Path, damage: str
) -> None:
    name, apply, message = DAMAGES[damage]
    folder = shutil.copytree(folders(name), tmp_path / "model")
    apply(folder)
    with pytest.raises(GoodRtError, match=message) as caught:
        load_diffusion(folder).conditioning(CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [3, 34, 36])
def test_an_image_size_that_cannot_be(folders: Callable[[str], Path], size: int) -> None:
    with pytest.raises(GoodRtError, match=f"the image size must be a multiple of 8, not {size}"):
        load_diffusion(folders("flux"), image_size=size)


def test_a_name_on_the_hub(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def found(name: str, **settings: Any) -> str:
        asked.append(name)
        return str(folders("ddpm"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    assert load_diffusion(Path("someone/a-model")).image_shape == (1, 32, 32)
    assert asked == ["someone/a-model"]

    def offline(name: str, **settings: Any) -> str:
        raise ConnectionError("no route to host\nwith a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        GoodRtError,
        match=r"^someone/a-model is no folder here, .* \(no route to host\); give the path",
    ):
        load_diffusion(Path("someone/a-model"))
    for path in ("/a/path", "model", "tests/model", "a/b/c"):
        with pytest.raises(GoodRtError, match="is not a diffusers folder"):
            load_diffusion(Path(path))
