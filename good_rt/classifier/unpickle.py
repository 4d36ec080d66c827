"""``python -m good_rt.classifier.unpickle CHECKPOINT... OUT.safetensors``: the weights of pickled
checkpoints, as timm, Lightning, Accelerate and `torch.save` write them, as safetensors.

Only tensors are taken. The unpickler knows what rebuilds tensors, and puts a stand-in for every
other class and function, so that no code of the file runs. PyTorch's own unpickler for weights
refuses the dictionaries, paths and settings of other classes that checkpoints contain.
"""

from __future__ import annotations

import pickle
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor

from good_rt.errors import GoodRtError, first_line
from good_rt.files import atomic_path

USAGE = "usage: python -m good_rt.classifier.unpickle CHECKPOINT... OUT.safetensors [--key NAME]"


REBUILDING = frozenset(
    {
        ("__builtin__", "set"),
        ("builtins", "set"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.nn.parameter", "Parameter"),
    }
)
"""Modules and names of what a tensor is made by; its storage is read by `torch.load` itself."""
DTYPES = frozenset(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))


class Unknown:
    """Stands in for a class or function; it keeps what the file says of it and does nothing."""

    def __new__(cls, *args: object, **settings: object) -> Unknown:
        unknown = super().__new__(cls)
        unknown.items = {}
        return unknown

    def __init__(self, *args: object, **settings: object) -> None:
        self.items: dict[object, object]
        """Of a dictionary of another class."""

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, item: object) -> None:
        """An item of a list of another class, which is no weight."""

    def extend(self, items: object) -> None:
        """Likewise several."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class TensorUnpickler(pickle.Unpickler):
    """Reads tensors, and dictionaries of them; everything else becomes an `Unknown`."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of this name, if it rebuilds tensors.

        Args:
            module: The module that the file names.
            name: The name in it.
        """
        if (module, name) in REBUILDING or (module == "torch" and name in DTYPES):
            return super().find_class(module, name)
        return Unknown


def _load(file: IO[bytes], **settings: Any) -> Any:
    """`pickle.load`, which PyTorch's older format calls."""
    return TensorUnpickler(file, **settings).load()


def read_tensors(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The weights of a pickled checkpoint by name.

    Args:
        path: A file that `torch.save` wrote.
        key: Which of several sets of weights; None where there is one.

    Raises:
        GoodRtError: the file cannot be read, or holds no weights or several sets.
    """
    if tarfile.is_tarfile(path):
        raise GoodRtError(
            f"{path} is an archive or a checkpoint of PyTorch before 0.4; unpack it, or save the "
            "weights again"
        )
    try:
        content = torch.load(
            path,
            map_location="cpu",
            weights_only=False,  # the unpickler below allows less than that of weights only
            pickle_module=SimpleNamespace(__name__=__name__, Unpickler=TensorUnpickler, load=_load),
        )
    except Exception as error:  # torch.load raises many kinds
        raise GoodRtError(
            f"{path} cannot be read as a checkpoint of PyTorch ({first_line(error)[:160]}); save "
            "the state dict again, where the network was trained: "
            "torch.save(model.state_dict(), path)"
        ) from None
    sets = dict(_weight_sets(content))
    if not sets:
        raise GoodRtError(f"{path} holds no weights; give the file with the network's state dict")
    if key is None and len(sets) > 1:
        raise GoodRtError(
            f"{path} holds {len(sets)} sets of weights ({', '.join(sets)}); add --key "
            f"{next(iter(sets))} for the first"
        )
    if key is not None and key not in sets:
        raise GoodRtError(f"{path} has no weights {key!r}; it has {', '.join(sets)}")
    return sets[key if key is not None else next(iter(sets))]


def convert(paths: Sequence[Path], out: Path, key: str | None = None) -> str:
    """Writes the weights of pickled checkpoints, together one network, to a safetensors file.

    Args:
        paths: The checkpoints.
        out: The file to write.
        key: Which of several sets of weights in each.

    Returns:
        What was written, for people.

    Raises:
        GoodRtError: a checkpoint cannot be read, or two have a tensor of the same name.
    """
    from safetensors.torch import save_file

    if out.suffix != ".safetensors":
        raise GoodRtError(f"{out} is no .safetensors file; {USAGE}")
    state: dict[str, Tensor] = {}
    for path in paths:
        if not path.is_file():
            raise GoodRtError(f"{path} does not exist; {USAGE}")
        tensors = read_tensors(path, key)
        twice = tensors.keys() & state.keys()
        if twice:
            raise GoodRtError(f"{path} has {min(twice)!r} again; give the files of one network")
        state |= tensors
    with atomic_path(out) as temporary:
        save_file({name: value.contiguous().clone() for name, value in state.items()}, temporary)
    return f"{out}: {len(state)} tensors"


def _weight_sets(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The sets of weights in a checkpoint, by their key; "weights" where there are no others."""
    whole = _tensors(content)
    if whole:
        yield "weights", whole
        return
    content = content.items if isinstance(content, Unknown) else content
    if isinstance(content, Mapping):
        for key, value in content.items():
            tensors = _tensors(value)
            if isinstance(key, str) and any(tensor.ndim > 1 for tensor in tensors.values()):
                yield key, tensors


def _tensors(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state dict, or of a whole pickled module."""
    if isinstance(value, Unknown) and value.items:
        value = value.items
    if isinstance(value, Mapping):
        items = {name: item for name, item in value.items() if isinstance(name, str)}
        return {name: item.detach() for name, item in items.items() if isinstance(item, Tensor)}
    if not isinstance(value, Unknown):
        return {}
    state: dict[str, Tensor] = {}
    left_out = getattr(value, "_non_persistent_buffers_set", ())
    for part in ("_parameters", "_buffers"):
        for name, item in _tensors(getattr(value, part, {})).items():
            if name not in left_out:
                state[prefix + name] = item
    for name, module in getattr(value, "_modules", {}).items():
        state |= _tensors(module, f"{prefix}{name}.")
    return state


def run_command(arguments: Sequence[str]) -> int:
    """Converts what the command line names; returns the exit code.

    Args:
        arguments: Those of the command line.
    """
    names, key = list(arguments), None
    if "--key" in names[:-1]:
        place = names.index("--key")
        key = names[place + 1]
        del names[place : place + 2]
    if len(names) < 2 or any(name.startswith("--") for name in names):
        sys.stderr.write(f"{USAGE}\n")
        return 2
    try:
        written = convert([Path(name) for name in names[:-1]], Path(names[-1]), key)
    except GoodRtError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{written}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
