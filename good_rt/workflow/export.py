"""The step `export`: both models as ONNX engines, checked against PyTorch, and as TensorRT plans.

It takes models and ID images and writes the folder of engines that `good_rt.workflow.generate`
runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from good_rt.config.settings import BankConfig, ExportConfig
from good_rt.data.batches import id_batches
from good_rt.data.id_data import IdData
from good_rt.errors import NoGradientRuleError
from good_rt.export.export import export_models
from good_rt.export.graphs import FusedGuidance, graph_names
from good_rt.export.manifest import Manifest
from good_rt.models import Models, ModelSpec
from good_rt.progress import SILENT, Progress
from good_rt.workflow.generator import guidance_discrepancies

if TYPE_CHECKING:
    from good_rt.engines.tensorrt import PlanInfo
    from good_rt.export.tensorrt import PlanConfig

ENGINE_PARITY_IMAGES = 32
"""Real images that engines are compared with PyTorch on."""


@dataclass(frozen=True)
class Exported:
    """The engines of a folder.

    Attributes:
        manifest: What the folder holds.
        exported: Whether anything had to be exported.
    """

    manifest: Manifest
    exported: bool


def export(
    models: Models | ModelSpec,
    id_data: IdData | Path | str,
    out: Path | str,
    config: ExportConfig = ExportConfig(),
    bank: BankConfig = BankConfig(),
    progress: Progress = SILENT,
) -> Exported:
    """Exports both models into the folder ``out`` where something has changed.

    Args:
        models: Diffusion model and classifier.
        id_data: In-distribution images: those that the discrepancies are fitted on, and held-out
            ones for the parity check.
        out: Folder of the engines, replaced as a whole.
        config: Opset, tolerances and batches of the parity check.
        bank: The discrepancies that the fused guidance graph holds.
        progress: Hears of every graph.

    Returns:
        The manifest of ``out``, and whether anything had to be exported.

    Raises:
        ParityError: a graph does not compute what PyTorch computes; ``out`` stays as it was.
        GoodRtError: ``out`` holds other files than engines, or the models do not fit together.
    """
    models = models.load() if isinstance(models, ModelSpec) else models
    id_data, out = IdData.of(id_data), Path(out)
    classifier = models.classifier.to("cpu")
    batches = id_batches(id_data, "held_out", classifier, ENGINE_PARITY_IMAGES)
    images = torch.cat(list(batches))
    fused = None
    if config.vjp:
        _, feature = guidance_discrepancies(models, id_data, bank)
        fused = FusedGuidance(feature, bank.temperature)
    total = len(graph_names(models.diffusion, config.vjp))
    with progress.task("checking engines, exporting missing ones", total) as advance:

        def run(no_rule: str | None = None) -> tuple[Manifest, bool]:
            return export_models(
                models,
                out,
                config,
                images=images,
                fused=fused,
                no_rule=no_rule,
                on_graph=lambda name: advance(1),
                on_damage=lambda reason: progress.note(
                    f"exporting again: {reason.removesuffix('; export again')}"
                ),
            )

        try:
            manifest, done = run()
        except NoGradientRuleError as error:
            manifest, done = run(no_rule=str(error))
    if manifest.no_gradient_rule is not None:
        progress.note(f"no engines for gradients: {manifest.no_gradient_rule}")
    return Exported(manifest, done)


def build_tensorrt_plans(
    folder: Path,
    config: PlanConfig,
    progress: Progress = SILENT,
    *,
    graph: Path | None = None,
    force: bool = False,
) -> Mapping[str, tuple[PlanInfo, bool]]:
    """Builds the TensorRT plans of the engines in a folder.

    Args:
        folder: Folder of the engines, where the plans are written.
        config: How plans are built.
        progress: Hears of every graph.
        graph: An ONNX file; only its plan is built.
        force: Also builds unchanged plans again.

    Returns:
        Each plan's description, and whether it was built, by graph.

    Raises:
        GoodRtError: the folder holds no engines, or a plan cannot be built.
    """
    from good_rt.export.tensorrt import build_plan, build_plans, plan_path

    if graph is not None:
        with progress.task(f"building the plan of {graph.name}"):
            plan = plan_path(folder, graph.stem, config)
            return {graph.stem: build_plan(graph, config, plan, force=force)}
    with progress.task("building TensorRT plans", len(Manifest.read(folder).graphs)) as advance:
        return build_plans(folder, config, force=force, on_graph=lambda name: advance(1))
