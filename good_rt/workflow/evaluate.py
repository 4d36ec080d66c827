"""The step `evaluate`: ID and OOD test sets through the detectors of several classifiers.

It measures every score of every classifier on sets that no other step has seen, and writes
evaluation.json and report.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from good_rt.classifier import Classifier, Images
from good_rt.config.settings import DetectorConfig
from good_rt.data.batches import id_part
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData, unlabelled
from good_rt.data.image_files import contact_sheet
from good_rt.data.pixels import from_uint8
from good_rt.detector.module import DetectorModule, Measurements, measure
from good_rt.environment import REPORTED_PACKAGES, versions
from good_rt.errors import GoodRtError
from good_rt.evaluation.report import ReportData, Sheet, write_report
from good_rt.evaluation.results import Evaluation, Refusal, ScoredSets, Share, evaluate_scores
from good_rt.files import paths_of, write_json
from good_rt.method.conformal import allows
from good_rt.method.discrepancy import (
    DISCREPANCIES,
    TITLES,
    Discrepancy,
    DiscrepancyConfig,
    fit_discrepancy,
)
from good_rt.method.discrepancy.energy import Energy
from good_rt.method.schedule import FloatArray
from good_rt.method.scores import LOGIT_SCORES, LogitScore, plugin_scores
from good_rt.progress import SILENT, Progress
from good_rt.workflow.detector import detector_for, open_classifier
from good_rt.workflow.train import training_record

TestSets = Mapping[str, NDArray[np.uint8]]
ALPHAS = (0.01, 0.05)
"""The shares of ID inputs at which the refusals are checked."""
SHEET_IMAGES, SHEET_COLUMNS = 32, 8
GUIDANCE_TEXTS = {
    "none": ("Unguided", "Samples of the diffusion model without guidance."),
    "img": ("Image level", "Guided to a low log-partition of the classifier."),
    "feat": ("Feature level", "Guided away from the features of ID images."),
    "both": ("Both levels", "Guided by the sum of both."),
}
"""Title and caption of a generated set's contact sheet, by kind of guidance."""


@dataclass(frozen=True)
class ReportPage:
    """What a report says beside its figures, and which classifier it is about.

    Attributes:
        title: Title of the page.
        summary: Sentence below the title.
        models: What each classifier is, by its name.
        settings: Settings to list, by name.
        files: Files to list, by what they are.
        shipped: Name of the classifier whose detector is shipped; None for the last.
        training: Folder of the fine-tuning whose curve is drawn; None for the last classifier's.
        also: Generated sets to show that no gate was fitted on.
        scores: Names of plug-ins whose scores are measured as well.
    """

    title: str = "OOD detection, measured"
    summary: str = (
        "How well each score of each classifier tells in-distribution test images from OOD images."
    )
    models: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    shipped: str | None = None
    training: Path | None = None
    also: Sequence[Path] = ()
    scores: Sequence[str] = ()


