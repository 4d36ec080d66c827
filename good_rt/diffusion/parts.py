"""One part of a model folder (network, autoencoder, text encoder) read from local files, only
from safetensors.

Weights may be stored in half precision, in several files or as a variant ("NAME.fp16.safetensors");
in memory they are float32. No code of the folder is run.
"""

from __future__ import annotations

import hashlib
import logging as python_logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from good_rt.errors import GoodRtError, first_line
from good_rt.files import read_json, sha256

PICKLED_WEIGHTS = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def class_name(folder: Path) -> str:
    """The class that a part's config.json names.

    Raises:
        GoodRtError: the file cannot be read or names none.
    """
    config = read_json(folder / "config.json")
    name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if not isinstance(name, str):
        raise GoodRtError(
            f"{folder / 'config.json'} names no class; save the part again with save_pretrained"
        )
    return name


def weight_files(folder: Path) -> tuple[str | None, list[Path]]:
    """The variant that is read (None for the plain files) and its .safetensors files.

    Raises:
        GoodRtError: there are none; it says how to convert a pickle.
    """
    files = sorted(path for path in folder.glob("*.safetensors") if "non_ema" not in path.name)
    variants: dict[str | None, list[Path]] = {}
    for path in files:
        # diffusion_pytorch_model[.fp16][-00001-of-00002].safetensors
        stem = path.name.removesuffix(".safetensors").partition("-0")[0]
        variants.setdefault(stem.partition(".")[2] or None, []).append(path)
    if not variants:
        pickled = [
            path.name for pattern in PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))
        ]
        hint = (
            f"; {pickled[0]} is a pickle and is not read: save it with safe_serialization=True"
            if pickled
            else ""
        )
        raise GoodRtError(f"{folder} has no .safetensors weights{hint}")
    variant = None if None in variants else sorted(filter(None, variants))[0]
    return variant, variants[variant]


def load_part(kind: Any, folder: Path, **settings: Any) -> Any:
    """The part as a module: float32, in evaluation mode, without gradients.

    Args:
        kind: Its diffusers or transformers class.
        folder: The part's folder.
        settings: Further arguments of ``from_pretrained``.

    Raises:
        GoodRtError: the weights are missing, pickled, damaged, incomplete, or not finite.
    """
    variant, _ = weight_files(folder)
    with quiet_loading():
        try:
            model, loading = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                output_loading_info=True,
                **settings,
            )
        # diffusers and transformers raise many kinds; all mean that the files do not fit
        except Exception as error:
            raise GoodRtError(
                f"{folder} cannot be loaded ({first_line(error)}); save it again with "
                "save_pretrained"
            ) from None
    missing = sorted(loading["missing_keys"])
    if missing:  # the libraries would leave them random
        raise GoodRtError(
            f"{folder} lacks the weight {missing[0]!r} ({len(missing)} missing in all); its "
            "config.json belongs to another model"
        )
    model = model.float().eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise GoodRtError(
                f"{folder}: weight {name!r} has values that are not finite; train or convert it "
                "again"
            )
    return model


def load_diffusers_part(folder: Path, classes: Sequence[str]) -> Any:
    """A part of one of these diffusers classes; see `load_part`.

    Args:
        folder: The part's folder.
        classes: Names of the classes that good-rt runs.

    Raises:
        GoodRtError: the part is of another class, or cannot be loaded.
    """
    import diffusers

    name = class_name(folder)
    if name not in classes:
        raise GoodRtError(
            f"{folder} holds a {name}, which good-rt does not run; it runs {', '.join(classes)}"
        )
    return load_part(getattr(diffusers, name), folder, low_cpu_mem_usage=False)


def empty_part(folder: Path) -> Any:
    """A diffusers part without weights, for its shapes and its whole config, defaults included.

    Raises:
        GoodRtError: the config does not fit its class.
    """
    import diffusers
    import torch

    name = class_name(folder)
    with quiet_loading(), torch.device("meta"):
        try:
            return getattr(diffusers, name).from_config(read_json(folder / "config.json"))
        except Exception as error:
            raise GoodRtError(
                f"{folder / 'config.json'} does not make a {name} ({first_line(error)})"
            ) from None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences the libraries' messages on loading, which a user cannot act on."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    others = python_logging.getLogger("transformers")
    before = others.level
    others.setLevel(python_logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        others.setLevel(before)


def fingerprint(folders: Mapping[str, Path], *facts: object) -> str:
    """One hash of all configs, vocabularies and weights, and of whatever else decides the result.

    Args:
        folders: Folders, or files, of the parts by name.
        facts: Settings that change what the parts compute.
    """
    digest = hashlib.sha256()
    for part, folder in folders.items():
        for path in [folder] if folder.is_file() else sorted(folder.glob("*")):
            if path.suffix in {".json", ".safetensors", ".txt", ".model"}:
                digest.update(f"{part}/{path.name}:{sha256(path)}\n".encode())
    for fact in facts:
        digest.update(f"{fact}\n".encode())
    return digest.hexdigest()
