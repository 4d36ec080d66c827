"""The kinds of classifier spec, and the file that reads each. Another kind is one more line here.

A source is imported when a spec or a classifier folder asks for it, and its library with it; an
installed plug-in when a spec names it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from good_rt.classifier.base import ClassifierConfig
from good_rt.errors import GoodRtError
from good_rt.plugins import CLASSIFIER_PLUGINS, load_plugin

HERE = "good_rt.classifier.sources"


@dataclass(frozen=True)
class SpecForm:
    """One kind of spec: the source that reads it, as MODULE:NAME, its form for people, and the
    files that it is recognised by."""

    source: str
    form: str
    prefixed: bool = True
    """Whether a spec reads KIND:NAME; without, it is known by its file's suffix or its form."""
    suffixes: tuple[str, ...] = ()


SOURCES: dict[str, SpecForm] = {
    "timm": SpecForm(f"{HERE}.timm:TIMM", "timm:NAME_OR_FOLDER[@weights.safetensors]"),
    "torchvision": SpecForm(
        f"{HERE}.torchvision:TORCHVISION", "torchvision:NAME@weights.safetensors"
    ),
    "transformers": SpecForm(f"{HERE}.transformers:TRANSFORMERS", "transformers:FOLDER_OR_NAME"),
    "exported": SpecForm(f"{HERE}.exported:EXPORTED", "FILE.pt2", False, (".pt2",)),
    "torchscript": SpecForm(
        f"{HERE}.torchscript:TORCHSCRIPT", "FILE.pt", False, (".pt", ".ts", ".jit")
    ),
    "onnx": SpecForm(f"{HERE}.onnx:ONNX", "FILE.onnx", False, (".onnx",)),
    "module": SpecForm(f"{HERE}.module:MODULE", "MODULE:ATTR@weights.safetensors", False),
}


@dataclass(frozen=True)
class ClassifierRequest:
    """A spec taken apart: what comes before the @, the weights after it, and what the caller sets
    himself."""

    name: str
    weights: Path | None = None
    features: str | None = None
    input_size: int | None = None
    input_channels: int | None = None
    named: bool = False
    """Whether the caller names the classes, so that the source's own names do not matter."""
    preprocessing: bool = False
    """Whether the caller gives size, mean and std, so that the source's own do not matter."""


@dataclass(frozen=True)
class OpenedClassifier:
    """What a source knows of a classifier. None is what it does not know.

    ``network`` has ``forward_features`` and ``forward_head`` (`good_rt.classifier.Classifier`);
    ``outputs`` is the number of its logits. ``arguments`` is kept in classifier.json, to build the
    network again from.
    """

    network: nn.Module
    outputs: int
    architecture: str = ""
    """Its source and name in classifier.json. `load_classifier` writes that of a plug-in."""
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
    notes: tuple[str, ...] = ()
    """What was assumed of the source, for people."""


@dataclass(frozen=True)
class ClassifierSource:
    """The two functions that read one kind of classifier. Both raise GoodRtError when they
    cannot."""

    open: Callable[[ClassifierRequest], OpenedClassifier]
    """Reads what a spec names."""
    restore: Callable[[ClassifierConfig, Path], nn.Module]
    """The network of a classifier folder, with its weights."""


def settled(own: int | None, asked: int | None, option: str, where: str) -> int:
    """What a file fixes, or what the caller gives where it leaves it open.

    Args:
        own: The file's value; None where it has none.
        asked: The caller's; None where he gives none.
        option: Name of the setting, "size" or "channels".
        where: The file, for errors.

    Raises:
        GoodRtError: both are there and differ, or there is neither.
    """
    value = own if asked is None else asked
    if value is None:
        raise GoodRtError(
            f"{where} does not say what images it takes; give the {option} (--{option})"
        )
    if own is not None and value != own:
        raise GoodRtError(
            f"{where} only takes images of {option} {own}, not {value}; leave out --{option}"
        )
    return value


def square_size(sides: Sequence[Any], where: str) -> int | None:
    """Height and width of images; None where either is open.

    Args:
        sides: Height and width: numbers where they are fixed.
        where: The file, for errors.

    Raises:
        GoodRtError: they differ.
    """
    fixed = {side for side in sides if isinstance(side, int)}
    if len(fixed) > 1:
        raise GoodRtError(
            f"{where} takes images of {sides[0]}x{sides[1]} pixels; only square ones are supported"
        )
    return fixed.pop() if fixed else None


def classifier_source(kind: str) -> ClassifierSource:
    """The source that reads this kind of classifier, imported with its library.

    Args:
        kind: A key of `SOURCES`, or an installed plug-in's name.

    Raises:
        GoodRtError: there is no such plug-in, it cannot be imported, or is something else.
    """
    if kind not in SOURCES:
        plugin = load_plugin(CLASSIFIER_PLUGINS, kind)
        if not isinstance(plugin, ClassifierSource):
            raise GoodRtError(
                f"the plug-in {kind!r} is of type {type(plugin).__name__}; its entry point must "
                "name a good_rt.classifier.ClassifierSource"
            )
        return plugin
    module, _, name = SOURCES[kind].source.partition(":")
    source: ClassifierSource = getattr(importlib.import_module(module), name)
    return source
