"""The steps that commands and the demo share: paths in, results out, with progress bars.

Each is a few calls of the library; whoever writes Python instead of typing commands copies them
from here.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from good_rt.classifier import Classifier, load_classifier, save_classifier
from good_rt.cli.options import NO_BARS, Bars
from good_rt.config.job import ONNX, Precision, Runtime
from good_rt.data.batches import half_rows, id_batches
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData, from_uint8, unlabelled
from good_rt.data.image_files import contact_sheet
from good_rt.config.settings import SplitConfig
from good_rt.data.splits import Splits, make_splits
from good_rt.demo import assets
from good_rt.config.settings import DetectorConfig
from good_rt.detector.module import DetectorModule
from good_rt.diffusion import TEMPLATE, DiffusionModel, load_diffusion
from good_rt.engines.base import Engine
from good_rt.engines.cpu.library import kernel_library
from good_rt.engines.onnxruntime import check_providers, providers_for
from good_rt.engines.threads import cores
from good_rt.environment import CPU, describe
from good_rt.errors import GoodRtError, NoGradientRuleError
from good_rt.evaluation.report import ReportData, Sheet, write_report
from good_rt.evaluation.results import Evaluation
from good_rt.export.detector import DetectorParity, export_detector
from good_rt.export.export import export_models
from good_rt.export.graphs import FusedGuidance
from good_rt.export.manifest import Manifest, checked_graphs, load_engines
from good_rt.export.parity import BATCHES
from good_rt.files import read_json, sole_user, write_json
from good_rt.config.settings import GuidanceConfig
from good_rt.config.settings import TrainConfig
from good_rt.method.training import TrainingImages, TrainResult, check_trainable, finetune
from good_rt.workflow.generation import (
    BANK_SIZE,
    GenerationJob,
    Generator,
    feature_bank,
    generate,
    make_generator,
    pick_batch,
)
from good_rt.workflow.pipeline import detector_for, evaluate_detectors, id_part, training_images
from good_rt.workflow.timing import Work, side_by_side, step_parts

if TYPE_CHECKING:
    from good_rt.engines.tensorrt import PlanInfo
    from good_rt.export.tensorrt import PlanConfig

Sets = Mapping[str, NDArray[np.uint8]]
PARITY_IMAGES = 512
TRAINING = "training.json"
ENGINES = ("unet", "vae_decoder")
GRADIENT_ENGINES = (
    *ENGINES,
    "unet_forward",
    "unet_backward",
    "decoder_forward",
    "decoder_backward",
    "guidance_vjp",
)
"""The graphs that sampling runs, without and with gradients by engines; a pixel model lacks those
of the decoder."""
SHEET_IMAGES, SHEET_COLUMNS = 32, 8
GUIDANCE_TEXTS = {
    "none": ("Unguided", "What the diffusion model makes by itself."),
    "img": ("Image level", "Guided to a low log-partition of the classifier."),
    "feat": ("Feature level", "Guided away from the features of ID images."),
    "both": ("Both levels", "Guided by the sum of both."),
}
"""Title and caption of a generated set's contact sheet, by its kind of guidance."""


@dataclass(frozen=True)
class Page:
    """What a report says beside its figures; ``also`` are folders of images to show that no gate
    was fitted on."""

    title: str = "OOD detection, measured"
    summary: str = (
        "How well each score of each classifier tells in-distribution test images from OOD images."
    )
    models: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    also: Sequence[Path] = ()


def run_split(
    source_path: Path, out: Path, config: SplitConfig, bars: Bars = NO_BARS, *, check: bool = True
) -> Splits:
    """Divides a source of images and records it as the splits.json ``out``; images that are in it
    already keep their part as long as shares and seed are the same, and a source that comes with a
    splits.json keeps that. ``check`` decodes every image: a bad one is named."""
    data = IdData(source_path)
    if data.record is not None:
        splits = data.splits
    else:
        before = Splits.read(out) if out.exists() else None
        if before is not None and replace(before.config, skip_bad=config.skip_bad) != config:
            before = None
        with bars.task("reading the images", len(data.source.entries)) as advance:
            splits = make_splits(data.source, config, check=check, before=before, on_item=advance)
    splits.write(out)
    return splits


