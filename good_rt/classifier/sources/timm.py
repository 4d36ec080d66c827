"""Classifiers of timm: by a model's name, by a folder with timm's config.json, or by a repository
of the hub.

Features are those of ``forward_head(pre_logits=True)``; size, crop, interpolation, mean and std are
those of ``resolve_model_data_config``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from good_rt.classifier.base import ClassifierConfig
from good_rt.classifier.network import (
    ClassifierNetwork,
    check_parts,
    example_images,
    part,
    run_network,
)
from good_rt.classifier.sources.library import hub_file, hub_weights, import_library
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
)
from good_rt.classifier.weights import load_weights, plain_names, put_weights
from good_rt.errors import GoodRtError
from good_rt.files import read_json


class TimmNetwork(ClassifierNetwork):
    """A timm model, by its own convention for features and head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.features = "timm's forward_head(pre_logits=True)"

    def forward_features(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.model.get_classifier()(features)


def open_timm(request: ClassifierRequest) -> OpenedClassifier:
    """``NAME``: the pretrained weights, or those of the request; ``FOLDER`` or ``OWNER/NAME``: with
    its config.json."""
    import_library("timm")
    spec, weights, arguments, classes = f"timm:{request.name}", request.weights, {}, None
    name = request.name
    settings: Mapping[str, Any] = {}
    if Path(name).is_dir() or "/" in name:
        folder = Path(name)
        settings = read_json(
            folder / "config.json" if folder.is_dir() else hub_file(name, "config.json", spec)
        )
        weights = weights or (
            folder / "model.safetensors" if folder.is_dir() else hub_weights(name, spec)
        )
        if not isinstance(settings.get("architecture"), str):
            raise GoodRtError(f"{spec}: its config.json names no timm architecture")
        name, arguments = settings["architecture"], dict(settings.get("model_args") or {})
    model = _create_timm(name, {}, spec)
    own = getattr(model, "pretrained_cfg", {})
    if weights is None:
        if not own.get("hf_hub_id"):
            raise GoodRtError(
                f"{spec} has no pretrained weights; give yours: {spec}@weights.safetensors"
            )
        weights = hub_file(own["hf_hub_id"], "model.safetensors", spec)
        classes = _imagenet_names(own)
    state = load_weights(weights)
    plain = plain_names(state, model.state_dict(), weights)
    state = {new: state[old] for old, new in plain.items()}
    arguments |= _weight_sizes(own, state, spec, weights)
    outputs = arguments.pop("num_classes")
    if not request.named:
        classes = _class_names(settings, outputs, spec) or classes
    model = _create_timm(name, {"num_classes": outputs, **arguments}, spec)
    put_weights(model, state, weights, spec)
    data = import_library("timm.data").resolve_data_config(
        pretrained_cfg={**own, **(settings.get("pretrained_cfg") or {})}, model=None, verbose=False
    )
    channels, size = (
        int(arguments.get("in_chans", data["input_size"][0])),
        int(data["input_size"][-1]),
    )
    if data["input_size"][1] != data["input_size"][2]:
        raise GoodRtError(
            f"{spec} takes images of {data['input_size'][1:]} pixels; only square ones are "
            "supported"
        )
    return OpenedClassifier(
        network=_split_timm(model, channels, size, request.features),
        architecture=f"timm:{name}",
        outputs=outputs,
        arguments={**arguments, "num_classes": 1} if outputs == 1 else arguments,
        classes=classes if classes is not None and len(classes) == outputs else None,
        input_channels=channels,
        input_size=size,
        resize_size=math.floor(size / data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=_per_channel(data["mean"], channels),
        std=_per_channel(data["std"], channels),
        stated=True,
    )


def restore_timm(config: ClassifierConfig, folder: Path) -> nn.Module:
    """The network of a classifier folder."""
    import_library("timm")
    name = config.architecture.partition(":")[2]
    where = f"{folder / 'classifier.json'}"
    model = _create_timm(name, {"num_classes": len(config.classes), **config.arguments}, where)
    channels = config.input_channels or config.channels
    network = _split_timm(
        model, channels, config.resize.crop if config.resize else config.image_size, config.features
    )
    put_weights(
        network,
        load_weights(folder / "model.safetensors"),
        folder / "model.safetensors",
        f"timm:{name}",
    )
    return network


TIMM = ClassifierSource(open_timm, restore_timm)


def _create_timm(name: str, arguments: Mapping[str, Any], where: str) -> nn.Module:
    timm = import_library("timm")
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.partition('.')[0][:8]}*")[:4]
        hint = (
            f"; did you mean {', '.join(close)}?"
            if close
            else "; `timm.list_models()` has them all"
        )
        raise GoodRtError(f"{where}: timm has no model {name!r}{hint}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise GoodRtError(
            f"{where}: timm cannot make {name!r} with {dict(arguments)} ({error})"
        ) from None
    return model.eval()


def _split_timm(
    model: nn.Module, channels: int, size: int, features: str | None
) -> ClassifierNetwork:
    """By timm's convention where that gives the model's own logits, else before the last Linear."""
    images = example_images(channels, size)
    if features is not None:
        return part(model, images, features)
    network, whole = TimmNetwork(model), run_network(model, images)
    try:
        check_parts(network, images, whole)
    # a head of its own form, such as a distilled one
    except (GoodRtError, AttributeError, TypeError):
        return part(model, images)
    return network


def _weight_sizes(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], spec: str, path: Path
) -> dict[str, int]:
    """The numbers of classes and, where it is not the model's own, of channels that the weights
    were made for."""
    head, first = settings.get("classifier"), settings.get("first_conv")
    head, first = (name[0] if isinstance(name, (tuple, list)) else name for name in (head, first))
    of_head = state.get(f"{head}.weight")
    if of_head is None:
        raise GoodRtError(f"{path} lacks '{head}.weight'; it does not belong to {spec}")
    found = {"num_classes": len(of_head)}
    of_first = state.get(f"{first}.weight")
    if (
        of_first is not None
        and of_first.ndim == 4
        and of_first.shape[1] != settings["input_size"][0]
    ):
        found["in_chans"] = of_first.shape[1]
    return found


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """One value a channel; of a network with fewer channels than its settings, their mean."""
    values = tuple(float(value) for value in values)
    return values if len(values) in {1, channels} else (sum(values) / len(values),)


def _class_names(settings: Mapping[str, Any], outputs: int, spec: str) -> tuple[str, ...] | None:
    names = settings.get("label_names") or (settings.get("pretrained_cfg") or {}).get("label_names")
    if not names:
        return None
    if not isinstance(names, (list, tuple)) or len(names) != outputs:
        raise GoodRtError(
            f"{spec}: label_names of config.json must be a list of {outputs} names, one an output; "
            "correct it, or name the classes in the order of the outputs (--classes names.txt)"
        )
    return tuple(str(name) for name in names)


def _imagenet_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes of a model that timm itself offers, where they are those of an ImageNet."""
    if settings.get("num_classes") != 1000:
        return None
    info = import_library("timm.data").ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(1000))