def evaluate(
    classifiers: Mapping[str, Classifier | DetectorModule | Path | str],
    id_data: IdData | Path | str,
    test_sets: Mapping[str, NDArray[np.uint8] | Path | str],
    out: Path | str,
    generated: Sequence[Path | str] = (),
    config: DetectorConfig = DetectorConfig(),
    page: ReportPage = ReportPage(),
    progress: Progress = SILENT,
) -> Evaluation:
    """Measures every score of every classifier; writes out/evaluation.json and out/report.html.

    Args:
        classifiers: By the name that tables show: a classifier, its folder or spec, or its detector
            where it is already built.
        id_data: In-distribution images; their test part is measured.
        test_sets: OOD images by name: uint8 (N, H, W, C), or any source of images. The first is
            shown as near-OOD.
        out: Folder of the two files.
        generated: Sets of guided images that the detectors' gates are fitted with.
        config: Settings of the detectors.
        page: What the report says beside its figures.
        progress: Hears of the parts.

    Returns:
        What evaluation.json holds.

    Raises:
        GoodRtError: there is nothing to measure, or images do not fit.
    """
    id_data, out = IdData.of(id_data), Path(out)
    plugins = plugin_scores(page.scores)
    folders = paths_of(generated)
    if not classifiers or not test_sets:
        raise GoodRtError("an evaluation needs at least one classifier and one OOD test set")
    detectors: dict[str, DetectorModule] = {}
    with progress.task("building detectors", len(classifiers)) as advance:
        for name, given in classifiers.items():
            if not isinstance(given, DetectorModule):
                classifier = open_classifier(given, folders)
                given = detector_for(classifier, id_data, folders, config)
            detectors[name] = given
            advance(1)
    last_name, last = list(detectors.items())[-1]
    shape = last.classifier.config.channels, last.classifier.config.image_size
    ood = {
        name: images if isinstance(images, np.ndarray) else unlabelled(Path(images), *shape)
        for name, images in test_sets.items()
    }
    with progress.task("scoring the test sets"):
        evaluation, scores = evaluate_detectors(
            detectors, id_data, ood, page.shipped, plugins=plugins
        )
    write_json(out / "evaluation.json", evaluation.to_json())
    shown = id_part(id_data, "held_out", last.classifier, SHEET_IMAGES).images
    data = ReportData(
        title=page.title,
        summary=page.summary,
        evaluation=evaluation,
        score="Unified",
        near=next(iter(ood)),
        scores=scores,
        sheets=_sheets(shown, [*page.also, *folders]),
        training=_training_curve(page.training or _path_of(classifiers[last_name])),
        models=page.models,
        settings={
            **page.settings,
            "score": f"{config.combination} of {', '.join(config.discrepancies)}",
            "alpha": str(config.alpha),
        },
        versions=versions(REPORTED_PACKAGES),
        files={"detector and figures": str(out), **page.files},
    )
    with progress.task("drawing the report"):
        write_report(out / "report.html", data)
    return evaluation


def evaluate_detectors(
    detectors: Mapping[str, DetectorModule],
    id_data: IdData,
    ood: TestSets,
    shipped: str | None = None,
    seed: int = 0,
    plugins: Mapping[str, LogitScore] | None = None,
) -> tuple[Evaluation, dict[str, dict[str, ScoredSets]]]:
    """Every score of every detector on every OOD set.

    Accuracy is each classifier's on the ID test images. ID refusals are those of the shipped
    detector at its own α, listed last, and before it at those of `ALPHAS` that its number of
    calibration images allows.

    Args:
        detectors: Detectors by model name.
        id_data: In-distribution images; the test part is measured.
        ood: OOD images by name, (N, H, W, C) uint8.
        shipped: Name of the shipped detector; None for the last.
        seed: Seed of the bootstrap.
        plugins: Further scores by name.

    Returns:
        The evaluation, and the scores of each model by score, for plots.

    Raises:
        GoodRtError: images do not fit, or a value is not finite.
    """
    shipped = list(detectors)[-1] if shipped is None else shipped
    scores, correct = {}, {}
    for name, detector in detectors.items():
        of_detector = evaluated_discrepancies(detector)
        measured, labels = measure_part(detector, of_detector, id_data, "test")
        of_test = all_scores(detector, measured, plugins)
        of_ood = {}
        for kind, images in ood.items():
            measured_ood = measure_images(detector, of_detector, images)
            of_ood[kind] = all_scores(detector, measured_ood, plugins)
        scores[name] = {
            score: ScoredSets(values, {kind: of_ood[kind][score] for kind in ood})
            for score, values in of_test.items()
        }
        correct[name] = Share.of(measured.logits.argmax(axis=1) == labels)
    detector = detectors[shipped]
    p_values, shipped_alpha = (
        detector.p_values(scores[shipped]["Unified"].id),
        detector.config.alpha,
    )
    checked = [a for a in ALPHAS if a != shipped_alpha and allows(a, len(detector.calibration))]
    refusals = [Refusal.at(alpha, p_values) for alpha in (*checked, shipped_alpha)]
    evaluation = evaluate_scores(
        scores, shipped=shipped, id_accuracy=correct, id_refusal=refusals, seed=seed
    )
    return evaluation, scores


