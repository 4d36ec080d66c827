"""A PyTorch module of the user's own, ``package.module:attr@weights.safetensors``: the class, a
function that makes it, or the module itself.

This imports code, which is why only a spec can name it, and never a folder: what `good-rt train`
makes of such a classifier is opened as ``package.module:attr@FOLDER``.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from pathlib import Path

from torch import nn

from good_rt.classifier.base import ClassifierConfig
from good_rt.classifier.network import (
    ClassifierNetwork,
    check_parts,
    drop_probabilities,
    example_images,
    part,
    run_network,
)
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
)
from good_rt.classifier.weights import load_weights, put_weights
from good_rt.errors import GoodRtError
from good_rt.plugins import CLASSIFIER_PLUGINS, installed_text


class OwnParts(ClassifierNetwork):
    """A module with forward_features and forward_head of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.features = "the module's own forward_features"

    def forward_features(self, images):  # type: ignore[no-untyped-def]
        return self.model.forward_features(images)  # type: ignore[operator]

    def forward_head(self, features):  # type: ignore[no-untyped-def]
        return self.model.forward_head(features)  # type: ignore[operator]


def open_module(request: ClassifierRequest) -> OpenedClassifier:
    """Imports the module, also from the folder that the command runs in, and puts the weights into
    it."""
    size = getattr(attribute(request.name), "image_size", None) or request.input_size
    if not isinstance(size, int):
        raise GoodRtError(f"{request.name} does not say what images it takes; give the size")
    model = make(request.name)
    if request.weights is not None:
        put_weights(model, load_weights(request.weights), request.weights, request.name)
    channels = request.input_channels or _first_channels(model)
    network = parts(model, channels, size, request.features)
    return OpenedClassifier(
        network=network,
        architecture=f"module:{request.name}",
        outputs=run_network(network, example_images(channels, size)).shape[1],
        input_channels=channels,
        input_size=size,
    )


def restore_module(config: ClassifierConfig, folder: Path) -> nn.Module:
    """Always refused: a folder names no code."""
    name = config.architecture.partition(":")[2]
    raise GoodRtError(
        f"{folder} was made from the code {name}, and a folder cannot have code run; if you trust "
        "that code, open it "
        f"as {name}@{folder}"
    )


MODULE = ClassifierSource(open_module, restore_module)


def attribute(name: str) -> object:
    """The object that a name stands for.

    Args:
        name: ``package.module:attr``; modules are also looked for in the current folder.

    Raises:
        GoodRtError: it cannot be imported.
    """
    module, _, attr = name.partition(":")
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module)
        for step in attr.split("."):
            found = getattr(found, step)
    except ImportError as error:
        raise GoodRtError(
            f"{name}: module {module!r} cannot be imported ({error}); run where Python finds it. "
            f"It is not a plug-in either: {installed_text(CLASSIFIER_PLUGINS)}"
        ) from None
    except AttributeError:
        raise GoodRtError(f"{name}: {module!r} has no {attr!r}; give MODULE:ATTR") from None
    finally:
        if added:
            sys.path.remove(here)
    return found


def make(name: str) -> nn.Module:
    """The module that ``package.module:attr`` is or makes."""
    found = attribute(name)
    shared = isinstance(found, nn.Module)
    if not shared and callable(found):
        try:
            found = found()
        except TypeError as error:
            raise GoodRtError(
                f"{name} cannot be called without arguments ({error}); name a function that can"
            ) from None
    if not isinstance(found, nn.Module):
        raise GoodRtError(
            f"{name} is a {type(found).__name__}, not a torch.nn.Module or what makes one"
        )
    return (copy.deepcopy(found) if shared else found).eval().float()


def parts(model: nn.Module, channels: int, size: int, features: str | None) -> ClassifierNetwork:
    """A module divided by its own forward_features and forward_head, else before its last Linear.

    Args:
        model: Images (N, channels, size, size) -> logits (N, K).
        channels: Channels of its images.
        size: Their height and width.
        features: Name of the module whose input is the features; None for the division above.

    Raises:
        GoodRtError: the module cannot be divided so, or does not take such images.
    """
    images = example_images(channels, size)
    if features is None and hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        notes = drop_probabilities(model, images)
        network = OwnParts(model)
        check_parts(network, images, run_network(model, images))
        network.notes = notes
        return network
    return part(model, images, features)


def _first_channels(model: nn.Module) -> int:
    """The channels that the first convolution takes; 3 where there is none."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
