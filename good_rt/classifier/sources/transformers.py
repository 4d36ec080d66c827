"""Image classifiers of Hugging Face transformers: a folder of `save_pretrained`, or a repository of
the hub.

Features are what goes into the model's classification head, its pooled output; the preprocessing is
that of preprocessor_config.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from good_rt.classifier.base import ClassifierConfig
from good_rt.classifier.network import (
    Parted,
    TwoHeads,
    check_parts,
    example_images,
    last_linear,
    mean_of_heads,
    output_of,
    run_network,
)
from good_rt.classifier.sources.library import hub_file, hub_weights, import_library
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
)
from good_rt.classifier.weights import (
    load_weights,
    pickle_refusal,
    put_weights,
    refuse_lora,
    shards,
)
from good_rt.errors import GoodRtError, first_line
from good_rt.files import read_json

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By PIL's number, as ``resample`` has it."""
LABELS = ("id2label", "label2id", "num_labels")
HEAD_WEIGHT = re.compile(r"(?:^|\.)\w*classifier(?:\.\d+)?\.weight$")


def open_transformers(request: ClassifierRequest) -> OpenedClassifier:
    """``FOLDER`` or ``OWNER/NAME``; its weights, or those of the request."""
    spec, folder = f"transformers:{request.name}", Path(request.name)

    def file(name: str) -> Path:
        return folder / name if folder.is_dir() else hub_file(request.name, name, spec)

    if not folder.is_dir() and (folder.exists() or request.name.startswith(("/", "./", "../"))):
        raise GoodRtError(
            f"{folder} is not a folder; give one with config.json and model.safetensors"
        )
    values = read_json(file("config.json"))
    if "auto_map" in values:
        raise GoodRtError(
            f"{spec} names code of its own in config.json, which is not run; only transformers' "
            "models are"
        )
    weights = request.weights or _weights_path(folder, request.name, spec)
    state = load_weights(weights)
    refuse_lora(state, weights)
    outputs, relabelled = _head_outputs(state), False
    if outputs is not None:
        try:
            _class_names(values, outputs, spec)
        except GoodRtError:
            if not request.named:
                raise
            # the caller's names stand for those of config.json
            values = {name: value for name, value in values.items() if name not in LABELS}
            values["num_labels"], relabelled = outputs, True
    model = None
    if request.weights is None and not relabelled:
        model = _pretrained(request.name, spec)
    if model is None:
        model = _create_transformers(values, spec)
        put_weights(model, state, weights, spec)
    notes: tuple[str, ...] = ()
    try:
        found = read_json(file("preprocessor_config.json"))
    except GoodRtError:
        if (folder / "preprocessor_config.json").exists():
            raise
        found, notes = _default_preprocessing(model.config, request, spec)
    preprocessing = _preprocessing(found, spec)
    channels = int(getattr(model.config, "num_channels", 3))
    size = preprocessing["input_size"]
    _check_task(model.config, spec)
    outputs = int(model.config.num_labels)
    network = _split_transformers(model, channels, size, request.features)
    names = None if request.named else _class_names(values, outputs, spec)
    return OpenedClassifier(
        network=network,
        architecture=f"transformers:{model.config.model_type}",
        outputs=outputs,
        arguments=_model_settings(values, network),
        classes=names,
        input_channels=channels,
        stated=True,
        notes=notes,
        **preprocessing,
    )


def restore_transformers(config: ClassifierConfig, folder: Path) -> nn.Module:
    """The network of a classifier folder, whose ``arguments`` are the model's config.json."""
    model = _create_transformers(config.arguments, str(folder))
    size = config.resize.crop if config.resize else config.image_size
    network = _split_transformers(
        model, config.input_channels or config.channels, size, config.features
    )
    put_weights(
        network,
        load_weights(folder / "model.safetensors"),
        folder / "model.safetensors",
        config.architecture,
    )
    return network


TRANSFORMERS = ClassifierSource(open_transformers, restore_transformers)


def _weights_path(folder: Path, name: str, spec: str) -> Path:
    """The weights of a folder or repository, or the index of several files."""
    plain = "model.safetensors"
    if not folder.is_dir():
        return hub_weights(name, spec)
    if shards(folder / plain) != [folder / plain] or (folder / plain).exists():
        return folder / plain
    if (folder / "adapter_config.json").exists():
        raise GoodRtError(
            f"{folder} is a LoRA adapter, which changes another network; merge both with peft "
            "(merge_and_unload()) and save the whole network with save_pretrained"
        )
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        raise GoodRtError(pickle_refusal(*pickles))
    return folder / plain


