"""Where classifiers come from: the kinds of spec, and the file that reads each. Another source is
one more line here.

Each file has the two functions of `Source`; it is imported when it is asked for, and its library
with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from good_rt.classifier.base import ClassifierConfig


@dataclass(frozen=True)
class Entry:
    """One kind of spec: the module that reads it, its form for people, and the files that it is
    known by."""

    module: str
    form: str
    prefixed: bool = True
    """Whether a spec reads KIND:NAME; without, it is known by its file's suffix or its form."""
    suffixes: tuple[str, ...] = ()


SOURCES: dict[str, Entry] = {
    "timm": Entry("good_rt.classifier.sources.timm", "timm:NAME_OR_FOLDER[@weights.safetensors]"),
    "torchvision": Entry(
        "good_rt.classifier.sources.torchvision", "torchvision:NAME@weights.safetensors"
    ),
    "transformers": Entry("good_rt.classifier.sources.transformers", "transformers:FOLDER_OR_NAME"),
    "exported": Entry(
        "good_rt.classifier.sources.exported", "FILE.pt2", prefixed=False, suffixes=(".pt2",)
    ),
    "torchscript": Entry(
        "good_rt.classifier.sources.torchscript",
        "FILE.pt",
        prefixed=False,
        suffixes=(".pt", ".ts", ".jit"),
    ),
    "onnx": Entry(
        "good_rt.classifier.sources.onnx", "FILE.onnx", prefixed=False, suffixes=(".onnx",)
    ),
    "module": Entry(
        "good_rt.classifier.sources.module", "MODULE:ATTR@weights.safetensors", prefixed=False
    ),
}


@dataclass(frozen=True)
class Request:
    """A spec taken apart: what comes before the @, the weights after it, and what the caller sets
    himself."""

    name: str
    weights: Path | None = None
    features: str | None = None
    input_size: int | None = None
    input_channels: int | None = None


@dataclass(frozen=True)
class Found:
    """What a source knows of a classifier. None is what it does not know.

    ``architecture`` and ``arguments`` are what classifier.json keeps, to build the network again
    from.
    """

    network: nn.Module
    architecture: str
    outputs: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    input_channels: int = 3
    input_size: int | None = None
    resize_size: int | None = None
    """Size that images are resized to before the middle ``input_size`` is kept."""
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = (0.0,)
    """Of images in [0, 1], which most networks take; None where it takes [-1, 1]."""
    std: tuple[float, ...] | None = (1.0,)
    stated: bool = False
    """Whether the preprocessing was read from the source's own settings."""


class Source(Protocol):
    """The functions of a source's module."""

    def open(self, request: Request) -> Found:
        """Reads what the spec names. Raises GoodRtError when it cannot."""
        ...

    def restore(self, config: ClassifierConfig, folder: Path) -> nn.Module:
        """The network of a classifier folder, with its weights. Raises GoodRtError when it
        cannot."""
        ...


def source(kind: str) -> Source:
    """The module that reads this kind of classifier."""
    return cast(Source, importlib.import_module(SOURCES[kind].module))