def run_export(
    model_dir: Path,
    classifier: Path | Classifier,
    id_dir: Path,
    out: Path,
    bars: Bars = NO_BARS,
    *,
    opset: int | None = None,
    relative: float | None = None,
    absolute: float | None = None,
    batches: Sequence[int] = BATCHES,
    force: bool = False,
    gradients: bool = True,
    k: int = GenerationJob.k,
    temperature: float = GenerationJob.temperature,
    gradient_decoder: Path | None = None,
    image_size: int | None = None,
    bank_size: int = BANK_SIZE,
    on_no_rule: Callable[[NoGradientRuleError], None] | None = None,
) -> tuple[Manifest, bool]:
    """Exports where something changed; the parity check's real images are held-out ID images.

    ``opset`` and tolerances that are None are those of the export that is there, or the defaults.

    ``gradients`` also exports the graphs that guidance can differentiate with, for this k and
    temperature; through the decoder in the folder ``gradient_decoder`` where one is given, and with
    ``bank_size`` features. ``image_size`` is `load_diffusion`'s. Where an operation has no gradient
    rule, ``on_no_rule`` hears of it, and the other graphs are exported; without it that is an
    error.
    """
    if not isinstance(classifier, Classifier):
        classifier = load_classifier(classifier).fitted(
            lambda: load_diffusion(model_dir, image_size=image_size).image_shape
        )
    id_data = IdData(id_dir)
    images = id_part(id_data, "held_out", classifier, 32).images
    fused = (
        FusedGuidance(feature_bank(classifier, id_data, bank_size), k, temperature)
        if gradients
        else None
    )
    with bars.task(
        "checking engines, exporting those that are missing", 7 if gradients else 4
    ) as advance:
        export = partial(
            export_models,
            model_dir,
            classifier,
            out,
            images=from_uint8(images),
            opset=opset,
            relative=relative,
            absolute=absolute,
            batches=batches,
            force=force,
            gradient_decoder=gradient_decoder,
            image_size=image_size,
            on_graph=lambda name: advance(1),
            on_damage=lambda reason: bars.note(
                f"engines are made anew: {reason.removesuffix('; export again')}"
            ),
        )
        try:
            return export(fused=fused)
        except NoGradientRuleError as error:
            if on_no_rule is None:
                raise
            on_no_rule(error)
            return export(fused=None)


def run_plans(
    folder: Path,
    config: PlanConfig,
    bars: Bars = NO_BARS,
    *,
    graph: Path | None = None,
    force: bool = False,
) -> dict[str, tuple[PlanInfo, bool]]:
    """Builds the TensorRT plan of every engine in ``folder``, or of the ONNX file ``graph`` alone,
    into it."""
    from good_rt.export.tensorrt import build_plan, build_plans, plan_path

    if graph is not None:
        with bars.task(f"building the plan of {graph.name}", None):
            return {
                graph.stem: build_plan(
                    graph, config, plan_path(folder, graph.stem, config), force=force
                )
            }
    with bars.task("building TensorRT plans", len(Manifest.read(folder).graphs)) as advance:
        return build_plans(folder, config, force=force, on_graph=lambda name: advance(1))


def check_runtime(runtime: Runtime, device: torch.device) -> None:
    """Raises GoodRtError when what is to run engines there is not installed, or has no such
    precision."""
    if runtime.name == "onnx":
        check_providers(providers_for(device))
        if runtime.precision != "fp32" and device.type == "cpu":
            raise GoodRtError(
                f"ONNX Runtime computes in {runtime.precision} on a GPU alone: add --device cuda"
            )
        return
    from good_rt.engines.tensorrt import load_library, present_architecture

    if device.type == "cpu":
        raise GoodRtError("TensorRT needs --device cuda")
    load_library(architecture=present_architecture())