def _check_task(config: Any, spec: str) -> None:
    """Refuses networks whose outputs are not the logits of one class an image."""
    reasons = {
        "multi_label_classification": "several classes of an image at once",
        "regression": "numbers, no classes",
    }
    reason = reasons.get(getattr(config, "problem_type", None) or "")
    if reason is not None:
        raise GoodRtError(
            f"{spec} is made for {config.problem_type}: it predicts {reason}; the scores need one "
            "class an image, so give a classifier that was trained with cross-entropy"
        )


def _head_outputs(state: Mapping[str, Tensor]) -> int | None:
    """The number of outputs of the layer that names call a classifier; None where it is not clear
    which that is."""
    rows = {len(tensor) for name, tensor in state.items() if HEAD_WEIGHT.search(name)}
    return rows.pop() if len(rows) == 1 else None


def _class_names(values: Mapping[str, Any], outputs: int, spec: str) -> tuple[str, ...] | None:
    """The classes' names in the order of the outputs; None where config.json has none.

    Raises GoodRtError where its id2label does not name each output once.
    """
    labels = values.get("id2label")
    if labels is None:
        return None
    remedy = "correct it, or name the classes in the order of the outputs (--classes names.txt)"
    if not isinstance(labels, dict) or not all(
        re.fullmatch("[0-9]+", str(key)) and isinstance(name, (str, int, float))
        for key, name in labels.items()
    ):
        raise GoodRtError(
            f"{spec}: id2label of config.json must map the numbers of outputs to names; {remedy}"
        )
    names = {int(key): str(name) for key, name in labels.items()}
    missing = sorted(set(range(outputs)) - names.keys())
    if missing or len(names) != outputs or len(labels) != outputs:
        reading = (
            f"{names[min(names)]!r} could be output {min(names)} or, in order, output 0"
            if min(names, default=0) != 0 and len(names) == outputs
            else f"output {missing[0]} has no name"
            if missing
            else f"the numbers go to {max(names)}"
        )
        raise GoodRtError(
            f"{spec}: id2label of config.json has {len(labels)} names for {outputs} outputs from "
            f"0, and {reading}; {remedy}"
        )
    numbers = values.get("label2id")
    if isinstance(numbers, dict):
        for name, number in numbers.items():
            place = int(number) if re.fullmatch("[0-9]+", str(number)) else -1
            if names.get(place) != name:
                raise GoodRtError(
                    f"{spec}: id2label and label2id of config.json contradict each other: output "
                    f"{number} is {names.get(place)!r} or {name!r}; {remedy}"
                )
    return tuple(names[place] for place in range(outputs))


def _default_preprocessing(
    config: Any, request: ClassifierRequest, spec: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What preprocessor_config.json would have, and a note that says where it is from: the caller's
    settings where they are complete, else the default of the model's library."""
    if request.preprocessing:
        return {"size": request.input_size}, ()
    remedy = "give --size, --mean and --std, with which the network was trained"
    auto = import_library("transformers.models.auto.image_processing_auto")
    entry = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type)
    names = entry.values() if isinstance(entry, Mapping) else entry or ()
    transformers = import_library("transformers")
    for name in sorted((str(name) for name in names if name), key=lambda name: "Pil" not in name):
        try:
            found = json.loads(getattr(transformers, name)().to_json_string())
        except Exception:  # it needs a library that is not there
            continue
        own = getattr(config, "image_size", None)
        size = request.input_size or (own if isinstance(own, int) else None)
        if size is not None:
            found |= {"size": {"height": size, "width": size}, "do_center_crop": False}
            found.pop("crop_pct", None)
        note = (
            f"preprocessor_config.json is missing: the preprocessing is the default of {name}; "
            "where the network was trained with another, give --size, --mean and --std"
        )
        return found, (note,)
    raise GoodRtError(f"{spec} has no preprocessor_config.json; {remedy}")


class TransformersNetwork(Parted):
    """A transformers model, called by its own argument's name."""

    def forward_features(self, images: Tensor) -> Tensor:
        return output_of(self.model(pixel_values=images))


