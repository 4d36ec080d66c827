"""Prompts to embeddings, by the text encoders and tokenizers of the model's folder;
it needs transformers.

An encoder is loaded, run once over all prompts and freed, so that only one of them is in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from good_rt.diffusion.parts import class_name, load_part, quiet_loading
from good_rt.errors import GoodRtError, first_line, require

CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
T5 = ("T5EncoderModel",)
PROMPTS_AT_ONCE = 16
CLIP_TOKENS = 77
"""The length of a prompt for CLIP as it was trained."""


@dataclass(frozen=True)
class Encoded:
    """P encoded prompts.

    Attributes:
        last: Last hidden state (P, L, D).
        penultimate: The hidden state before it (P, L, D), of CLIP.
        pooled: Pooled embedding (P, D'), of CLIP.
    """

    last: Tensor
    penultimate: Tensor | None = None
    pooled: Tensor | None = None


@torch.no_grad()
def encode(
    folder: Path,
    suffix: str,
    prompts: list[str],
    classes: tuple[str, ...],
    longest: int | None = None,
) -> Encoded:
    """The prompts by text_encoder{suffix} and tokenizer{suffix}, padded to the encoder's length.

    Args:
        folder: The model's folder.
        suffix: "", "_2" or "_3".
        prompts: P texts.
        classes: Classes of encoders that good-rt runs here.
        longest: Bounds the length.

    Raises:
        GoodRtError: a part is missing, or not of the ``classes``.
    """
    transformers = require("transformers", "toolkit")
    part = folder / f"text_encoder{suffix}"
    if not part.is_dir():
        raise GoodRtError(
            f"{folder} has no {part.name}/, which its prompts need; take the whole model folder"
        )
    name = class_name(part)
    if name not in classes:
        raise GoodRtError(
            f"{part} holds a {name}, which good-rt does not run; it runs {', '.join(classes)}"
        )
    tokenizer = load_tokenizer(folder / f"tokenizer{suffix}")
    model = load_part(getattr(transformers, name), part)
    config = model.config
    lengths = [
        tokenizer.model_max_length,
        getattr(config, "max_position_embeddings", None),
        longest,
    ]
    length = min(value for value in lengths if value)
    if length > 10**6:
        raise GoodRtError(
            f"{folder / f'tokenizer{suffix}'} does not say how long prompts may be "
            "(model_max_length)"
        )
    batches = []
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        tokens = tokenizer(
            prompts[first : first + PROMPTS_AT_ONCE],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask if getattr(config, "use_attention_mask", False) else None
        output = model(tokens.input_ids, attention_mask=mask, output_hidden_states=name in CLIP)
        batches.append(_encoded(output, name))
    columns: Any = zip(*batches, strict=True)
    joined: list[Any] = [None if parts[0] is None else torch.cat(parts) for parts in columns]
    return Encoded(*joined)


def _encoded(output: Any, name: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if name not in CLIP:
        return output.last_hidden_state, None, None
    pooled = output.text_embeds if name.endswith("WithProjection") else output.pooler_output
    return output.last_hidden_state, output.hidden_states[-2], pooled


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local folder; runs no code of the folder.

    Raises:
        GoodRtError: it cannot be loaded.
    """
    transformers = require("transformers", "toolkit")
    if not folder.is_dir():
        raise GoodRtError(
            f"{folder.parent} has no {folder.name}/, which its prompts need; take the whole model "
            "folder"
        )
    with quiet_loading():
        try:
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises many kinds
            reason = first_line(error)
            raise GoodRtError(
                f"{folder} is not a tokenizer that can be loaded ({reason})"
            ) from None