def open_generator(
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    job: GenerationJob,
    *,
    engines: Path | None,
    gradients: bool,
    steps: int,
    cfg_scale: float,
    cfg_sigma_max: float = math.inf,
    bars: Bars = NO_BARS,
    prompts: Sequence[str] = (TEMPLATE,),
    gradient_decoder: Path | None = None,
    image_size: int | None = None,
    bank_size: int = BANK_SIZE,
    device: torch.device = CPU,
    runtime: Runtime = ONNX,
) -> tuple[Generator, dict[str, Any]]:
    """The models that jobs run on, and what job.json says of them; exports into ``engines`` first
    where needed.

    With ``gradients`` engines compute the gradients too, else PyTorch does. One generator serves
    every job of the same k and temperature. ``prompts`` are templates of a class's prompt, for
    models that text conditions; ``gradient_decoder`` and ``image_size`` are `load_diffusion`'s.
    ``runtime`` runs the engines; TensorRT's plans are for batches of up to the job's.
    """
    if engines is not None:
        check_runtime(runtime, device)  # before the work of exporting
    model = load_diffusion(model_dir, gradient_decoder=gradient_decoder, image_size=image_size)
    classifier = load_classifier(classifier_dir).fitted(lambda: model.image_shape)
    source = {"model": model.fingerprint, "classifier": classifier.fingerprint}
    loaded: Mapping[str, Engine] | None = None
    if engines is not None:
        run_export(
            model_dir,
            classifier,
            id_dir,
            engines,
            bars,
            gradients=gradients,
            k=job.k,
            temperature=job.temperature,
            gradient_decoder=gradient_decoder,
            image_size=image_size,
            bank_size=bank_size,
        )
        pixels = model.decoder is None
        names = [
            name
            for name in (GRADIENT_ENGINES if gradients else ENGINES)
            if not (pixels and "decoder" in name)
        ]
        if runtime.name == "onnx":
            precisions = dict.fromkeys(ENGINES, runtime.precision)
            loaded = load_engines(engines, source, names, device=device, precisions=precisions)
        else:
            loaded = _load_plans(
                engines, source, names, runtime.precision, job.batch, cfg_scale != 1, bars
            )
    with bars.task("building the feature bank", None):
        generator = make_generator(
            model,
            classifier,
            IdData(id_dir),
            job,
            steps=steps,
            cfg_scale=cfg_scale,
            cfg_sigma_max=cfg_sigma_max,
            bank_size=bank_size,
            engines=loaded,
            prompts=prompts,
            device=device,
        )
    describe = describe_generation(
        model,
        classifier,
        runtime=None if engines is None else runtime,
        gradients=gradients,
        steps=steps,
        cfg_scale=cfg_scale,
        cfg_sigma_max=cfg_sigma_max,
        bank_size=bank_size,
        prompts=prompts,
        device=device,
    )
    return generator, describe


def _load_plans(
    folder: Path,
    source: Mapping[str, str],
    names: Sequence[str],
    precision: str,
    batch: int,
    pairs: bool,
    bars: Bars,
) -> Mapping[str, Engine]:
    """The engines as TensorRT plans for batches of that size, of the UNet twice that where classes
    come in ``pairs`` with none; gradients lose too much in half precision, and stay in float32."""
    from good_rt.export.tensorrt import PlanConfig, load_plan, plan_path

    graphs, found = checked_graphs(folder, source, names), {}
    with bars.task(
        "loading TensorRT plans, building those that are missing", len(graphs)
    ) as advance:
        for name, entry in graphs.items():
            size = 2 * batch if pairs and name.startswith("unet") else batch
            config = PlanConfig(
                precision=precision if name in ENGINES else "fp32",
                profile={"batch": (1, size, size)},
            )
            found[name] = load_plan(folder / entry.file, config, plan_path(folder, name, config))
            advance(1)
    return found


