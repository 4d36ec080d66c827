"""`good-rt export` as a function: UNet, VAE and classifier to ONNX engines that are proved before
they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import good_rt
from good_rt.classifier import Classifier, load_classifier
from good_rt.diffusion import load_diffusion
from good_rt.engines.base import Engine
from good_rt.engines.batch_splitting import vjp_pair
from good_rt.engines.onnx_file import data_files
from good_rt.engines.open import open_engine
from good_rt.errors import GoodRtError, ParityError
from good_rt.export.graphs import Arrays, FusedGuidance, Graph, InputMaker, graphs_of
from good_rt.export.manifest import MANIFEST, GraphEntry, Manifest, exporter_hash, graph_hash
from good_rt.export.parity import ABSOLUTE, BATCHES, RELATIVE, AutogradVjp, Parity, compare
from good_rt.export.split import split_vjp
from good_rt.export.to_onnx import OPSET, export_onnx
from good_rt.export.vjp import cotangent_names, export_vjp_onnx
from good_rt.files import atomic_path

HALVES = ("forward", "backward")


def export_models(
    model_dir: Path,
    classifier: Path | str | Classifier,
    out: Path,
    *,
    images: Tensor | None = None,
    fused: FusedGuidance | None = None,
    opset: int | None = None,
    relative: float | None = None,
    absolute: float | None = None,
    batches: Sequence[int] = BATCHES,
    force: bool = False,
    gradient_decoder: Path | None = None,
    image_size: int | None = None,
    on_graph: Callable[[str], None] = lambda name: None,
    on_damage: Callable[[str], None] = lambda reason: None,
) -> tuple[Manifest, bool]:
    """Exports every graph into ``out`` and returns the manifest, and whether anything had to be
    done.

    ``images`` (N, C, H, W) in [-1, 1] are the real inputs of the parity check, which is made at
    each of ``batches``; with ``fused`` the graphs that give gradients are exported as well.
    ``gradient_decoder`` and ``image_size`` are `load_diffusion`'s; ``opset`` and tolerances that
    are None are those of the export that is there, or the defaults. An unchanged model with intact
    files of this version's `exporter_hash` is left alone unless ``force``; ``on_damage`` hears why
    they are not intact. Raises ParityError, leaving ``out`` as it was, when a graph is not what
    PyTorch computes, and GoodRtError when ``out`` holds other things than engines.
    """
    model = load_diffusion(model_dir, gradient_decoder=gradient_decoder, image_size=image_size)
    if not isinstance(classifier, Classifier):
        classifier = load_classifier(classifier).fitted(lambda: model.image_shape)
    if (
        model.image_shape[0] != classifier.config.channels
        or model.image_shape[1] != classifier.config.image_size
    ):
        raise GoodRtError(
            f"the diffusion model makes images of shape {model.image_shape}, the classifier takes "
            f"{classifier.config.channels} channels of {classifier.config.image_size} pixels; both "
            "must agree"
        )
    source = {"model": model.fingerprint, "classifier": classifier.fingerprint}
    if fused is not None:
        source["guidance"] = fused.fingerprint
    asked = {"opset": opset, "relative": relative, "absolute": absolute}
    before: dict[str, Any] = {"opset": OPSET, "relative": RELATIVE, "absolute": ABSOLUTE}
    try:
        found = Manifest.read(out)
        before |= {"opset": found.opset, **found.tolerance}
        as_asked = all(value is None or before[name] == value for name, value in asked.items())
        if (
            not force
            and found.is_of(source)
            and as_asked
            and found.versions.get("exporter") == exporter_hash()
        ):
            found.check_files(out)
            return found, False
    except GoodRtError as error:  # nothing there yet, or damaged: exported anew
        if (out / MANIFEST).exists():
            on_damage(str(error))
    opset = before["opset"] if opset is None else opset
    relative = before["relative"] if relative is None else relative
    absolute = before["absolute"] if absolute is None else absolute
    if out.is_dir() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise GoodRtError(
            f"{out} holds other files than engines, and would be replaced as a whole; choose "
            "another folder for engines"
        )
    check = partial(compare, batches=batches, relative=relative, absolute=absolute)
    entries: dict[str, GraphEntry] = {}
    rows: list[Parity] = []
    with atomic_path(out) as folder:
        folder.mkdir()
        graphs = graphs_of(model, classifier, images, fused)
        # what can't be pulled back is found out first
        for name, graph in sorted(graphs.items(), key=lambda item: item[1].wrt is None):
            on_graph(name)
            path = folder / f"{name}.onnx"
            _write(graph, path, opset)
            engine = open_engine(path)
            reference, makers = _reference(graph)
            rows += check(name, engine, reference, makers)
            entries[name] = _entry(path, engine)
            del engine  # a large model's weights need not be there twice
            if graph.split:
                forward, backward = (
                    folder / f"{name.removesuffix('_vjp')}_{half}.onnx" for half in HALVES
                )
                split_vjp(path, forward, backward)
                halves = {half: open_engine(half) for half in (forward, backward)}
                rows += check(f"{name} in two", vjp_pair(*halves.values()), reference, makers)
                entries |= {half.stem: _entry(half, engine) for half, engine in halves.items()}
                del halves
        failed = [row for row in rows if not row.ok]
        if failed:
            worst = max(failed, key=lambda row: row.excess)
            raise ParityError(
                f"{worst.graph}.onnx is not what PyTorch computes: output {worst.output!r} on "
                f"{worst.inputs} inputs at "
                f"batch {worst.batch} differs by {worst.max_absolute:.1e}, {worst.excess:.3g} "
                "times the tolerance "
                f"({absolute:g} + {relative:g} relative); nothing was written"
            )
        versions = {
            "good-rt": good_rt.__version__,
            "exporter": exporter_hash(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        }
        tolerance = {"relative": relative, "absolute": absolute}
        manifest = Manifest(source, opset, tolerance, entries, tuple(rows), versions)
        manifest.write(folder)
    return manifest, True


def _entry(path: Path, engine: Engine) -> GraphEntry:
    data = tuple(data_files(onnx.load(path, load_external_data=False)))
    size = sum((path.parent / name).stat().st_size for name in (path.name, *data))
    return GraphEntry(path.name, graph_hash(path, data), size, engine.inputs, engine.outputs, data)


def _write(graph: Graph, path: Path, opset: int) -> None:
    examples = graph.inputs["random"](2)
    if graph.wrt is None:
        export_onnx(graph.module, examples, graph.outputs, path, opset=opset)
    else:
        export_vjp_onnx(graph.module, examples, graph.wrt, graph.outputs, path, opset=opset)


def _reference(graph: Graph) -> tuple[nn.Module, Mapping[str, InputMaker]]:
    """What the engine is compared with, and on what: for a graph with gradient, autograd on random
    cotangents."""
    if graph.wrt is None:
        return graph.module, graph.inputs
    names = cotangent_names(graph.outputs)

    def with_cotangents(make: InputMaker) -> InputMaker:
        def arrays(n: int) -> Arrays:
            inputs = make(n)
            with torch.no_grad():
                outputs = graph.module(*inputs.values())
            parts = outputs if isinstance(outputs, tuple) else (outputs,)
            generator = torch.Generator().manual_seed(n)
            return {
                **{
                    name: torch.randn(part.shape, generator=generator)
                    for name, part in zip(names, parts, strict=True)
                },
                **inputs,
            }

        return arrays

    makers = {kind: with_cotangents(make) for kind, make in graph.inputs.items()}
    return AutogradVjp(
        graph.module, len(names), list(graph.inputs["random"](2)).index(graph.wrt)
    ), makers
