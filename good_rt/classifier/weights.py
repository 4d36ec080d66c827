"""Weights from safetensors files, and what is said of a pickle, which is never read: it can run
code."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection, Iterable
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from good_rt.classifier.network import library_names
from good_rt.errors import GoodRtError
from good_rt.files import read_json

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar"})
COMPILED = "_orig_mod."
"""What torch.compile puts into names, before those of the module that it compiled."""
COUNTERS = frozenset({"n_averaged"})
"""What torch.optim.swa_utils.AveragedModel keeps beside the weights."""
LORA = re.compile(
    r"lora[._](?:A|B|a|b|up|down|mid|linear|embedding)|(?:^|[._])lora_|\.base_layer\."
)
"""In the names of low-rank layers, which belong to other weights, and of the layers they wrap."""
INDEX = ".index.json"


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, floating-point ones as float32.

    Args:
        path: The file; of weights in several files the name without numbers, or their index.

    Raises:
        GoodRtError: the file is missing, something else, or not finite.
    """
    state = {}
    for file in shards(path):
        state.update(_load_file(file))
    return state


def shards(path: Path) -> list[Path]:
    """The files of weights: the file itself, or those that the index beside it names.

    Args:
        path: The .safetensors file, or the .index.json of several.

    Raises:
        GoodRtError: a file is missing, or the index is damaged.
    """
    index = path if path.name.endswith(INDEX) else path.with_name(path.name + INDEX)
    if (path.exists() and path != index) or not index.exists():
        return [path]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise GoodRtError(f"{index} names no files (weight_map); save the weights again")
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name or not (index.parent / name).exists():
            raise GoodRtError(
                f"{index} names {name!r}, which does not lie beside it; copy all files of the "
                "weights into one folder"
            )
    return [index.parent / name for name in files]


def _load_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        pickled = sorted(p.name for p in path.parent.glob("*") if p.suffix in PICKLE_SUFFIXES)
        hint = (
            f"; {pickled[0]} is a pickle and is not read: convert it to safetensors"
            if pickled
            else ""
        )
        raise GoodRtError(f"{path} is missing{hint}")
    if path.suffix in PICKLE_SUFFIXES:
        raise GoodRtError(pickle_refusal(path))
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise GoodRtError(
            f"{path} is not a safetensors file ({error}); save the weights again"
        ) from None
    for name, tensor in state.items():
        if tensor.is_floating_point():
            if not tensor.isfinite().all():
                raise GoodRtError(
                    f"{path}: weight {name!r} has values that are not finite; train or convert it "
                    "again"
                )
            state[name] = tensor.float()
    return state


def pickle_refusal(*paths: Path | str) -> str:
    """What is said of pickled weights, in one file or several: what to do with them.

    Args:
        paths: The files; a web address stands for its download.
    """
    first = str(paths[0])
    names = [Path(path).name if "://" in str(path) else str(path) for path in paths]
    target = Path(re.sub(r"-\d+-of-\d+", "", names[0])).with_suffix(".safetensors")
    command = shlex.join(["python", "-m", "good_rt.classifier.unpickle", *names, str(target)])
    return (
        f"{first} is a pickle, which can run code, and is not read; convert its tensors once to "
        f"safetensors: {command}"
    )


def plain_names(names: Collection[str], wanted: Collection[str], path: Path) -> dict[str, str]:
    """Names in a file -> the network's, without what wrappers put before them: torch.compile's
    _orig_mod., DataParallel's module., Lightning's model., ema. or any other prefix.

    Args:
        names: Names of the file's tensors.
        wanted: The network's.
        path: The file, for errors.

    Raises:
        GoodRtError: the file holds several sets of weights, or low-rank layers.
    """
    refuse_lora(set(names) - set(wanted), path)
    plain = {name: name.replace(COMPILED, "") for name in names if name not in COUNTERS}
    found = _prefixes(plain.values(), wanted)
    if not found:
        inner = {name: other.replace("module.", "") for name, other in plain.items()}
        plain, found = (inner, [""]) if set(inner.values()) == set(wanted) else (plain, found)
    if len(found) > 1:
        sets = " and ".join(repr(f"{prefix}{min(wanted)}") for prefix in found[:2])
        raise GoodRtError(
            f"{path} holds {len(found)} sets of weights, such as {sets}; save only the one to use"
        )
    prefix = found[0] if found else _shared_prefix(plain.values(), wanted)
    return {name: other.removeprefix(prefix) for name, other in plain.items()}


