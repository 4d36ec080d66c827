"""Classifiers in a .pt2 file, as `torch.export.save` writes it.

The file is looked through before PyTorch reads it: pickled contents, and names and expressions that
are no part of a graph, are refused, so that a file from elsewhere runs no code of its own.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from good_rt.classifier.base import ClassifierConfig
from good_rt.classifier.network import ClassifierNetwork, example_images, run_network
from good_rt.classifier.sources.graph import GraphNetwork, graph_network, input_shape
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
    settled,
)
from good_rt.classifier.weights import load_weights, put_weights
from good_rt.errors import GoodRtError, first_line

EXPORTED_FILE = "model.pt2"
TARGET = re.compile(r"torch\.ops\.[\w.]+|_operator\.\w+|math\.\w+|torch\.sym_\w+")
"""What an operation may be called: PyTorch would look up anything else as well."""
WORDS = frozenset(
    {
        "Symbol",
        "positive",
        "nonnegative",
        "integer",
        "real",
        "True",
        "False",
        "Integer",
        "Rational",
        "Float",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Mod",
        "PythonMod",
        "FloorDiv",
        "CeilDiv",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "TruncToInt",
        "ToFloat",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "Relational",
        "IntTrueDiv",
        "FloatTrueDiv",
    }
)
"""What an expression of sizes may hold beside numbers and symbols such as s0: PyTorch evaluates it
as Python."""


def open_exported(request: ClassifierRequest) -> OpenedClassifier:
    """The file's network, with the weights in it."""
    path = Path(request.name)
    program = load_program(path)
    shape = input_shape(program, str(path))
    network = graph_network(program, str(path), request.features)
    network.files = {EXPORTED_FILE: path.read_bytes()}
    return graph_classifier(network, "exported", shape, request)


def graph_classifier(
    network: ClassifierNetwork,
    architecture: str,
    shape: tuple[int | None, int | None],
    request: ClassifierRequest,
) -> OpenedClassifier:
    """A graph as an opened classifier, with its number of classes from a trial run.

    Args:
        network: The graph's network.
        architecture: Name that classifier.json records.
        shape: Channels and size of its images, None for what the file leaves open.
        request: Names the file, and gives what it leaves open.

    Raises:
        GoodRtError: channels or size are missing or not the file's, or the output is not logits
            (N, K).
    """
    where = request.name
    channels = settled(shape[0], request.input_channels, "channels", where)
    size = settled(shape[1], request.input_size, "size", where)
    outputs = run_network(network, example_images(channels, size))
    if outputs.ndim != 2:
        raise GoodRtError(
            f"{where} gives an output of shape {tuple(outputs.shape)}; it must be logits (N, K)"
        )
    return OpenedClassifier(
        network, outputs.shape[1], architecture, input_channels=channels, input_size=size
    )


def restore_exported(config: ClassifierConfig, folder: Path) -> nn.Module:
    """The file in the folder, with the folder's weights."""
    path = folder / EXPORTED_FILE
    network = graph_network(load_program(path), str(path), config.features)
    network.files = {EXPORTED_FILE: path.read_bytes()}
    return with_weights(network, folder)


EXPORTED = ClassifierSource(open_exported, restore_exported)


def with_weights(network: GraphNetwork, folder: Path) -> GraphNetwork:
    """Puts a folder's model.safetensors into a graph."""
    weights = folder / "model.safetensors"
    if network.state_dict():
        put_weights(network, load_weights(weights), weights, "the graph beside it")
    return network


def load_program(path: Path) -> torch.export.ExportedProgram:
    """The program of a .pt2 file, checked.

    Args:
        path: The file.

    Raises:
        GoodRtError: the file is missing, damaged, or refused by `check_archive`.
    """
    if not path.exists():
        raise GoodRtError(f"{path} is missing")
    try:
        check_archive(path)
        return torch.export.load(path)
    except GoodRtError:
        raise
    except Exception as error:  # torch.export raises many kinds
        reason = first_line(error)
        raise GoodRtError(
            f"{path} cannot be read by torch.export.load of torch {torch.__version__} ({reason}); "
            "export it again"
        ) from None


def check_archive(path: Path) -> None:
    """Checks that a file is an archive of torch.export that runs no code when it is read.

    Args:
        path: The .pt2 file.

    Raises:
        GoodRtError: it is not.
    """
    refuse = f"{path} is not read: "
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name.partition("/")[2]: name for name in archive.namelist()}
            names = [name for name in files if re.fullmatch(r"models/[^/]+\.json", name)]
            if len(names) != 1:
                raise GoodRtError(
                    f"{refuse}it is no .pt2 file of this PyTorch; write it with torch.export.save"
                )
            values = [
                json.loads(archive.read(files[name])) for name in files if name.endswith(".json")
            ]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise GoodRtError(
            f"{path} is not a .pt2 file ({error}); write it with torch.export.save"
        ) from None
    for key, value in (pair for document in values for pair in _pairs(document)):
        if key == "use_pickle" and value:
            raise GoodRtError(
                f"{refuse}it holds pickled values, which can run code; export a network of plain "
                "tensors"
            )
        if key == "target" and isinstance(value, str) and not TARGET.fullmatch(value):
            raise GoodRtError(
                f"{refuse}it calls {value[:60]!r}, which is no operation of a network"
            )
        if key == "expr_str" and isinstance(value, str) and not _is_size(value):
            raise GoodRtError(f"{refuse}{value[:60]!r} is no expression of sizes")


def _is_size(text: str) -> bool:
    """Whether an expression only contains numbers, symbols and arithmetic."""
    words = re.findall(r"[A-Za-z_]\w*", text)
    plain = re.fullmatch(r"[\w\s+\-*/(),.='<>!%&|~]*", text) and not re.search(
        r"\.\s*[A-Za-z_]", text
    )
    return bool(plain) and all(word in WORDS or re.fullmatch(r"[suz]f?\d+", word) for word in words)


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value in a JSON document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)
