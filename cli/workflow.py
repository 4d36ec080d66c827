"""The steps that commands and the demo share: paths in, results out, with progress bars.

Each is a few calls of the library; whoever writes Python instead of typing commands copies them from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from good_rt.cli.options import Bars
from good_rt.export.detector import DetectorParity, export_detector
from good_rt.export.export import export_models
from good_rt.export.manifest import Manifest, load_engines
from good_rt.export.parity import ABSOLUTE, RELATIVE
from good_rt.export.to_onnx import OPSET
from numpy.typing import NDArray

from good_rt.classifier import load_classifier, save_classifier
from good_rt.data import IdData, from_uint8, halves
from good_rt.dataset import GeneratedSet
from good_rt.demo import assets
from good_rt.detection import DetectorConfig, DetectorModule
from good_rt.diffusion import load_diffusion
from good_rt.evaluation import Evaluation, ScoredSets
from good_rt.files import write_json
from good_rt.generation import GenerationJob, generate, make_generator, pick_batch
from good_rt.labelled import load_npz
from good_rt.pipeline import detector_for, evaluate_detectors, id_part, training_images
from good_rt.training import TrainConfig, TrainResult, finetune

Sets = Mapping[str, NDArray[np.uint8]]
PARITY_IMAGES = 512


def run_export(
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    out: Path,
    bars: Bars,
    *,
    opset: int = OPSET,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
    force: bool = False,
) -> tuple[Manifest, bool]:
    """Exports where something changed; the parity check's real images are held-out ID images."""
    images = id_part(IdData(id_dir), "held_out", load_classifier(classifier_dir)).images[:32]
    with bars.task("exporting to ONNX", 4) as advance:
        return export_models(
            model_dir, classifier_dir, out, images=from_uint8(images), opset=opset, relative=relative,
            absolute=absolute, force=force, on_graph=lambda name: advance(1),
        )  # fmt: skip


def run_generate(
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    out: Path,
    job: GenerationJob,
    *,
    engines: Path | None,
    steps: int,
    cfg_scale: float,
    twins: bool,
    auto_batch: bool,
    bars: Bars,
) -> GeneratedSet:
    """Generates ``job.count`` images into ``out``; exports the models into ``engines`` first where they are not yet."""
    model, classifier = load_diffusion(model_dir), load_classifier(classifier_dir)
    if engines is not None:
        run_export(model_dir, classifier_dir, id_dir, engines, bars)
    source = {"model": model.fingerprint, "classifier": classifier.fingerprint}
    generator = make_generator(
        model,
        classifier,
        IdData(id_dir),
        job,
        steps=steps,
        cfg_scale=cfg_scale,
        engines=load_engines(engines, source) if engines is not None else None,
    )
    if auto_batch:
        # an interrupted job goes on with the size that it began with
        settings = out / "job.json"
        begun = json.loads(settings.read_text()).get("batch") if settings.exists() else None
        job = replace(job, batch=begun or pick_batch(generator, job.count))
    describe = {
        **source,
        "engine": "torch" if engines is None else "onnx",
        "steps": steps,
        "cfg_scale": cfg_scale,
    }
    with bars.task(f"sampling, guidance {job.guidance}, batches of {job.batch}", job.count) as advance:
        return generate(generator, job, out, twins=twins, describe=describe, on_images=advance)


def run_train(
    classifier_dir: Path,
    model_dir: Path,
    id_dir: Path,
    generated: Sequence[Path],
    out: Path,
    config: TrainConfig,
    bars: Bars,
) -> TrainResult:
    """Fine-tunes the classifier (without ``generated``: the control); writes out/classifier and out/training.json."""
    classifier = load_classifier(classifier_dir)
    with bars.task("decoding ID images", None):
        data = training_images(classifier, IdData(id_dir), generated, load_diffusion(model_dir))
    with bars.task("training" if generated else "training the control", config.steps) as advance:
        result = finetune(classifier, data, config, out, on_step=lambda step: advance(1))
    save_classifier(result.classifier, out / "classifier")
    write_json(
        out / "training.json",
        {
            "config": asdict(config),
            "generated": [str(folder) for folder in generated],
            "best_step": result.best_step,
            "held_out_accuracy": result.accuracy,
            "held_out_accuracy_before": result.accuracy_before,
            "history": [asdict(step) for step in result.history],
        },
    )
    return result


def run_build(
    classifier_dir: Path,
    id_dir: Path,
    generated: Sequence[Path],
    out: Path,
    config: DetectorConfig,
    bank_size: int = 10_000,
) -> tuple[DetectorModule, DetectorParity]:
    """Builds the detector and writes it, checked against PyTorch on held-out images, as one ONNX file."""
    classifier, id_data = load_classifier(classifier_dir), IdData(id_dir)
    detector = detector_for(classifier, id_data, generated, config, bank_size)
    known, _ = halves(id_part(id_data, "held_out", classifier))
    images = (from_uint8(known.images[:PARITY_IMAGES]) + 1) / 2
    training = "generated OOD images" if (classifier_dir.parent / "training.json").exists() else "none"
    return detector, export_detector(detector, out, images, training=training)


def run_evaluate(
    classifiers: Mapping[str, Path],
    id_dir: Path,
    generated: Sequence[Path],
    sets: Sets,
    config: DetectorConfig,
    out: Path,
) -> tuple[Evaluation, dict[str, dict[str, ScoredSets]]]:
    """Evaluates every classifier with a detector of its own, and writes the figures to ``out`` (JSON)."""
    id_data = IdData(id_dir)
    detectors = {
        name: detector_for(load_classifier(folder), id_data, generated, config) for name, folder in classifiers.items()
    }
    evaluation, scores = evaluate_detectors(detectors, id_data, sets)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, evaluation.to_json())
    return evaluation, scores


def load_test_sets(paths: Mapping[str, Path]) -> Sets:
    """OOD test sets from .npz files, by name."""
    return {name: load_npz(path).images for name, path in paths.items()}


def demo_test_sets() -> Sets:
    """The OOD test sets that the package ships."""
    return {name: assets.load_images(name).images for name in assets.OOD_TEST_SETS}
