"""`load_classifier`: a folder or a spec, such as ``timm:resnet18@weights.safetensors``, to a ready
`Classifier`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from torch import nn

from good_rt.classifier.base import Classifier, ClassifierConfig, Resize
from good_rt.classifier.class_names import placeholder_names
from good_rt.classifier.folder import (
    CONFIG,
    WEIGHTS,
    check_network,
    folder_fingerprint,
    load_folder,
    read_config,
)
from good_rt.classifier.resampling import FILTERS
from good_rt.classifier.sources.registry import (
    SOURCES,
    ClassifierRequest,
    OpenedClassifier,
    classifier_source,
    settled,
)
from good_rt.classifier.weights import (
    PICKLE_SUFFIXES,
    load_weights,
    pickle_refusal,
    put_weights,
    weights_hash,
)
from good_rt.errors import GoodRtError
from good_rt.plugins import CLASSIFIER_PLUGINS, PLUGIN_NAME, installed_text, plugin_names
from good_rt.specs import split_kind, split_weights

FORMS = ("FOLDER", *(entry.form for entry in SOURCES.values()), "PLUGIN:ARGUMENT")
"""What `load_classifier` takes, for people."""


@dataclass(frozen=True)
class Settings:
    """What the caller says of a network in place of the source; None keeps what the source says.

    Attributes:
        features: Module (in a .pt2, .pt or .onnx file: the value) whose input is the features.
        size: Height and width of the network's images.
        channels: Channels of the network, where they cannot be read from it.
        mean: Mean of images in [0, 1], one value per channel or one for all.
        std: Their standard deviation, likewise.
        interpolation: Filter that resizes images, a key of `good_rt.classifier.resampling.FILTERS`.
        classes: Names of the classes, in the order of the logits.
    """

    features: str | None = None
    size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.interpolation is not None and self.interpolation not in FILTERS:
            raise GoodRtError(
                f"unknown interpolation {self.interpolation!r}; known are {', '.join(FILTERS)}"
            )
        wrong = [value for value in self.mean or () if not math.isfinite(value)]
        wrong += [value for value in self.std or () if not 0 < value < math.inf]
        if wrong:
            raise GoodRtError(
                f"mean and std cannot be {wrong[0]}; give numbers of images in [0, 1], std above 0"
            )


def load_classifier(spec: Path | str, settings: Settings = Settings()) -> Classifier:
    """A classifier in evaluation mode, float32, without gradients of its weights.

    It takes images of the network's own size and channels; `Classifier.for_images` makes it take
    others.

    Args:
        spec: A folder, or a spec in one of the `FORMS`.
        settings: Replace what the source says of the network; only for specs.

    Raises:
        GoodRtError: the spec is unknown, a library or file is missing, or the weights are damaged,
            a pickle, not finite, or do not fit.
    """
    text, path = str(spec), Path(spec)
    if path.is_dir():
        _refuse_settings(settings, text)
        return load_folder(path)
    kind, request = _parse(text, settings)
    if kind == "folder":
        return load_folder(path)
    runs_code = kind == "module" or kind not in SOURCES
    if runs_code and request.weights is not None and request.weights.is_dir():
        _refuse_settings(settings, text)
        return _folder_with_code(kind, request.name, request.weights)
    opened = classifier_source(kind).open(request)
    if kind not in SOURCES:
        opened = replace(opened, architecture=_plugin_architecture(kind, request.name))
    network = opened.network.eval().requires_grad_(False)
    if settings.channels is not None:
        settled(opened.input_channels, settings.channels, "channels", text)
    config = _config(opened, settings, text)
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    digest.update(weights_hash(network).encode())
    classifier = Classifier(network, config, digest.hexdigest()).eval()
    check_network(classifier, text)
    classifier.notes += opened.notes
    if opened.outputs == 1:
        classifier.notes += (f"the one output is the second class's; {config.classes[0]!r} has 0",)
    return classifier


def saved_spec(classifier: Classifier, folder: Path) -> Path:
    """What `load_classifier` opens a classifier by that was saved to a folder: the folder, which
    can have no code run, after the name of the user's own code or plug-in where it is of such."""
    kind, _, name = classifier.config.architecture.partition(":")
    return Path(f"{name}@{folder}") if kind in {"module", "plugin"} else folder