def evaluated_discrepancies(detector: DetectorModule) -> list[Discrepancy]:
    """The discrepancies of the detector's score, and all others that can be fitted on the same
    features: with images of one class only, or fewer than k, some cannot."""
    parameters = DiscrepancyConfig(detector.config.k, detector.config.temperature)
    known = {one.name: one for one in detector.discrepancies}
    for name in DISCREPANCIES:
        if name not in known:
            with suppress(GoodRtError):
                known[name] = fit_discrepancy(name, detector.id_features, parameters)
    return [known[name] for name in DISCREPANCIES if name in known]


def measure_images(
    detector: DetectorModule,
    discrepancies: Sequence[Discrepancy],
    images: NDArray[np.uint8] | Images,
) -> Measurements:
    """Logits and discrepancies of images.

    Args:
        detector: Its classifier is run.
        discrepancies: What is measured.
        images: (N, H, W, C) uint8, or (N, C, H, W) in [-1, 1], whole or in batches.
    """
    if isinstance(images, np.ndarray):
        images = from_uint8(images)
    return measure(detector.classifier, discrepancies, images)


def measure_part(
    detector: DetectorModule, discrepancies: Sequence[Discrepancy], id_data: IdData, name: str
) -> tuple[Measurements, NDArray[np.int64]]:
    """A part of the ID data, measured batch by batch, and its labels (N,).

    Args:
        detector: Its classifier is run.
        discrepancies: What is measured.
        id_data: In-distribution images.
        name: The part: train, held_out or test.
    """
    config, labels = detector.classifier.config, []

    def images() -> Iterator[Tensor]:
        for batch in id_data.batches(name, config.classes, config.channels, config.image_size):
            assert batch.labels is not None  # IdData checks it
            labels.append(batch.labels)
            yield from_uint8(batch.images)

    return measure_images(detector, discrepancies, images()), np.concatenate(labels)


def all_scores(
    detector: DetectorModule,
    measured: Measurements,
    plugins: Mapping[str, LogitScore] | None = None,
) -> dict[str, FloatArray]:
    """Every score of N measured images: the post-hoc peers, the feature discrepancies, the unified
    score.

    Args:
        detector: Its unified score.
        measured: The images' logits and discrepancies.
        plugins: Scores of plug-ins by name.

    Returns:
        (N,) by name, higher = more OOD.
    """
    scores = {
        name: score(measured.logits) for name, score in (LOGIT_SCORES | dict(plugins or {})).items()
    }
    for name, values in measured.discrepancies.items():
        title, temperature = TITLES[name], detector.config.temperature
        if name == Energy.name and temperature != 1:  # the row Energy is of temperature 1
            title = f"{title}, T = {temperature:g}"
        scores.setdefault(title, values)
    scores["Unified"] = detector.scores(measured)
    return scores


def _sheets(id_images: NDArray[np.uint8], folders: Sequence[Path]) -> list[Sheet]:
    """Contact sheets of ID images and of every generated set."""
    shown = contact_sheet(id_images[:SHEET_IMAGES], SHEET_COLUMNS)
    sheets = [Sheet.of("In-distribution", shown, "Held-out ID images.")]
    for folder in folders:
        generated = GeneratedSet(folder)
        rows, images = generated.rows(), generated.images()
        title, caption = GUIDANCE_TEXTS[rows[0].guidance]
        if number := generated.settings().get("round"):
            title = f"{title}, round {number}"
        energy = np.mean([row.energy for row in rows])
        distance = np.mean([row.knn_distance for row in rows])
        caption = f"{caption} Mean energy {energy:.2f}, mean k-NN distance {distance:.3f}."
        sheets.append(Sheet.of(title, contact_sheet(images[:SHEET_IMAGES], SHEET_COLUMNS), caption))
    return sheets


def _path_of(given: object) -> Path | None:
    return Path(given) if isinstance(given, (str, Path)) else None


def _training_curve(classifier: Path | None) -> list[tuple[float, float, float]]:
    """(step, CE, BCE) of the fine-tuning behind a classifier's path; empty where it had none with
    OOD images."""
    training = training_record(classifier) if classifier is not None else None
    history = training.history if training is not None else ()
    return [(step.step, step.ce, step.bce) for step in history if step.bce is not None]
