"""Every architecture at tiny width: built as diffusers saves it, compared with diffusers' own pipeline, and the whole
way on it: export, parity, gradients, images."""

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
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LDMPipeline,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.models.embeddings import Timesteps
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from good_rt.classifier import Classifier
from good_rt.data import IdData, from_uint8
from good_rt.demo import assets
from good_rt.diffusion import load_diffusion
from good_rt.diffusion.load import FAMILIES
from good_rt.diffusion.timesteps import FixedTimesteps
from good_rt.errors import GoodRtError
from good_rt.export.export import export_models
from good_rt.export.graphs import FusedGuidance
from good_rt.export.manifest import load_engines
from good_rt.generation import GenerationJob, Generator, make_generator
from good_rt.guidance import GuidanceConfig
from good_rt.sampler import Noise, sample

CLASSES = assets.CLASSES
WIDTH, TOKENS = 12, 32


def autoencoder(channels: int = 4, **settings: Any) -> AutoencoderKL:
    """Grey images of 32 x 32 from latents of 8 x 8."""
    return AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=channels, block_out_channels=(4, 8, 8), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
        sample_size=32, scaling_factor=0.8, **settings,
    )  # fmt: skip


def clip_tokenizer(folder: Path) -> Any:
    """Letters and words' last letters, without merges: the files that CLIP's tokenizer has."""
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-/"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


def t5_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=TOKENS
    )


def clip(kind: Any, tokenizer: Any, width: int = WIDTH) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, projection_dim=width,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=1,
        )
    ).eval()  # fmt: skip


def t5(tokenizer: Any, width: int) -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).eval()


def text_unet(**settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4, attention_head_dim=4, **settings,
    )  # fmt: skip


def small_unet(**settings: Any) -> UNet2DModel:
    return UNet2DModel(
        layers_per_block=1, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4, attention_head_dim=8, **settings,
    )  # fmt: skip


def ddpm(folder: Path) -> None:
    """A pixel model that learned its variance, laid out as the first DDPM's: everything in the folder itself."""
    small_unet(sample_size=32, in_channels=1, out_channels=2).save_pretrained(folder)
    DDPMScheduler(variance_type="learned_range").save_pretrained(folder)


def ldm(folder: Path) -> None:
    """A latent model with a vector-quantised autoencoder."""
    vqvae = VQModel(
        in_channels=1, out_channels=1, latent_channels=3, block_out_channels=(4, 8, 8), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
        sample_size=32, num_vq_embeddings=16, scaling_factor=0.5,
    )  # fmt: skip
    unet = small_unet(sample_size=8, in_channels=3, out_channels=3)
    LDMPipeline(vqvae, unet, DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear")).save_pretrained(folder)


def dit(folder: Path) -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        norm_num_groups=4,
    )  # fmt: skip
    # some labels have several names, and none is at its own place
    labels = {str(2 * number + 3): f"{name}, {name}s" for number, name in enumerate(CLASSES)}
    DiTPipeline(transformer, autoencoder(), DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    index = folder / "model_index.json"  # the pipeline reads the labels there, but does not write them
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": labels}))


def stable_diffusion(folder: Path, scheduler: Any) -> None:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    StableDiffusionPipeline(
        autoencoder(), clip(CLIPTextModel, tokenizer), tokenizer, text_unet(cross_attention_dim=WIDTH), scheduler, None,
        None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def sd1(folder: Path) -> None:
    stable_diffusion(
        folder,
        PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
    )


def sd2(folder: Path) -> None:
    stable_diffusion(
        folder,
        DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False,
            steps_offset=1,
        ),
    )  # fmt: skip


def sdxl(folder: Path) -> None:
    tokenizer, second = clip_tokenizer(folder / "tokenizer"), clip_tokenizer(folder / "tokenizer_2")
    unet = text_unet(
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        autoencoder(), clip(CLIPTextModel, tokenizer), clip(CLIPTextModelWithProjection, second), tokenizer, second,
        unet, EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip


def sd3(folder: Path) -> None:
    tokenizer, second, third = (
        clip_tokenizer(folder / "tokenizer"),
        clip_tokenizer(folder / "tokenizer_2"),
        t5_tokenizer(),
    )
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), autoencoder(shift_factor=0.1),
        clip(CLIPTextModelWithProjection, tokenizer), tokenizer, clip(CLIPTextModelWithProjection, second), second,
        t5(third, 32), third,
    ).save_pretrained(folder)  # fmt: skip