def _parse(text: str, settings: Settings) -> tuple[str, ClassifierRequest]:
    """The kind of spec and its parts."""
    name, weights = split_weights(text)

    def request(name: str) -> ClassifierRequest:
        given = Path(weights) if weights else None
        return ClassifierRequest(
            name,
            given,
            settings.features,
            settings.size,
            settings.channels,
            named=settings.classes is not None,
            preprocessing=None not in (settings.size, settings.mean, settings.std),
        )

    if weights and not Path(weights).exists():
        raise GoodRtError(
            f"{weights} does not exist (in {text!r}); give a safetensors file after the @"
        )
    if weights and Path(weights).suffix in PICKLE_SUFFIXES:
        raise GoodRtError(pickle_refusal(weights))
    prefix, rest = split_kind(name)
    if prefix and prefix in SOURCES and SOURCES[prefix].prefixed:
        if not rest:
            raise GoodRtError(f"{text!r} names no model; write {SOURCES[prefix].form}")
        return prefix, request(rest)
    suffix = Path(name).suffix
    for kind, entry in SOURCES.items():
        if suffix in entry.suffixes:
            if weights:
                raise GoodRtError(
                    f"{text!r}: a {suffix} file has its weights in it; leave out what follows the @"
                )
            if not Path(name).exists():
                raise GoodRtError(f"{name} does not exist; give the path of a {suffix} file")
            return kind, request(name)
    could_be_plugin = prefix and rest and PLUGIN_NAME.fullmatch(prefix) and not Path(name).exists()
    if could_be_plugin and prefix in plugin_names(CLASSIFIER_PLUGINS):
        return prefix, request(rest)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name):
        return "module", request(name)
    if suffix in PICKLE_SUFFIXES and Path(name).exists():
        raise GoodRtError(pickle_refusal(name))
    if suffix == ".safetensors":
        raise GoodRtError(
            f"{text} only holds weights; say of which network, such as timm:resnet18@{text}"
        )
    if could_be_plugin:
        raise GoodRtError(
            f"{text!r} names no classifier plug-in: {installed_text(CLASSIFIER_PLUGINS)}; known "
            f"forms are {', '.join(FORMS)}"
        )
    if weights:
        raise GoodRtError(f"{text!r} is no classifier; known are {', '.join(FORMS)}")
    return "folder", request(name)


def _config(opened: OpenedClassifier, settings: Settings, text: str) -> ClassifierConfig:
    size = settings.size or opened.input_size
    if size is None:
        raise GoodRtError(f"{text} does not say what images it takes; give the size")
    count = max(2, opened.outputs)
    classes = settings.classes or opened.classes or placeholder_names(count)
    if len(classes) != count:
        outputs = "one output, for two classes" if opened.outputs == 1 else f"{count} outputs"
        raise GoodRtError(f"{text} has {outputs}, but {len(classes)} classes are named")
    own_size = size == opened.input_size
    return ClassifierConfig(
        architecture=opened.architecture,
        classes=classes,
        channels=opened.input_channels,
        image_size=size,
        arguments=dict(opened.arguments),
        mean=settings.mean or opened.mean,
        std=settings.std or opened.std,
        input_channels=opened.input_channels,
        resize=Resize(
            (opened.resize_size if own_size else None) or size,
            size,
            settings.interpolation or opened.interpolation,
        ),
        features=settings.features,
    )


def _refuse_settings(settings: Settings, text: str) -> None:
    given = [field.name for field in fields(settings) if getattr(settings, field.name) is not None]
    if given:
        raise GoodRtError(
            f"{text} has settings of its own; {given[0]} cannot be given with it: change {CONFIG} "
            "instead"
        )


def _plugin_architecture(name: str, argument: str) -> str:
    """What classifier.json has of a plug-in's classifier."""
    return f"plugin:{name}:{argument}"


def _folder_with_code(kind: str, name: str, folder: Path) -> Classifier:
    """A classifier folder that was made from the user's code or a plug-in, which the spec names
    again."""
    config = read_config(folder)
    architecture = f"module:{name}" if kind == "module" else _plugin_architecture(kind, name)
    if config.architecture != architecture:
        raise GoodRtError(f"{folder} was made from {config.architecture}, not from {architecture}")
    if kind == "module":
        network = _module_network(name, config, folder)
    else:
        network = classifier_source(kind).restore(config, folder)
    classifier = Classifier(network, config, folder_fingerprint(network, folder))
    check_network(classifier.eval().requires_grad_(False), str(folder))
    return classifier


def _module_network(name: str, config: ClassifierConfig, folder: Path) -> nn.Module:
    """The user's own module with a folder's weights."""
    from good_rt.classifier.sources import module

    channels = config.input_channels or config.channels
    size = config.resize.crop if config.resize else config.image_size
    network: nn.Module = module.parts(module.make(name), channels, size, config.features)
    put_weights(network, load_weights(folder / WEIGHTS), folder / WEIGHTS, name)
    return network