def describe_generation(
    model: DiffusionModel,
    classifier: Classifier,
    *,
    runtime: Runtime | None,
    gradients: bool,
    steps: int,
    cfg_scale: float,
    cfg_sigma_max: float,
    prompts: Sequence[str],
    bank_size: int = BANK_SIZE,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """What job.json says of the models that `open_generator` opens with these settings; no
    ``runtime`` is PyTorch."""
    found = {
        "model": model.fingerprint,
        "classifier": classifier.fingerprint,
        "engine": str(runtime or "torch"),
        "gradients": "engine" if gradients else "torch",
        "steps": steps,
        "cfg_scale": cfg_scale,
        "bank_size": bank_size,
    }
    if cfg_sigma_max < math.inf:
        found["cfg_sigma_max"] = cfg_sigma_max
    if device.type != "cpu":
        found["device"] = device.type
    return {**found, "prompts": list(prompts)} if model.text else found


def run_job(
    generator: Generator,
    describe: dict[str, Any],
    job: GenerationJob,
    out: Path,
    bars: Bars = NO_BARS,
    *,
    twins: bool,
    auto_batch: bool = False,
) -> GeneratedSet:
    """Generates ``job.count`` images into ``out``; ``auto_batch`` finds the batch size by
    timing."""
    if auto_batch:
        # an interrupted job goes on with the size that it began with
        settings = out / "job.json"
        begun = read_json(settings).get("batch") if settings.exists() else None
        job = replace(job, batch=begun or pick_batch(generator, job.count))
    with bars.task(
        f"sampling, guidance {job.guidance}, batches of {job.batch}", job.count
    ) as advance:
        return generate(generator, job, out, twins=twins, describe=describe, on_images=advance)


def run_sampler_bench(
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    engines: Path,
    config: GuidanceConfig,
    batches: Sequence[int],
    steps: int,
    repeats: int,
    bars: Bars = NO_BARS,
    gradient_decoder: Path | None = None,
    device: torch.device = CPU,
    plans: Sequence[Precision] = (),
) -> dict[str, Any]:
    """Seconds of the sampler's variants by batch size, and of a step's parts with PyTorch's and
    engines' gradients.

    ``plans`` are precisions of TensorRT plans, a further variant each.
    """
    job = GenerationJob(max(batches), config=config, batch=max(batches))
    generators = {
        name: open_generator(
            model_dir,
            classifier_dir,
            id_dir,
            job,
            engines=folder,
            gradients=gradients,
            steps=steps,
            cfg_scale=1.0,
            bars=bars,
            gradient_decoder=gradient_decoder,
            device=device,
            runtime=runtime,
        )[0]
        for name, folder, gradients, runtime in (
            *(
                (f"TensorRT {kind} throughout", engines, True, Runtime("tensorrt", kind))
                for kind in plans
            ),
            ("engines throughout", engines, True, ONNX),
            ("engines, PyTorch gradients", engines, False, ONNX),
            ("PyTorch alone", None, False, ONNX),
        )
    }
    found: dict[str, Any] = {
        "machine": {**describe(device), "cores": len(cores()), "kernels": kernel_library() is not None},
        "steps": steps, "mu": config.mu, "rho": config.rho, "seconds": {}, "parts": {},
    }  # fmt: skip

    def variants(batch: int) -> dict[str, Work]:
        indices = list(range(batch))
        guided: dict[str, Work] = {
            name: partial(generator.images, job, indices) for name, generator in generators.items()
        }
        return {
            "unguided": partial(
                generators["engines throughout"].images, job, indices, guided=False
            ),
            **guided,
        }

    for batch in batches:
        with bars.task(
            f"sampling batches of {batch}", (repeats + 1) * (len(generators) + 1)
        ) as advance:
            found["seconds"][str(batch)] = side_by_side(
                variants(batch), repeats, lambda name: advance(1)
            )
        with bars.task(f"a step's parts, batches of {batch}", None):
            found["parts"][str(batch)] = {
                name: {
                    part: float(np.median(seconds))
                    for part, seconds in side_by_side(
                        step_parts(generator, job, batch), repeats
                    ).items()
                }
                for name, generator in generators.items()
            }
    return found


def open_training(
    classifier_dir: Path,
    model_dir: Path,
    id_dir: Path,
    generated: Sequence[Path],
    bars: Bars = NO_BARS,
    unguided: Sequence[Path] = (),
    *,
    image_size: int | None = None,
    device: torch.device = CPU,
) -> TrainingImages:
    """What `run_train` trains with: ID images, what the model's autoencoder makes of them, and
    generated ones."""
    model = load_diffusion(model_dir, image_size=image_size)
    classifier = load_classifier(classifier_dir).fitted(lambda: model.image_shape)
    check_trainable(classifier)  # before the work of decoding
    with bars.task("decoding ID images", None):
        return training_images(
            classifier.to(device), IdData(id_dir), generated, model.to(device), unguided
        )


def run_train(
    classifier_dir: Path,
    model_dir: Path,
    id_dir: Path,
    generated: Sequence[Path],
    out: Path,
    config: TrainConfig,
    bars: Bars = NO_BARS,
    unguided: Sequence[Path] = (),
    image_size: int | None = None,
    device: torch.device = CPU,
    *,
    data: TrainingImages | None = None,
) -> TrainResult:
    """Fine-tunes the classifier (without ``generated``: the control); writes out/classifier and
    out/training.json.

    ``image_size`` is `load_diffusion`'s, as the images were generated with. ``data`` is what
    `open_training` gives for these folders, or its ``control``, where several trainings share it.
    Raises GoodRtError when it has other kinds of images than the arguments name.
    """
    data = data or open_training(
        classifier_dir,
        model_dir,
        id_dir,
        generated,
        bars,
        unguided,
        image_size=image_size,
        device=device,
    )
    if (data.ood is not None, data.unguided is not None) != (bool(generated), bool(unguided)):
        raise GoodRtError(
            "the images to train with are not those of the generated and unguided folders named"
        )
    shape = tuple(data.images.shape[1:])
    classifier = load_classifier(classifier_dir).fitted(lambda: shape).to(device)
    task = bars.task("training" if generated else "training the control", config.steps)
    with sole_user(out), task as advance:
        result = finetune(classifier, data, config, out, on_step=lambda step: advance(1))
    save_classifier(result.classifier.cpu(), out / "classifier")
    write_json(
        out / TRAINING,
        {
            "config": asdict(config),
            "generated": [str(folder) for folder in generated],
            "unguided": [str(folder) for folder in unguided],
            "kept_step": result.kept_step,
            "held_out_accuracy": result.accuracy,
            "held_out_accuracy_before": result.accuracy_before,
            "history": [asdict(step) for step in result.history],
        },
    )
    return result


def open_classifier(
    spec: Path, generated: Sequence[Path], device: torch.device = CPU
) -> Classifier:
    """A classifier for the images of generated sets: one whose network has another size resizes
    them."""
    classifier = load_classifier(spec)
    return (
        classifier.fitted(GeneratedSet(generated[0]).image_shape) if generated else classifier
    ).to(device)


def run_build(
    classifier_dir: Path,
    id_dir: Path,
    generated: Sequence[Path],
    out: Path,
    config: DetectorConfig,
    bank_size: int = BANK_SIZE,
    device: torch.device = CPU,
) -> tuple[DetectorModule, DetectorParity]:
    """Builds the detector, with the classifier on ``device``, and writes it as one ONNX file, which
    is checked against PyTorch on held-out images."""
    classifier, id_data = open_classifier(classifier_dir, generated, device), IdData(id_dir)
    detector = detector_for(classifier, id_data, generated, config, bank_size)
    known, _ = half_rows(id_data, "held_out")
    images = (
        torch.cat(list(id_batches(id_data, "held_out", classifier, rows=known[:PARITY_IMAGES]))) + 1
    ) / 2
    training = "generated OOD images" if _trained_with(classifier_dir) else "none"
    return detector, export_detector(detector, out, images, training=training)


def run_evaluate(
    classifiers: Mapping[str, Path],
    id_dir: Path,
    generated: Sequence[Path],
    sets: Sets,
    config: DetectorConfig,
    out: Path,
    bars: Bars = NO_BARS,
    page: Page = Page(),
    bank_size: int = BANK_SIZE,
    shipped: str | None = None,
    device: torch.device = CPU,
    built: Mapping[str, DetectorModule] | None = None,
) -> Evaluation:
    """Evaluates every classifier with a detector of its own; writes out/evaluation.json and
    out/report.html.

    ``shipped`` names the classifier whose detector is handed out, by default the last; ``built``
    are detectors of these classifiers, images and settings that are there already.
    """
    id_data = IdData(id_dir)
    detectors = {}
    with bars.task("building detectors", len(classifiers)) as advance:
        for name, folder in classifiers.items():
            found = (built or {}).get(name)
            if found is None:
                found = detector_for(
                    open_classifier(folder, generated, device),
                    id_data,
                    generated,
                    config,
                    bank_size,
                )
            detectors[name] = found
            advance(1)
    with bars.task("scoring the test sets", None):
        evaluation, scores = evaluate_detectors(detectors, id_data, sets, shipped)
    write_json(out / "evaluation.json", evaluation.to_json())
    last = list(detectors.values())[-1]
    data = ReportData(
        title=page.title,
        summary=page.summary,
        evaluation=evaluation,
        score="Unified",
        near=next(iter(sets)),
        scores=scores,
        sheets=_sheets(
            id_part(id_data, "held_out", last.classifier, SHEET_IMAGES).images,
            [*page.also, *generated],
        ),
        training=_training_curve(list(classifiers.values())[-1]),
        models=page.models,
        settings={**page.settings, "k": str(config.k), "alpha": str(config.alpha)},
        versions=installed_versions(),
        files={"detector and figures": str(out), **page.files},
    )
    with bars.task("drawing the report", None):
        write_report(out / "report.html", data)
    return evaluation


def _sheets(id_images: NDArray[np.uint8], folders: Sequence[Path]) -> list[Sheet]:
    """Contact sheets of ID images and of every generated set."""
    sheets = [
        Sheet.of(
            "In-distribution",
            contact_sheet(id_images[:SHEET_IMAGES], SHEET_COLUMNS),
            "Held-out ID images.",
        )
    ]
    for folder in folders:
        made = GeneratedSet(folder)
        rows, images = made.rows(), made.images()
        title, caption = GUIDANCE_TEXTS[rows[0].guidance]
        energy, distance = (
            np.mean([getattr(row, name) for row in rows]) for name in ("energy", "knn_distance")
        )
        caption = f"{caption} Mean energy {energy:.2f}, mean k-NN distance {distance:.3f}."
        sheets.append(Sheet.of(title, contact_sheet(images[:SHEET_IMAGES], SHEET_COLUMNS), caption))
    return sheets


def _training_file(classifier: Path) -> Path:
    """Where training.json lies of a classifier that `run_train` wrote."""
    folder = (
        classifier if classifier.exists() else Path(str(classifier).partition("@")[2])
    )  # of the user's own code
    return folder.parent / TRAINING


def _trained_with(classifier_dir: Path) -> list[str]:
    """The folders of generated images behind a classifier; none of one that came from elsewhere, or
    is a control."""
    path = _training_file(classifier_dir)
    return list(read_json(path).get("generated", ())) if path.exists() else []


def _training_curve(classifier_dir: Path) -> list[tuple[float, float, float]]:
    """(step, CE, BCE) of the fine-tuning behind a classifier folder; empty where it had none with
    OOD images."""
    path = _training_file(classifier_dir)
    if not path.exists():
        return []
    history = read_json(path).get("history", ())
    return [(step["step"], step["ce"], step["bce"]) for step in history if step["bce"] is not None]


def installed_versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    names = ("good-rt", "torch", "diffusers", "onnx", "onnxruntime", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def load_test_sets(paths: Mapping[str, Path], channels: int, size: int) -> Sets:
    """OOD test sets from any source of images, by name, as a classifier of these channels and size
    takes them."""
    return {name: unlabelled(path, channels, size) for name, path in paths.items()}


def demo_test_sets() -> Sets:
    """The OOD test sets that the package ships."""
    return {name: assets.load_images(name).images for name in assets.OOD_TEST_SETS}