def flux(folder: Path) -> None:
    tokenizer, second = clip_tokenizer(folder / "tokenizer"), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), autoencoder(shift_factor=0.1),
        clip(CLIPTextModel, tokenizer), tokenizer, t5(second, 32), second, transformer,
    ).save_pretrained(folder)  # fmt: skip


BUILDERS: dict[str, Callable[[Path], None]] = {
    function.__name__: function for function in (ddpm, ldm, dit, sd1, sd2, sdxl, sd3, flux)
}
SIZES = {"flux": 32}
"""Image sizes that the configs do not say."""
PROMPT = "one {}"
STEPS, SCALE = 4, 2.5


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture, built once. Not to be changed."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            torch.manual_seed(len(name))
            made[name] = tmp_path_factory.mktemp("architectures") / name
            BUILDERS[name](made[name])
            _wake(made[name])
        return made[name]

    return folder


def _wake(folder: Path) -> None:
    """Transformers start with zeros where they would be told of noise and condition; here nothing is zero."""
    from safetensors.torch import load_file, save_file

    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if path.exists():
        state = load_file(path)
        generator = torch.Generator().manual_seed(5)
        save_file(
            {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in state.items()}, path, {"format": "pt"}
        )


def load(folders: Callable[[str], Path], name: str, **settings: Any) -> Any:
    return load_diffusion(folders(name), image_size=SIZES.get(name), **settings)


def test_every_family_is_tested(folders: Callable[[str], Path]) -> None:
    from good_rt.diffusion.load import Layout

    assert {type(Layout.of(folders(name)).family) for name in BUILDERS} == {type(f) for f in FAMILIES.values()}


def by_pipeline(folder: Path, name: str, latents: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Images in [-1, 1] of the first classes, by diffusers' own pipeline, without noise on the way."""
    if name == "ddpm":
        scheduler = DDIMScheduler.from_pretrained(folder)
        pipeline: Any = DDIMPipeline(UNet2DModel.from_pretrained(folder), scheduler)
    else:
        pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if name in {"sd1", "sdxl"}:
        pipeline.scheduler = DDIMScheduler.from_config({**pipeline.scheduler.config, "clip_sample": False})
        if name == "sdxl":
            pipeline.scheduler.final_alpha_cumprod = torch.tensor(1.0)
    module = sys.modules[type(pipeline).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *arguments, **settings: latents)
    prompts = [PROMPT.replace("{}", label.replace("_", " ")) for label in CLASSES[: len(latents)]]
    common: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "pt", "generator": torch.Generator()}
    if name == "ddpm":
        output = DDIMScheduler.step
        monkeypatch.setattr(  # the pipeline itself does not split the variance off
            DDIMScheduler, "step", lambda self, found, *rest, **more: output(self, found[:, :1], *rest, **more)
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
        model.process.denoiser(model.unet, **further), model.decoder or torch.nn.Identity(), None, model.sigmas(STEPS),
        GuidanceConfig(), seeds, model.sample_shape, None if conditioning is None else torch.arange(3), eta=0.0,
    )  # fmt: skip
    with torch.no_grad():
        images = (model.decoder or torch.nn.Identity())(latents).clamp(-1, 1)
    expected = by_pipeline(folders(name), name, Noise(seeds, 0)(torch.empty(3, *model.sample_shape)), monkeypatch)
    assert float(expected.std()) > 0.02
    # flow matching starts at s = 1 there, and a little below here
    torch.testing.assert_close(images, expected, rtol=0, atol=3e-3 if name in {"sd3", "flux"} else 1e-4)


