"""The classifier folder: classifier.json and model.safetensors, and for some sources the file they
were read from.

`good-rt train` and `good-rt classifier save` write one. A folder is data, whoever made it, and
names no code.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from good_rt.classifier.base import Classifier, ClassifierConfig
from good_rt.classifier.logits import check_logits
from good_rt.classifier.network import example_images, run_features
from good_rt.classifier.sources.registry import SOURCES, classifier_source
from good_rt.classifier.weights import library_state, load_weights, put_weights
from good_rt.errors import GoodRtError, first_line
from good_rt.files import atomic_path, sha256
from good_rt.records import RecordType, drop_format

CONFIG, WEIGHTS = "classifier.json", "model.safetensors"
CLASSIFIER_RECORD = RecordType("classifier", "save the classifier again", (drop_format,))
ARCHITECTURES = {"small_resnet": "good_rt.demo.network:SmallResNet"}
"""Name in classifier.json -> module:class, with timm's forward_features and forward_head; beside
them the sources'."""


def read_config(folder: Path) -> ClassifierConfig:
    """A folder's classifier.json.

    Args:
        folder: The classifier's folder.

    Raises:
        GoodRtError: it is missing, damaged, or of a newer version.
    """
    path = folder / CONFIG
    if not path.exists():
        raise GoodRtError(
            f"{folder} is not a classifier folder: {CONFIG} is missing; `good-rt classifier save` "
            "writes one"
        )
    return CLASSIFIER_RECORD.read_as(ClassifierConfig, path)


def load_folder(folder: Path) -> Classifier:
    """The classifier of a folder, in evaluation mode, float32, without gradients of its weights.

    Args:
        folder: The classifier's folder.

    Raises:
        GoodRtError: a file is missing or damaged, or the weights do not fit or are not finite.
    """
    config = read_config(folder)
    path = folder / CONFIG
    kind, colon, _ = config.architecture.partition(":")
    if config.architecture in ARCHITECTURES:
        network = _build_architecture(config, path)
        whose = f"architecture {config.architecture!r}"
        put_weights(network, load_weights(folder / WEIGHTS), folder / WEIGHTS, whose, CONFIG)
    elif kind in SOURCES and (colon or not SOURCES[kind].prefixed):
        network = _restore_source(kind, config, folder)
    elif kind == "plugin":
        raise GoodRtError(
            f"{folder} was made by a plug-in, and a folder cannot have code run; if you trust the "
            f"plug-in, open it as {config.architecture.removeprefix('plugin:')}@{folder}"
        )
    else:
        known = ", ".join(
            [
                *ARCHITECTURES,
                *(f"{name}:…" if entry.prefixed else name for name, entry in SOURCES.items()),
            ]
        )
        raise GoodRtError(
            f"{path}: unknown architecture {config.architecture!r}; known are {known}"
        )
    fingerprint = folder_fingerprint(network, folder)
    try:
        classifier = Classifier(network, config, fingerprint)
    except GoodRtError as error:
        raise GoodRtError(f"{path}: {error}") from None
    check_network(classifier.eval().requires_grad_(False), str(folder))
    return classifier


def check_network(classifier: Classifier, where: str) -> None:
    """Runs the network on example images: its outputs must be logits, one a class.

    Args:
        classifier: The classifier, in evaluation mode.
        where: Its folder or spec, for errors.

    Raises:
        GoodRtError: it does not take the images, has another number of outputs, or gives
            probabilities or values that are not finite.
    """
    config, network = classifier.config, classifier.network
    size = config.resize.crop if config.resize else config.image_size
    images = example_images(config.input_channels or config.channels, size)
    features = run_features(network, images)
    with torch.no_grad():
        logits = classifier.head(features)
    if logits.ndim != 2 or logits.shape[1] != len(config.classes):
        raise GoodRtError(
            f"{where} gives outputs of shape {tuple(logits.shape)} for {len(config.classes)} "
            "classes"
        )
    if not logits.isfinite().all():
        raise GoodRtError(
            f"{where} gives outputs that are not finite for ordinary images; check its weights, "
            "mean and std, or train or convert it again"
        )
    check_logits(network, features, where)


def folder_fingerprint(network: nn.Module, folder: Path) -> str:
    """One hash of all of the folder's files that make the classifier, and of what they refer to."""
    names = [CONFIG, *([WEIGHTS] if (folder / WEIGHTS).exists() else [])]
    hashes = [sha256(folder / name) for name in names]
    # as they were read: a file's content also contains the weights that lie beside it
    for _, content in sorted(getattr(network, "files", {}).items()):
        hashes.append(hashlib.sha256(content).hexdigest())
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Writes classifier.json, model.safetensors and what else `load_classifier` needs.

    Args:
        classifier: The classifier.
        folder: Folder that the files are written to, created where missing.
    """
    from safetensors.torch import save_file

    state = library_state(classifier.network)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in getattr(classifier.network, "files", {}).items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    if state:
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(state, temporary)
    CLASSIFIER_RECORD.write(folder / CONFIG, asdict(classifier.config))


def _build_architecture(config: ClassifierConfig, path: Path) -> nn.Module:
    module, _, name = ARCHITECTURES[config.architecture].partition(":")
    try:
        network: nn.Module = getattr(importlib.import_module(module), name)(
            in_channels=config.channels, num_classes=len(config.classes), **config.arguments
        )
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise GoodRtError(
            f"{path}: arguments do not fit architecture {config.architecture!r} "
            f"({first_line(error)})"
        ) from None
    return network


def _restore_source(kind: str, config: ClassifierConfig, folder: Path) -> nn.Module:
    """The network of a folder that a source wrote."""
    source = classifier_source(kind)
    try:
        return source.restore(config, folder)
    except GoodRtError:
        raise
    except Exception as error:  # the libraries raise many kinds for settings that do not fit
        raise GoodRtError(
            f"{folder / CONFIG} does not fit {config.architecture!r} ({first_line(error)}); "
            f"{CLASSIFIER_RECORD.remedy}"
        ) from None
