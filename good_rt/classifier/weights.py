"""Weights from safetensors files, and what is said of a pickle, which is never read: it can run
code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from good_rt.classifier.network import library_names
from good_rt.errors import GoodRtError

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar"})


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, floating-point ones as float32.

    Args:
        path: The file.

    Raises:
        GoodRtError: the file is missing, something else, or not finite.
    """
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


def pickle_refusal(path: Path | str) -> str:
    """What is said of a pickled state dict: what to do with it."""
    name = Path(path).name
    target = Path(name).with_suffix(".safetensors")
    return (
        f"{path} is a pickle, which can run code, and is not read; if you trust it, convert it "
        "once to safetensors: "
        'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() '
        "for k, v in "
        f"torch.load('{name}', weights_only=True).items()}}, '{target}')\""
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
        state: Tensors by name; names may start with DataParallel's "module.".
        path: The file that they are from, for errors.
        whose: What the weights should belong to, for errors.
        described_in: What says the network's shapes, for errors; None for ``whose``.

    Raises:
        GoodRtError: names or shapes do not fit.
    """
    names = library_names(network)
    if state and all(name.startswith("module.") for name in state):  # as DataParallel writes them
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    wanted = set(names.values())
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
    for name, tensor in sorted(library_state(network).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, content in sorted(getattr(network, "files", {}).items()):
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()