@pytest.mark.parametrize("settings", [(8, True, 0), (8, False, 1), (7, True, 0, 2)])
def test_timesteps_are_embedded_as_in_diffusers(settings: tuple[Any, ...]) -> None:
    steps = torch.tensor([0.0, 0.5, 12.25, 999.0, 3500.0])
    torch.testing.assert_close(FixedTimesteps(*settings)(steps), Timesteps(*settings)(steps), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_the_whole_way(
    folders: Callable[[str], Path], name: str, classifier_dir: Path, classifier: Classifier, id_dir: Path,
    generator: Generator, make_job: Callable[..., GenerationJob], tmp_path: Path,
) -> None:  # fmt: skip
    size = SIZES.get(name)
    job = replace(make_job(), config=GuidanceConfig(mu=0.2, rho=0.2))
    images = from_uint8(assets.load_images("held_out").images[:4])
    fused = FusedGuidance(generator.bank, job.k)
    manifest, done = export_models(
        folders(name), classifier_dir, tmp_path / "engines", images=images, fused=fused, image_size=size
    )
    assert done
    gradients = [row for row in manifest.parity if row.output == "gradient"]
    assert {"unet_vjp", "unet_vjp in two", "guidance_vjp"} <= {row.graph for row in gradients}
    assert max(row.max_relative for row in gradients) < 1e-3
    model = load(folders, name)
    scale = 1.0 if model.conditioner is None else SCALE
    engines = load_engines(tmp_path / "engines", {"model": model.fingerprint})
    expected_names = model.conditioning(CLASSES).names if model.conditioner is not None else ()
    assert tuple(engines["unet"].inputs) == ("sample", "timestep", *expected_names)
    found, indices = [], [0, 1, 2, 10, 11, 12]
    for given in (engines, None):
        made = make_generator(
            model, classifier, IdData(id_dir), job, steps=2, cfg_scale=scale, engines=given, prompts=(PROMPT, "{}")
        )
        made = replace(made, bank=generator.bank, scales=generator.scales)  # those of the fused graph
        found.append(made.images(job, indices).astype(int))
    # where a guided step lands on a kink of the classifier's ReLUs, weights that are 1e-6 off move the image as much
    levels = np.abs(found[0] - found[1]).max(axis=(1, 2, 3))
    assert np.sort(levels)[-2] <= 3, levels
    assert np.abs(found[1] - made.images(job, indices, guided=False)).max() > 3


def taesd(folder: Path, channels: int = 4, blocks: int = 3) -> None:
    """A light autoencoder for latents like `autoencoder`'s, of its own random weights."""
    torch.manual_seed(8)
    AutoencoderTiny(
        in_channels=1, out_channels=1, encoder_block_out_channels=(4,) * blocks, latent_channels=channels,
        decoder_block_out_channels=(4,) * blocks, num_encoder_blocks=(1,) * blocks, num_decoder_blocks=(1,) * blocks,
    ).save_pretrained(folder)  # fmt: skip


def test_a_light_autoencoder_is_one(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders("dit"), tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
    taesd(folder / "vae")
    model, vae = load_diffusion(folder), AutoencoderTiny.from_pretrained(folder / "vae")
    latents, images = torch.randn(2, 4, 8, 8), torch.rand(2, 1, 32, 32) * 2 - 1
    assert model.encoder is not None and model.decoder is not None
    with torch.no_grad():
        torch.testing.assert_close(model.decoder(latents), vae.decode(latents).sample)
        torch.testing.assert_close(model.encoder(images), vae.encode(images).latents)


def test_a_light_decoder_takes_the_gradients_alone(
    folders: Callable[[str], Path], tmp_path: Path, classifier: Classifier, id_dir: Path,
    make_job: Callable[..., GenerationJob],
) -> None:  # fmt: skip
    taesd(tmp_path / "light")
    plain = load(folders, "sd2")
    model = load(folders, "sd2", gradient_decoder=tmp_path / "light")
    assert model.fingerprint != plain.fingerprint
    assert model.light_decoder is not None and model.gradient_decoder is model.light_decoder
    made, usual = (
        make_generator(one, classifier, IdData(id_dir), make_job(), steps=2, bank_size=20) for one in (model, plain)
    )
    unguided, guided = (made.images(make_job(), [0, 1], guided=guided).astype(int) for guided in (False, True))
    np.testing.assert_array_equal(unguided, usual.images(make_job(), [0, 1], guided=False))
    assert np.abs(guided - usual.images(make_job(), [0, 1])).max() > 2 and np.abs(guided - unguided).max() > 2


def test_a_decoder_of_other_latents_or_images_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    taesd(tmp_path / "channels", channels=6)
    taesd(tmp_path / "small", blocks=2)
    with pytest.raises(GoodRtError, match="6 latent channels, the UNet takes 4"):
        load(folders, "sd2", gradient_decoder=tmp_path / "channels")
    with pytest.raises(
        GoodRtError, match=r"decodes to images of shape \(1, 16, 16\), .* \(1, 32, 32\); both must agree"
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
    for found, expected in zip(model.unet.parameters(), unet.parameters(), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=0)


def test_prompts_are_rows_of_one_table(folders: Callable[[str], Path]) -> None:
    table = load(folders, "sd1").conditioning(CLASSES, ("one {}", "a {}"))
    assert table is not None
    count = len(CLASSES)
    assert (table.names, table.count, table.null, table.templates) == (("context",), 2 * count + 1, 2 * count, 2)
    assert len({row.numpy().tobytes() for row in table.tables[0]}) == table.count
    labels, turn = torch.tensor([0, 3, 3]), torch.tensor([0, 1, 2])
    assert table.rows(labels, turn).tolist() == [0, count + 3, 3]
    alone = load(folders, "sd1").conditioning(CLASSES, ("a {}",))
    torch.testing.assert_close(alone(torch.tensor([3]))[0], table(torch.tensor([count + 3]))[0])
    with pytest.raises(GoodRtError, match=r"'a photo' has no place for the class's name; write \{\} there"):
        load(folders, "sd1").conditioning(CLASSES, ("a photo",))


def test_labels_go_by_the_models_own_names(folders: Callable[[str], Path]) -> None:
    model = load(folders, "dit")
    table = model.conditioning((CLASSES[2], f"{CLASSES[0]}s"))
    assert table is not None
    assert table(torch.tensor([0, 1, 2]))[0].tolist() == [7, 3, 1000]
    assert model.conditioning(("neither", CLASSES[0])).tables[0].tolist() == [0, 1, 1000]
    with pytest.raises(GoodRtError, match="knows 1001 classes, the classifier 1002"):
        model.conditioning(("x",) * 1002)


def test_the_empty_prompt_of_xl_is_zero_where_it_was_trained_so(folders: Callable[[str], Path], tmp_path: Path) -> None:
    rows = {}
    for forced in (True, False):
        folder = shutil.copytree(folders("sdxl"), tmp_path / str(forced))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": forced}))
        table = load_diffusion(folder).conditioning(CLASSES)
        assert table is not None and table.names == ("context", "pooled", "time_ids")
        rows[forced] = table(torch.tensor([table.null]))
        assert rows[forced][2].tolist() == [[32, 32, 0, 0, 32, 32]]
    assert all(not part.any() for part in rows[True][:2]) and all(part.any() for part in rows[False][:2])


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


TRANSFORMER, UNET, SCHEDULER = "transformer/config.json", "unet/config.json", "scheduler/scheduler_config.json"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no encoder": ("sd1", without("text_encoder"), r"has no text_encoder/, which its prompts need; take the whole"),
    "no second encoder": ("sdxl", without("text_encoder_2"), "has no text_encoder_2/"),
    "no tokenizer": ("sd1", without("tokenizer"), "has no tokenizer/"),
    "empty tokenizer": ("sd1", emptied("tokenizer"), "not a tokenizer that can be"),
    "pickled encoder": ("sd1", pickled("text_encoder"), r"text_encoder has no .*model\.bin is a pickle and is not"),
    "other encoder": (
        "sd1", edited("text_encoder/config.json", architectures=["BertModel"]), "holds a BertModel, which good-rt does"
    ),
    "inpainting": ("sd1", edited(UNET, in_channels=9), "takes 9 channels and gives 4, which is neither"),
    "other conditions": ("sd1", edited(UNET, class_embed_type="timestep"), "class_embed_type 'timestep' is not run by"),
    "other transformer": (
        "dit", edited(TRANSFORMER, _class_name="PixArtTransformer2DModel"),
        "holds a PixArtTransformer2DModel, which good-rt does not run; it runs UNet2DModel",
    ),
    "no scheduler's name": ("sd2", edited(SCHEDULER, _class_name="Mystery"), "names 'Mystery', which is no scheduler"),
    "continuous": ("sd2", edited(SCHEDULER, _class_name="ScoreSdeVeScheduler"), "whose noise good-rt does not know"),
    "prediction": ("sd2", edited(SCHEDULER, prediction_type="score"), "unknown prediction type 'score'; known are"),
    "inverted": ("sd3", edited(SCHEDULER, invert_sigmas=True), "inverted flow matching"),
    "latents": ("sd3", edited("vae/config.json", latents_mean=[0.0] * 4), "latents_mean and latents_std are not known"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_in_one_line(folders: Callable[[str], Path], tmp_path: Path, damage: str) -> None:
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
        GoodRtError, match=r"^someone/a-model is no folder here, .* \(no route to host\); give the path"
    ):
        load_diffusion(Path("someone/a-model"))
    for path in ("/a/path", "model", "tests/model", "a/b/c"):
        with pytest.raises(GoodRtError, match="is not a diffusers folder"):
            load_diffusion(Path(path))
