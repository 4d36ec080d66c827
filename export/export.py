"""`good-rt export` as a function: network, VAE and classifier to ONNX engines that are proved
before they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import good_rt
from good_rt.config.settings import ExportConfig
from good_rt.engines.base import Engine
from good_rt.engines.batch_splitting import vjp_pair
from good_rt.engines.onnx_file import data_files
from good_rt.engines.open import open_engine
from good_rt.errors import GoodRtError, ParityError
from good_rt.export.graphs import EXPORTER, Arrays, FusedGuidance, Graph, InputMaker, graphs_of
from good_rt.export.manifest import MANIFEST, GraphEntry, Manifest, graph_hash
from good_rt.export.parity import ABSOLUTE, RELATIVE, AutogradVjp, Parity, compare
from good_rt.export.to_onnx import OPSET, export_onnx
from good_rt.export.vjp import cotangent_names, export_vjp_onnx
from good_rt.export.vjp.forward_backward import split_vjp
from good_rt.files import atomic_path
from good_rt.models import Models, check_fit
from good_rt.onnx_runtime import onnxruntime_module

HALVES = ("forward", "backward")


def export_models(
    models: Models,
    out: Path,
    config: ExportConfig = ExportConfig(),
    *,
    images: Tensor | None = None,
    fused: FusedGuidance | None = None,
    no_rule: str | None = None,
    on_graph: Callable[[str], None] = lambda name: None,
    on_damage: Callable[[str], None] = lambda reason: None,
) -> tuple[Manifest, bool]:
    """Exports every graph into ``out`` where something has changed.

    An unchanged model with intact files that this `EXPORTER` wrote is left alone unless
    ``config.force``.

    Args:
        models: Diffusion model and classifier.
        out: Folder of the engines, replaced as a whole.
        config: Opset, tolerances and batch sizes of the parity check.
        images: Real inputs of the parity check: (N, C, H, W) in [-1, 1].
        fused: The discrepancies of the fused guidance; without them no graph with gradients is
            exported.
        no_rule: Why no graph with gradients is exported although ``fused`` is given; the manifest
            records it, so that the next call does not try again.
        on_graph: Hears the name of each graph before it is exported.
        on_damage: Hears why the files that are there are not intact.

    Returns:
        The manifest, and whether anything had to be exported.

    Raises:
        ParityError: a graph does not compute what PyTorch computes; ``out`` is left as it was.
        NoGradientRuleError: an operation has no gradient rule.
        GoodRtError: ``out`` holds other files than engines, or the models do not fit together.
    """
    model, classifier = models.diffusion.to("cpu"), models.classifier.to("cpu")
    check_fit(model, classifier)
    source = dict(models.fingerprints)
    if fused is not None:
        source["guidance"] = fused.fingerprint
    asked = {
        "opset": config.opset, "relative": config.relative, "absolute": config.absolute
    }  # fmt: skip
    before: dict[str, Any] = {"opset": OPSET, "relative": RELATIVE, "absolute": ABSOLUTE}
    try:
        found = Manifest.read(out)
        before |= {"opset": found.opset, **found.tolerance}
        as_asked = all(value is None or before[name] == value for name, value in asked.items())
        if not config.force and found.is_of(source) and as_asked and found.exporter == EXPORTER:
            found.check_files(out)
            return found, False
    except GoodRtError as error:  # nothing there yet, or damaged: exported anew
        if (out / MANIFEST).exists():
            on_damage(str(error))
    chosen = before | {name: value for name, value in asked.items() if value is not None}
    opset, relative, absolute = (chosen[name] for name in ("opset", "relative", "absolute"))
    if out.is_dir() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise GoodRtError(
            f"{out} holds other files than engines, and would be replaced as a whole; choose "
            "another folder for engines"
        )
    check = partial(compare, batches=config.batches, relative=relative, absolute=absolute)
    entries: dict[str, GraphEntry] = {}
    rows: list[Parity] = []
    with atomic_path(out) as folder:
        folder.mkdir()
        gradients = fused if no_rule is None else None
        graphs = graphs_of(model, classifier, images, gradients)
        # what can't be pulled back is found out first
        for name, graph in sorted(graphs.items(), key=lambda item: item[1].wrt is None):
            on_graph(name)
            paths = write_graph(name, graph, folder, opset)
            reference, makers = _reference(graph)
            engine = open_engine(paths[0])
            rows += check(name, engine, reference, makers)
            entries[name] = _entry(paths[0], engine)
            del engine  # a large model's weights need not be there twice
            if graph.split:
                halves = [open_engine(path) for path in paths[1:]]
                rows += check(f"{name} in two", vjp_pair(*halves), reference, makers)
                for path, half in zip(paths[1:], halves, strict=True):
                    entries[path.stem] = _entry(path, half)
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
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime_module().__version__,
        }
        tolerance = {"relative": relative, "absolute": absolute}
        manifest = Manifest(
            source, opset, tolerance, entries, tuple(rows), versions, EXPORTER, no_rule
        )
        manifest.write(folder)
    return manifest, True


def _entry(path: Path, engine: Engine) -> GraphEntry:
    data = tuple(data_files(onnx.load(path, load_external_data=False)))
    size = sum((path.parent / name).stat().st_size for name in (path.name, *data))
    return GraphEntry(path.name, graph_hash(path, data), size, engine.inputs, engine.outputs, data)


def write_graph(name: str, graph: Graph, folder: Path, opset: int) -> list[Path]:
    """Writes NAME.onnx into the folder, and its forward and backward half where it is split.

    Args:
        name: The graph's name; halves are called the same without "_vjp".
        graph: Module, outputs and example inputs.
        folder: An existing folder.
        opset: ONNX operator set.

    Returns:
        The files, the whole graph first.

    Raises:
        NoGradientRuleError: the gradient goes through an operation that has no rule.
        GoodRtError: the module cannot be exported.
    """
    path, examples = folder / f"{name}.onnx", graph.inputs["random"](2)
    if graph.wrt is None:
        export_onnx(graph.module, examples, graph.outputs, path, opset=opset)
    else:
        export_vjp_onnx(graph.module, examples, graph.wrt, graph.outputs, path, opset=opset)
    if not graph.split:
        return [path]
    halves = [folder / f"{name.removesuffix('_vjp')}_{half}.onnx" for half in HALVES]
    split_vjp(path, *halves)
    return [path, *halves]


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
