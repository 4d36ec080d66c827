"""What a model folder is and what good-rt makes of it, read only from configs and weight
files' headers.

Nothing of a model's weights is loaded, so that the largest is inspected at once, on a machine that
could not run it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from good_rt.diffusion import autoencoder
from good_rt.diffusion.base import Family, Shape, misfits
from good_rt.diffusion.conditioning import ClassLabels, TextPrompts
from good_rt.diffusion.load import Layout, check_channels, resized
from good_rt.diffusion.parts import (
    check_weights,
    class_name,
    empty_part,
    empty_text_encoder,
    stored_tensors,
    weight_files,
)
from good_rt.diffusion.process import load_process
from good_rt.errors import GoodRtError
from good_rt.files import read_json

FLOAT = 4
"""Bytes of a number: everything is computed in float32."""
T = TypeVar("T")


@dataclass(frozen=True)
class ModelPart:
    """One part of the folder.

    Attributes:
        name: The part's folder.
        class_name: The class that its config names.
        parameters: Number of weights.
        stored: Types of the weights on disk.
        bytes: Size on disk.
    """

    name: str
    class_name: str
    parameters: int
    stored: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class ExportedGraph:
    """A graph that `good-rt export` writes, its inputs, and the bytes of its weights."""

    name: str
    inputs: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """What is known of a model without loading it.

    Attributes:
        folder: The model's folder.
        kind: Its architecture.
        pipeline: The diffusers pipeline that it names.
        parts: Its parts.
        sample_shape: (C, H, W) that the network denoises.
        image_shape: (C, H, W) of the images.
        process: Its noise process, in one line.
        condition: What conditions it, in one line.
        guidance_free: Whether classifier-free guidance is possible.
        learned_variance: Whether the network also predicts the variance.
        graphs: The model's graphs that `good-rt export` writes.
        weights_bytes: Network and autoencoder in memory.
        activation_bytes: What a gradient through the network keeps per image, an upper estimate:
            the outputs of all its layers.
        problems: Why it cannot be run, one line each; empty if it can.
    """

    folder: str
    kind: str
    pipeline: str | None
    parts: tuple[ModelPart, ...]
    sample_shape: Shape | None
    image_shape: Shape | None
    process: str | None
    condition: str | None
    guidance_free: bool
    learned_variance: bool
    graphs: tuple[ExportedGraph, ...]
    weights_bytes: int
    activation_bytes: int | None
    problems: tuple[str, ...]

    @property
    def runs(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {"runs": self.runs, **asdict(self)}


class _Problems(list[str]):
    """Collects what goes wrong, so that one fault does not hide the next."""

    def attempt(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except GoodRtError as error:
            if str(error) not in self:
                self.append(str(error))
            return None


def inspect_model(
    model: Path,
    *,
    image_size: int | None = None,
    image_shape: Shape | None = None,
    classes: int | None = None,
) -> Inspection:
    """Inspects a model folder, or a name on the Hugging Face hub.

    Args:
        model: The folder or name.
        image_size: Height and width of the images, for networks that accept other sizes.
        image_shape: The classifier's; a model that does not fit has a problem.
        classes: Number of the classifier's classes, likewise.

    Raises:
        GoodRtError: the folder holds no diffusion model at all.
    """
    layout = Layout.of(model)
    problems = _Problems()
    family = problems.attempt(lambda: layout.family)
    names = {"network": layout.network} | (
        {} if layout.autoencoder is None else {"autoencoder": layout.autoencoder}
    )
    attempts = {name: problems.attempt(partial(part_of, folder)) for name, folder in names.items()}
    parts = {name: part for name, part in attempts.items() if part}
    texts = (
        []
        if family is None
        else [n for n in family.text_parts(layout.folder) if n.startswith("text_encoder")]
    )
    for name in texts:
        part = problems.attempt(partial(part_of, layout.folder / name))
        if part is not None:
            parts[name] = part
    for name in parts:
        problems.attempt(partial(_check_part, names.get(name, layout.folder / name), name in names))
    network = None if family is None else problems.attempt(lambda: empty_part(layout.network))
    config: Mapping[str, Any] = {} if network is None else network.config
    shape = out = process = None
    condition: str | None = None
    free = False
    inputs: tuple[str, ...] = ("sample", "timestep")
    activations = None
    if family is not None and network is not None:
        problems.attempt(lambda: family.check(config, layout.folder))
        problems.extend(_missing_text(layout.folder, family))
        shape, out = problems.attempt(lambda: _shapes(layout, family, config, image_size)) or (
            None,
            None,
        )
        tokens = 1 if shape is None else (shape[1] // family.patch) * (shape[2] // family.patch)
        process = problems.attempt(
            lambda: load_process(layout.scheduler, tokens, family.even_levels)
        )
        condition, free, labels = _condition(family, config, layout.folder, out or (0, 0, 0))
        module = (
            None
            if shape is None
            else problems.attempt(lambda: family.module(network, config, shape))
        )
        shapes_of_condition = family.condition_shapes(config)
        inputs += tuple(shapes_of_condition)
        activations = (
            None
            if module is None or shape is None
            else layer_outputs(module, shape, shapes_of_condition)
        )
        problems.extend(misfits(out, image_shape, labels, classes))
    return Inspection(
        folder=str(layout.folder),
        kind=family.about if family is not None else f"unknown network {layout.class_name}",
        pipeline=_pipeline(layout.folder),
        parts=tuple(parts.values()),
        sample_shape=shape,
        image_shape=out,
        process=process.about if process is not None else None,
        condition=condition,
        guidance_free=free,
        learned_variance=config.get("out_channels") == 2 * config.get("in_channels", 0),
        graphs=_graphs(parts, inputs),
        weights_bytes=FLOAT
        * sum(parts[name].parameters for name in ("network", "autoencoder") if name in parts),
        activation_bytes=None if activations is None else FLOAT * activations,
        problems=tuple(problems),
    )


def _check_part(folder: Path, of_diffusers: bool) -> None:
    """Compares the weights of a part with the network that its config.json describes."""
    import diffusers

    if of_diffusers and not hasattr(diffusers, class_name(folder)):
        return  # named as a problem of its own
    check_weights(folder, empty_part(folder) if of_diffusers else empty_text_encoder(folder))


def part_of(folder: Path) -> ModelPart:
    """A part from its config and the headers of its weight files.

    Args:
        folder: The part's folder.

    Raises:
        GoodRtError: a file is missing or damaged.
    """
    _, files = weight_files(folder)
    count, types = 0, set()
    for path in files:
        for dtype, size in header(path).values():
            count += size
            types.add(dtype)
    return ModelPart(
        folder.name,
        class_name(folder),
        count,
        tuple(sorted(types)),
        sum(path.stat().st_size for path in files),
    )


def header(path: Path) -> dict[str, tuple[str, int]]:
    """Type and number of elements of every tensor of a safetensors file, from its header.

    Args:
        path: The file.

    Raises:
        GoodRtError: the file is missing or damaged.
    """
    return {name: (t.dtype, math.prod(t.shape)) for name, t in stored_tensors(path).items()}


def _pipeline(folder: Path) -> str | None:
    index = folder / "model_index.json"
    return read_json(index).get("_class_name") if index.exists() else None


def _missing_text(folder: Path, family: Family) -> list[str]:
    parts = family.text_parts(folder)
    missing = [
        name for name in parts if name.startswith("tokenizer") and not (folder / name).is_dir()
    ]
    problems = [
        f"{folder} has no {name}/, which its prompts need; take the whole model folder"
        for name in missing
    ]
    if parts:
        import importlib.util

        if importlib.util.find_spec("transformers") is None:
            problems.append(
                "prompts need transformers; install it with: pip install 'good-rt[toolkit]'"
            )
    return problems


def _shapes(
    layout: Layout, family: Family, config: Mapping[str, Any], image_size: int | None
) -> tuple[Shape, Shape]:
    """What is denoised, and what comes out."""
    shape = family.sample_shape(config)
    if layout.autoencoder is None:
        shape = shape if image_size is None else resized(shape, image_size, 1, family.patch)
        return shape, shape
    name = class_name(layout.autoencoder)
    if name not in autoencoder.AUTOENCODERS:
        known = ", ".join(autoencoder.AUTOENCODERS)
        raise GoodRtError(
            f"{layout.autoencoder} holds a {name}, which good-rt does not run; it runs {known}"
        )
    latents, channels, factor = autoencoder.shapes_of(
        empty_part(layout.autoencoder).config, layout.autoencoder
    )
    check_channels(layout.folder, latents, shape[0])
    shape = shape if image_size is None else resized(shape, image_size, factor, family.patch)
    return shape, (channels, factor * shape[1], factor * shape[2])


def _condition(
    family: Family, config: Mapping[str, Any], folder: Path, image_shape: Shape
) -> tuple[str | None, bool, int | None]:
    """For people; whether classifier-free guidance can be had; and how many labels there are."""
    conditioner = family.conditioner(config, folder, image_shape)
    if isinstance(conditioner, ClassLabels):
        named = "" if conditioner.names is None else ", matched by name"
        return f"{conditioner.count} class labels{named}", True, conditioner.count
    if isinstance(conditioner, TextPrompts):
        return "a prompt of each class", True, None
    return None, False, None


def _graphs(parts: Mapping[str, ModelPart], inputs: tuple[str, ...]) -> tuple[ExportedGraph, ...]:
    graphs = []
    if "network" in parts:
        size = FLOAT * parts["network"].parameters
        graphs += [
            ExportedGraph("network", inputs, size),
            ExportedGraph("network_vjp", ("cotangent", *inputs), size),
        ]
    if "autoencoder" in parts:
        size = FLOAT * parts["autoencoder"].parameters
        graphs += [
            ExportedGraph("vae_encoder", ("images",), size // 2),
            ExportedGraph("vae_decoder", ("latents",), size // 2),
            ExportedGraph("decoder_vjp", ("cotangent", "latents"), size // 2),
        ]
    return tuple(graphs)


@torch.no_grad()
def layer_outputs(
    module: nn.Module, shape: Shape, condition: Mapping[str, tuple[int, ...]]
) -> int | None:
    """How many numbers all layers of a network give for one image; None where weights would be
    needed.

    Args:
        module: The network as `Family.module` gives it; it loses its weights.
        shape: (C, H, W) of the sample.
        condition: Shapes of the condition's inputs for one image, by name.
    """
    total = 0

    def hear(layer: nn.Module, given: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, torch.Tensor):
            total += output.numel()

    handles = [
        layer.register_forward_hook(hear)
        for layer in module.modules()
        if not list(layer.children())
    ]
    try:
        with torch.device("meta"):
            arrays = [torch.empty(1, *shape), torch.empty(1)]
            for name, size in condition.items():
                arrays.append(
                    torch.zeros(
                        1, *size, dtype=torch.int64 if name == "class_labels" else torch.float32
                    )
                )
            module.to("meta")(*arrays)
    # a network may need values, which meta tensors lack; an estimate is not worth an error
    except Exception:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return total