def _create_transformers(values: Mapping[str, Any], where: str) -> Any:
    """The model with random weights. Nothing outside transformers itself is imported for it."""
    transformers = import_library("transformers")
    kind = values.get("model_type")
    settings = {
        name: value for name, value in values.items() if name not in {"model_type", "auto_map"}
    }
    try:
        config = transformers.AutoConfig.for_model(kind, **settings)
        model = transformers.AutoModelForImageClassification.from_config(
            config, trust_remote_code=False, attn_implementation="eager"
        )
    except (ValueError, TypeError, KeyError) as error:
        reason = first_line(error)
        raise GoodRtError(
            f"{where}: transformers has no image classifier of type {kind!r} ({reason[:120]})"
        ) from None
    return model.eval().float()


def _pretrained(name: str, where: str) -> Any:
    """The model with its own weights; None where they are not there under its own names."""
    transformers = import_library("transformers")
    logging = import_library("transformers.utils.logging")
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            attn_implementation="eager",
        )
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        reason = first_line(error)
        raise GoodRtError(
            f"{where} is not an image classifier that transformers can load ({reason[:160]})"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # of a wrapped network, whose weights have other names
    return None if report["missing_keys"] else model.eval().float()


def _split_transformers(
    model: nn.Module, channels: int, size: int, features: str | None
) -> Parted | TwoHeads:
    images = example_images(channels, size)
    head = features
    if head is None and isinstance(getattr(model, "classifier", None), nn.Module):
        head = "classifier"
    whole = run_network(model, images)
    if head is None:
        pair = mean_of_heads(model, images, whole)
        if pair is not None:
            two_heads = TwoHeads(model, pair)
            check_parts(two_heads, images, whole)
            return two_heads
        head = last_linear(model, images)
    parted = TransformersNetwork(model, head)
    check_parts(parted, images, whole)
    parted.features = (
        f"the pooled output, which is {parted.features}" if features is None else parted.features
    )
    return parted


def _model_settings(values: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """config.json without what only says where it comes from."""
    left_out = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}
    if isinstance(network, TwoHeads):  # not the model that its type stands for
        left_out.remove("architectures")
    return {name: value for name, value in values.items() if name not in left_out}


def _preprocessing(values: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """preprocessor_config.json in our words. Raises GoodRtError when it asks for what cannot be
    done."""
    size, crop = _pixels(values.get("size"), spec), _pixels(values.get("crop_size"), spec)
    if size is None:
        raise GoodRtError(f"{spec}: preprocessor_config.json names no size")
    resize = size
    if values.get("crop_pct") and size < 384:  # ConvNeXt's way of saying it
        crop, resize = size, int(size / values["crop_pct"])
    elif not values.get("do_center_crop", crop is not None and "crop_size" in values):
        crop = None
    if values.get("do_resize", True) is False:
        resize = crop or size
    mean, std = values.get("image_mean", 0.0), values.get("image_std", 1.0)
    if values.get("do_normalize", True) is False:
        mean, std = 0.0, 1.0
    # the processor computes x·factor (− 1), then (· − mean) / std, with x in 0..255
    scale = (
        255 * float(values.get("rescale_factor", 1 / 255))
        if values.get("do_rescale", True)
        else 255.0
    )
    offset = 1.0 if values.get("rescale_offset") else 0.0
    means, stds = (tuple(map(float, v if isinstance(v, list) else [v])) for v in (mean, std))
    number = int(values.get("resample", 2))
    return {
        "input_size": crop or resize,
        "resize_size": resize,
        "interpolation": INTERPOLATIONS[number]
        if 0 <= number < len(INTERPOLATIONS)
        else "bilinear",
        "mean": tuple((value + offset) / scale for value in means),
        "std": tuple(value / scale for value in stds),
    }


def _pixels(value: Any, spec: str) -> int | None:
    """A size as one number of pixels: 224, or {"height", "width"}, or {"shortest_edge"}."""
    if value is None or isinstance(value, int):
        return value
    if (
        isinstance(value, Mapping)
        and value.get("height") is not None
        and value.get("height") == value.get("width")
    ):
        return int(value["height"])
    if isinstance(value, Mapping) and value.get("shortest_edge") is not None:
        return int(value["shortest_edge"])
    raise GoodRtError(
        f"{spec}: preprocessor_config.json asks for images of size {value}; only square ones are "
        "supported"
    )