def _prefixes(names: Iterable[str], wanted: Collection[str]) -> list[str]:
    """The prefixes with which all wanted names are there."""
    names, longest = set(names), max(wanted, key=len, default="")
    ends = {name.removesuffix(longest) for name in names if name.endswith(longest)}
    return [
        prefix
        for prefix in sorted(ends)
        if prefix.endswith((".", "")[not prefix]) and all(prefix + name in names for name in wanted)
    ]


def _shared_prefix(names: Collection[str], wanted: Collection[str]) -> str:
    """What all names start with up to a dot, and no wanted one; for weights that do not fit."""
    first, last = min(names, default=""), max(names, default="")
    shared = "".join(
        takewhile(str, (a if a == b else "" for a, b in zip(first, last, strict=False)))
    )
    prefix = shared[: shared.rfind(".") + 1]
    return prefix if prefix and not any(name.startswith(prefix) for name in wanted) else ""


def refuse_lora(names: Iterable[str], path: Path) -> None:
    """Refuses low-rank layers, which are no weights of their own.

    Args:
        names: Names of tensors that the network has not.
        path: The file, for errors.

    Raises:
        GoodRtError: there are some.
    """
    low_rank = sorted(name for name in names if LORA.search(name))
    if low_rank:
        raise GoodRtError(
            f"{path} holds LoRA layers ({low_rank[0]!r}), which change the weights of another "
            "file; merge them into it (peft: merge_and_unload(), diffusers: fuse_lora() and "
            "unload_lora_weights()) and save the whole network"
        )


def put_weights(
    network: nn.Module,
    state: dict[str, Tensor],
    path: Path,
    whose: str,
    described_in: str | None = None,
) -> None:
    """Loads a state dict with the library's own names into a network.

    Args:
        network: The network, changed in place.
        state: Tensors by name; `plain_names` are enough.
        path: The file that they are from, for errors.
        whose: What the weights should belong to, for errors.
        described_in: What says the network's shapes, for errors; None for ``whose``.

    Raises:
        GoodRtError: names or shapes do not fit.
    """
    names = library_names(network)
    wanted = set(names.values())
    state = {new: state[old] for old, new in plain_names(state, wanted, path).items()}
    missing, unexpected = wanted - state.keys(), state.keys() - wanted
    if missing or unexpected:
        what = (
            f"lacks {min(missing)!r}"
            if missing
            else f"has {min(unexpected)!r}, which the network does not"
        )
        raise GoodRtError(f"{path} {what}; it does not belong to {whose}")
    try:
        network.load_state_dict({own: state[name] for own, name in names.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise GoodRtError(f"{path} does not fit {described_in or whose}: {reason}") from None


def library_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's weights under its library's own names, as safetensors takes them."""
    state = network.state_dict()
    return {
        name: state[own].detach().contiguous().clone()
        for own, name in library_names(network).items()
    }


def weights_hash(network: nn.Module) -> str:
    """One hash of all weights, their names and the files that the network was read from."""
    digest = hashlib.sha256()
    state = library_state(network)
    # buffers that are not saved decide as well
    kept = network.state_dict().keys()
    state |= {
        f"(not saved) {name}": tensor.detach().contiguous().clone()
        for name, tensor in network.named_buffers()
        if name not in kept
    }
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, content in sorted(getattr(network, "files", {}).items()):
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()
