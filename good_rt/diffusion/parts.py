"""One part of a model folder (network, autoencoder, text encoder) read from local files, only
from safetensors.

Weights may be stored in half precision, in several files or as a variant ("NAME.fp16.safetensors");
in memory they are float32. No code of the folder is run.
"""

from __future__ import annotations

import hashlib
import json
import logging as python_logging
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from good_rt.errors import GoodRtError, first_line, require
from good_rt.files import read_json, sha256

PICKLED_WEIGHTS = ("*.bin", "*.ckpt", "*.pt", "*.pth")
STEMS = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call weights."""
SHARD = r"-\d+-of-\d+"
WEIGHTS = re.compile(
    rf"(?:{'|'.join(STEMS)})(?P<old_shard>{SHARD})?(?:\.(?P<variant>[^.]+?))?(?P<shard>{SHARD})?"
    r"\.safetensors"
)
"""diffusion_pytorch_model[.fp16][-00001-of-00002].safetensors; before diffusers 0.31 the variant
stood after the numbers."""
META = "__metadata__"


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
        GoodRtError: there are none, with how to convert a pickle; or the weights are there twice.
    """
    variants: dict[str | None, dict[bool, list[Path]]] = {}
    others = []
    for path in sorted(folder.glob("*.safetensors")):
        match = WEIGHTS.fullmatch(path.name)
        if match is None:
            others.append(path)
        elif match["variant"] != "non_ema":
            forms = variants.setdefault(match["variant"], {})
            forms.setdefault(
                match["shard"] is not None or match["old_shard"] is not None, []
            ).append(path)
    if not variants:
        low_rank = [path for path in others if "lora" in path.name.lower()]
        if low_rank:
            from good_rt.classifier.weights import refuse_lora

            refuse_lora(["lora_"], low_rank[0])
        pickled = [
            path.name for pattern in PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))
        ]
        hint = (
            f"; {pickled[0]} is a pickle and is not read: save it with safe_serialization=True"
            if pickled
            else f"; {others[0].name} has none of their names: rename it to {STEMS[0]}.safetensors"
            if others
            else ""
        )
        raise GoodRtError(f"{folder} has no .safetensors weights{hint}")
    variant = None if None in variants else sorted(filter(None, variants))[0]
    forms = variants[variant]
    if len(forms) > 1:
        raise GoodRtError(
            f"{folder} has its weights twice: {forms[False][0].name}, and {len(forms[True])} files "
            f"such as {forms[True][0].name}; remove one of both"
        )
    return variant, next(iter(forms.values()))


@dataclass(frozen=True)
class StoredTensor:
    """Type and shape of a tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, from its header: a length of 8 bytes, then JSON.

    Args:
        path: The file.

    Raises:
        GoodRtError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            value = json.loads(file.read(min(length, 100_000_000)))
        return {
            name: StoredTensor(str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for name, entry in value.items()
            if name != META
        }
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GoodRtError(
            f"{path} is not a safetensors file ({type(error).__name__}); download it again"
        ) from None


def check_weights(folder: Path, network: Any) -> None:
    """Checks, by the headers of a part's files, that they hold the network's weights.

    Args:
        folder: The part's folder.
        network: The part without weights.

    Raises:
        GoodRtError: names or shapes differ.
    """
    _, files = weight_files(folder)
    stored = {name: t.shape for path in files for name, t in stored_tensors(path).items()}
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    parameters = dict(network.named_parameters(remove_duplicate=False))
    names = _library_names(network, stored, own, files[0])
    given = {names[name]: shape for name, shape in stored.items() if name in names}
    # what is the same parameter under two names is stored once
    there = {id(parameters[name]) for name in given if name in parameters}
    missing = sorted(
        name for name in own.keys() - given.keys() if id(parameters.get(name)) not in there
    )
    if missing:
        raise GoodRtError(
            f"{folder} lacks the weight {missing[0]!r} ({len(missing)} missing in all); its "
            "config.json belongs to another model"
        )
    for name in sorted(own.keys() & given.keys()):
        if own[name] != given[name]:
            raise GoodRtError(
                f"{folder}: weight {name!r} has shape {given[name]}, and config.json describes "
                f"{own[name]}; it belongs to another model"
            )
    unknown = sorted(given.keys() - own.keys())
    if unknown and hasattr(network, "_fix_state_dict_keys_on_load"):  # of diffusers
        raise GoodRtError(
            f"{folder} has the weight {unknown[0]!r}, which the network of its config.json has not "
            f"({len(unknown)} in all); its config.json belongs to another model"
        )


def _library_names(
    network: Any, stored: Iterable[str], own: Collection[str], path: Path
) -> dict[str, str]:
    """Names in a part's files -> the network's, older ones of diffusers included."""
    from good_rt.classifier.weights import plain_names

    names = {name: name for name in stored}
    if hasattr(network, "_fix_state_dict_keys_on_load"):
        renamed: OrderedDict[str, str] = OrderedDict(
            (name.replace("_orig_mod.", ""), name) for name in stored
        )
        network._fix_state_dict_keys_on_load(renamed)  # its values stay
        names = {old: new for new, old in renamed.items()}
    # what is one parameter under two names is stored once
    shared: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    tied = {
        name
        for group in shared.values()
        if len(group) > 1
        for name in group
        if not any(f".{other}".endswith(f".{name}") for other in names.values())
    }
    plain = plain_names(list(names.values()), set(own) - tied, path)
    return {old: plain[new] for old, new in names.items() if new in plain}


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
    if loading["missing_keys"]:  # the libraries would leave them random
        _load_renamed(model, folder)
    model = model.float().eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise GoodRtError(
                f"{folder}: weight {name!r} has values that are not finite; train or convert it "
                "again"
            )
    return model


def _load_renamed(model: Any, folder: Path) -> None:
    """Loads weights of other names than the network's, such as those of a compiled one."""
    from good_rt.classifier.weights import load_weights

    check_weights(folder, model)
    _, files = weight_files(folder)
    state = {name: tensor for path in files for name, tensor in load_weights(path).items()}
    names = _library_names(model, state, model.state_dict().keys(), files[0])
    # names and shapes were checked; what is missing is another name of what is there
    model.load_state_dict(
        {names[name]: tensor for name, tensor in state.items() if name in names}, strict=False
    )


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
    check_weights(folder, empty_part(folder))
    return load_part(getattr(diffusers, name), folder, low_cpu_mem_usage=False)


def empty_text_encoder(folder: Path) -> Any:
    """A text encoder of transformers without weights.

    Raises:
        GoodRtError: the config does not fit its class, or transformers is missing.
    """
    import torch

    transformers = require("transformers", "toolkit")
    name = class_name(folder)
    with quiet_loading(), torch.device("meta"):
        try:
            kind = getattr(transformers, name)
            return kind(kind.config_class.from_dict(read_json(folder / "config.json")))
        except Exception as error:
            raise GoodRtError(
                f"{folder / 'config.json'} does not make a {name} ({first_line(error)})"
            ) from None


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
