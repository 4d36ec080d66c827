"""A model's folder on this machine: the given path, or a copy of a repository on the Hugging Face
hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from good_rt.errors import GoodRtError, first_line

FILES = ("*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")
"""Configs, weights and vocabularies of the parts; never pickles, nor code."""
NOT_READ = ("*.fp16.*", "*.bf16.*", "*non_ema*", "safety_checker/*")


def local_folder(model: Path) -> Path:
    """``model`` itself where it exists or can only be a path; else the download of owner/name.

    Raises:
        GoodRtError: it is no folder here and cannot be downloaded.
    """
    name = model.as_posix()
    if model.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or model.parent.is_dir():
        return model
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise GoodRtError(
            f"{name} is no folder here, and huggingface_hub, which could download it, is not "
            "installed; give the path of a diffusers folder"
        ) from None
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=list(FILES), ignore_patterns=list(NOT_READ), etag_timeout=10
            )
        )
    except Exception as error:  # no network, no such repository, no permission: one of many kinds
        reason = first_line(error)
        raise GoodRtError(
            f"{name} is no folder here, and cannot be downloaded from the hub "
            f"({reason.rstrip('.')}); give the path of a diffusers folder"
        ) from None
