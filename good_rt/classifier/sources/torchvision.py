"""Classifiers of torchvision, with weights from a safetensors file: its own are pickles.

Features are the last Linear's input; size, crop, interpolation, mean and std are those of the
weights' own transforms.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from good_rt.classifier.base import ClassifierConfig
from good_rt.classifier.network import example_images, last_linear, part
from good_rt.classifier.sources.library import import_library
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
)
from good_rt.classifier.weights import load_weights, pickle_refusal, plain_names, put_weights
from good_rt.errors import GoodRtError


def open_torchvision(request: ClassifierRequest) -> OpenedClassifier:
    """``NAME`` with the weights of the request, for any number of classes."""
    spec = f"torchvision:{request.name}"
    model, preset, categories = _create_torchvision(request.name, {}, spec)
    if request.weights is None:
        url = _weights_url(request.name)
        raise GoodRtError(
            f"{spec}: torchvision publishes its weights as pickles; give a safetensors file: "
            f"{spec}@FILE. "
            f"{pickle_refusal(url)}"
            if url
            else f"{spec} needs weights: {spec}@weights.safetensors"
        )
    size = int(preset["crop_size"])
    state = load_weights(request.weights)
    plain = plain_names(state, model.state_dict(), request.weights)
    state = {new: state[old] for old, new in plain.items()}
    head = request.features or last_linear(model, example_images(3, size))
    last = _last_weight(state, head)
    outputs = 1000 if last is None else len(last)
    if outputs != 1000:
        model, _, _ = _create_torchvision(request.name, {"num_classes": outputs}, spec)
    put_weights(model, state, request.weights, spec)
    return OpenedClassifier(
        network=part(model, example_images(3, size), request.features),
        architecture=spec,
        outputs=outputs,
        arguments={"num_classes": 1} if outputs == 1 else {},
        classes=categories if len(categories) == outputs else None,
        input_channels=3,
        input_size=size,
        resize_size=int(preset["resize_size"]),
        interpolation=preset["interpolation"],
        mean=preset["mean"],
        std=preset["std"],
        stated=True,
    )


def restore_torchvision(config: ClassifierConfig, folder: Path) -> nn.Module:
    """The network of a classifier folder."""
    name = config.architecture.partition(":")[2]
    model, _, _ = _create_torchvision(
        name, {"num_classes": len(config.classes), **config.arguments}, str(folder)
    )
    size = config.resize.crop if config.resize else config.image_size
    network = part(
        model, example_images(config.input_channels or config.channels, size), config.features
    )
    put_weights(
        network,
        load_weights(folder / "model.safetensors"),
        folder / "model.safetensors",
        config.architecture,
    )
    return network


TORCHVISION = ClassifierSource(open_torchvision, restore_torchvision)


def _create_torchvision(
    name: str, arguments: Mapping[str, Any], where: str
) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """The model with random weights, the preprocessing of its default weights, and their
    classes."""
    models = import_library("torchvision.models")
    if name not in models.list_models(module=models):
        close = [
            other for other in models.list_models(module=models) if other.startswith(name[:5])
        ][:4]
        hint = (
            f"; did you mean {', '.join(close)}?"
            if close
            else "; `torchvision.models.list_models()` has them all"
        )
        raise GoodRtError(f"{where}: torchvision has no classifier {name!r}{hint}")
    try:
        model: nn.Module = models.get_model(name, weights=None, **arguments)
    except (TypeError, ValueError) as error:
        raise GoodRtError(
            f"{where}: torchvision cannot make {name!r} with {dict(arguments)} ({error})"
        ) from None
    weights = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    preset = {
        "crop_size": transforms.crop_size[0],
        "resize_size": transforms.resize_size[0],
        "interpolation": transforms.interpolation.value,
        "mean": tuple(float(value) for value in transforms.mean),
        "std": tuple(float(value) for value in transforms.std),
    }
    return model.eval(), preset, tuple(weights.meta["categories"])


def _last_weight(state: Mapping[str, Tensor], head: str) -> Tensor | None:
    """The weight of the head, or of the last layer in it."""
    names = [name for name in state if name.startswith(f"{head}.") and name.endswith("weight")]
    return state[names[-1]] if names else None


def _weights_url(name: str) -> str | None:
    weights = import_library("torchvision.models").get_model_weights(name).DEFAULT
    return str(weights.url) if weights.url else None
