"""Eight diffusion architectures at tiny width with random weights, as diffusers saves them: 32 x 32
grey images.

Tests on them: each alone (`test_architectures`), and each with every kind of classifier
(`test_combinations`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
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
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from good_rt.demo.assets import CLASSES
from good_rt.diffusion import load_diffusion

WIDTH, TOKENS = 12, 32


def autoencoder(channels: int = 4, **settings: Any) -> AutoencoderKL:
    """Grey images of 32 x 32 from latents of 8 x 8."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=channels,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.8,
        **settings,
    )


def clip_tokenizer(folder: Path) -> Any:
    """Letters and words' last letters, without merges: the files that CLIP's tokenizer has."""
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-/"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({word: number for number, word in enumerate(words)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
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
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=TOKENS,
    )


def clip(kind: Any, tokenizer: Any, width: int = WIDTH) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=16,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=1,
        )
    ).eval()


def t5(tokenizer: Any, width: int) -> Any:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2
        )
    ).eval()


def text_unet(**settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        **settings,
    )


def small_unet(**settings: Any) -> UNet2DModel:
    return UNet2DModel(
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        **settings,
    )


def ddpm(folder: Path) -> None:
    """A pixel model that learned its variance, laid out as the first DDPM's: everything in the
    folder itself."""
    small_unet(sample_size=32, in_channels=1, out_channels=2).save_pretrained(folder)
    DDPMScheduler(variance_type="learned_range").save_pretrained(folder)


def ldm(folder: Path) -> None:
    """A latent model with a vector-quantised autoencoder."""
    vqvae = VQModel(
        in_channels=1,
        out_channels=1,
        latent_channels=3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=32,
        num_vq_embeddings=16,
        scaling_factor=0.5,
    )
    unet = small_unet(sample_size=8, in_channels=3, out_channels=3)
    LDMPipeline(
        vqvae, unet, DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear")
    ).save_pretrained(folder)


def dit(folder: Path) -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
    )
    # some labels have several names, and none is at its own place
    labels = {str(2 * number + 3): f"{name}, {name}s" for number, name in enumerate(CLASSES)}
    DiTPipeline(transformer, autoencoder(), DDIMScheduler(clip_sample=False)).save_pretrained(
        folder
    )
    index = (
        folder / "model_index.json"
    )  # the pipeline reads the labels there, but does not write them
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": labels}))


def stable_diffusion(folder: Path, scheduler: Any) -> None:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    StableDiffusionPipeline(
        autoencoder(),
        clip(CLIPTextModel, tokenizer),
        tokenizer,
        text_unet(cross_attention_dim=WIDTH),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def sd1(folder: Path) -> None:
    stable_diffusion(
        folder,
        PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
    )


def sd2(folder: Path) -> None:
    stable_diffusion(
        folder,
        DDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    )


def sdxl(folder: Path) -> None:
    tokenizer, second = clip_tokenizer(folder / "tokenizer"), clip_tokenizer(folder / "tokenizer_2")
    unet = text_unet(
        cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        autoencoder(),
        clip(CLIPTextModel, tokenizer),
        clip(CLIPTextModelWithProjection, second),
        tokenizer,
        second,
        unet,
        EulerDiscreteScheduler(
            beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ),
        add_watermarker=False,
    ).save_pretrained(folder)


def sd3(folder: Path) -> None:
    tokenizer, second, third = (
        clip_tokenizer(folder / "tokenizer"),
        clip_tokenizer(folder / "tokenizer_2"),
        t5_tokenizer(),
    )
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        autoencoder(shift_factor=0.1),
        clip(CLIPTextModelWithProjection, tokenizer),
        tokenizer,
        clip(CLIPTextModelWithProjection, second),
        second,
        t5(third, 32),
        third,
    ).save_pretrained(folder)


def flux(folder: Path) -> None:
    tokenizer, second = clip_tokenizer(folder / "tokenizer"), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), autoencoder(shift_factor=0.1),
        clip(CLIPTextModel, tokenizer), tokenizer, t5(second, 32), second, transformer,
    ).save_pretrained(folder)  # fmt: skip


BUILDERS: dict[str, Callable[[Path], None]] = {
    function.__name__: function for function in (ddpm, ldm, dit, sd1, sd2, sdxl, sd3, flux)
}
SIZES = {"flux": 32}
"""Image sizes that the configs do not say."""


def build(name: str, folder: Path) -> Path:
    """Writes the architecture into ``folder``."""
    torch.manual_seed(len(name))
    BUILDERS[name](folder)
    _wake(folder)
    return folder


def taesd(folder: Path, channels: int = 4, blocks: int = 3) -> None:
    """A light autoencoder for latents like `autoencoder`'s, of its own random weights."""
    torch.manual_seed(8)
    AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(4,) * blocks,
        latent_channels=channels,
        decoder_block_out_channels=(4,) * blocks,
        num_encoder_blocks=(1,) * blocks,
        num_decoder_blocks=(1,) * blocks,
    ).save_pretrained(folder)


def _wake(folder: Path) -> None:
    """Transformers start with zeros where they would be told of noise and condition; here nothing
    is zero."""
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if path.exists():
        state = load_file(path)
        generator = torch.Generator().manual_seed(5)
        save_file(
            {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in state.items()},
            path,
            {"format": "pt"},
        )


def load(folders: Callable[[str], Path], name: str, **settings: Any) -> Any:
    return load_diffusion(folders(name), image_size=SIZES.get(name), **settings)
