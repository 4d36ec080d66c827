"""The user's classifier: logits and unit-norm penultimate features from images in [-1, 1].

The one place that knows an architecture's form and its preprocessing; guidance, training, bank and detector all call
the same `Classifier`, so that they see the same features.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.errors import GoodRtError
from good_rt.files import atomic_path, read_json, sha256, write_json

ARCHITECTURES = {"small_resnet": "good_rt.demo.network:SmallResNet"}
"""Name in classifier.json -> module:class, with timm's forward_features and forward_head. A folder cannot name code."""


@dataclass(frozen=True)
class ClassifierConfig:
    """What classifier.json holds."""

    architecture: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    """Per channel, of images in [0, 1]; None where the network takes [-1, 1] as it is."""
    std: tuple[float, ...] | None = None


class Classifier(nn.Module):
    """images (N, C, H, W) float in [-1, 1] -> logits (N, K) and unit-norm penultimate features (N, D)."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, network: nn.Module, config: ClassifierConfig, fingerprint: str = "") -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.fingerprint = fingerprint
        mean, std = config.mean, config.std
        self.register_buffer("mean", None if mean is None else torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", None if std is None else torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size, channels = self.config.image_size, self.config.channels
        if tuple(images.shape[1:]) != (channels, size, size):
            found = tuple(images.shape[1:])
            raise GoodRtError(f"the classifier takes images of shape {(channels, size, size)}, not {found}")
        if self.mean is not None and self.std is not None:
            images = ((images + 1) / 2 - self.mean) / self.std
        features = self.network.forward_features(images)  # type: ignore[operator]
        return self.network.forward_head(features), F.normalize(features, dim=1)  # type: ignore[operator]


@torch.no_grad()
def predict(classifier: Classifier, images: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and features (N, D) of any number of images (N, C, H, W) in [-1, 1], in evaluation mode."""
    training = classifier.training
    classifier.eval()
    try:
        parts = [classifier(part) for part in images.split(batch)]
    finally:
        classifier.train(training)
    return torch.cat([logits for logits, _ in parts]), torch.cat([features for _, features in parts])


def load_classifier(folder: Path) -> Classifier:
    """A classifier folder: classifier.json and model.safetensors -> evaluation mode, no gradients, float32.

    Raises GoodRtError when a file is missing or damaged, the weights do not fit or are not finite.
    """
    path = folder / "classifier.json"
    if not path.exists():
        raise GoodRtError(f"{folder} is not a classifier folder: classifier.json is missing")
    try:
        values = read_json(path)
        values["classes"] = tuple(values["classes"])
        config = ClassifierConfig(**values)
    except (TypeError, KeyError) as error:
        raise GoodRtError(f"{path} is not a classifier's config ({error})") from None
    network = _build(config, path)
    weights = folder / "model.safetensors"
    state = load_weights(weights)
    missing, unexpected = network.state_dict().keys() - state.keys(), state.keys() - network.state_dict().keys()
    if missing or unexpected:
        what = f"lacks {min(missing)!r}" if missing else f"has {min(unexpected)!r}, which the network does not"
        raise GoodRtError(f"{weights} {what}; it does not belong to architecture {config.architecture!r}")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise GoodRtError(f"{weights} does not fit {path.name}: {str(error).splitlines()[-1].strip()}") from None
    fingerprint = hashlib.sha256((sha256(path) + sha256(weights)).encode()).hexdigest()
    return Classifier(network, config, fingerprint).eval().requires_grad_(False)


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Writes classifier.json and model.safetensors into ``folder``, as `load_classifier` reads them."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().contiguous().clone() for name, tensor in classifier.network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_json(folder / "classifier.json", asdict(classifier.config))


def load_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file, its floats as float32. Raises GoodRtError when it is something else or not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        pickled = sorted(p.name for p in path.parent.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        hint = f"; {pickled[0]} is a pickle and is not read: convert it to safetensors" if pickled else ""
        raise GoodRtError(f"{path} is missing{hint}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise GoodRtError(f"{path} is not a safetensors file ({error})") from None
    for name, tensor in state.items():
        if tensor.is_floating_point():
            if not tensor.isfinite().all():
                raise GoodRtError(f"{path}: weight {name!r} has values that are not finite; train or convert it again")
            state[name] = tensor.float()
    return state


def _build(config: ClassifierConfig, path: Path) -> nn.Module:
    if config.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise GoodRtError(f"{path}: unknown architecture {config.architecture!r}; known are {known}")
    module, _, name = ARCHITECTURES[config.architecture].partition(":")
    try:
        network: nn.Module = getattr(importlib.import_module(module), name)(
            in_channels=config.channels, num_classes=len(config.classes), **config.arguments
        )
    except TypeError as error:
        raise GoodRtError(f"{path}: arguments do not fit architecture {config.architecture!r} ({error})") from None
    return network
