"""The step `evaluate`: ID and OOD test sets through the detectors of several classifiers.

It measures every score of every classifier on sets that no other step has seen, and writes
evaluation.json and report.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from good_rt.classifier import Classifier, Images
from good_rt.config.settings import DetectorConfig
from good_rt.data.batches import id_batches, id_part
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData, unlabelled
from good_rt.data.image_files import contact_sheet
from good_rt.data.pixels import from_uint8
from good_rt.detector.module import DetectorModule, measure
from good_rt.detector.runtime import Detector
from good_rt.environment import REPORTED_PACKAGES, versions
from good_rt.errors import GoodRtError
from good_rt.evaluation.picture_rows import THUMBNAIL, thumbnails
from good_rt.evaluation.report import ReportData, Sheet, TrainingCurve, write_report
from good_rt.evaluation.results import Evaluation, Refusal, ScoredSets, Share, evaluate_scores
from good_rt.evaluation.training_gain import TrainingRoles
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
from good_rt.method.measurements import Measurements
from good_rt.method.schedule import FloatArray
from good_rt.method.scores import LOGIT_SCORES, LogitScore, plugin_scores
from good_rt.progress import SILENT, Progress
from good_rt.workflow.detector import check_same_detector, detector_for, open_classifier
from good_rt.workflow.peers import (
    PEERS,
    ImageBatches,
    PeerFit,
    ScoredImages,
    array_batches,
    pytorch_ood_detectors,
    score_with_peers,
)
from good_rt.workflow.report_figures import (
    GUIDANCE_TEXTS,
    EvaluatedSets,
    distance_figures,
    feature_discrepancy,
    mistake_pictures,
    ordered_pictures,
    score_generated,
    training_roles,
)
from good_rt.workflow.train import FinishedTraining, training_record

TestSets = Mapping[str, NDArray[np.uint8]]
ALPHAS = (0.01, 0.05)
"""The shares of ID inputs at which the refusals are checked."""
ID_TEST = "id test"
"""The ID test images among the sets that peers score."""
COMPARED_IMAGES = 64
"""ID test images that the shipped file is compared on."""
SHEET_IMAGES, SHEET_COLUMNS = 32, 8


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
        also: Generated sets to show that no score was fitted on.
        scores: Names of plug-ins whose scores are measured as well.
        peers: Whether the scores of `PEERS` are measured as well.
        roles: Which classifier is the original, the control and the trained one; None to read it
            from the training.json beside each.
        detector: The detector.onnx that is shipped, which must give what is measured; None where
            there is none yet.
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
    peers: bool = False
    roles: TrainingRoles | None = None
    detector: Path | None = None


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
        generated: Sets of guided images that some combinations are fitted with.
        config: Settings of the detectors that are not yet built.
        page: What the report says beside its figures.
        progress: Hears of the parts.

    Returns:
        What evaluation.json holds.

    Raises:
        GoodRtError: there is nothing to measure, images do not fit, the shipped file is another
            detector, or peers are asked for and pytorch-ood is missing.
    """
    id_data, out = IdData.of(id_data), Path(out)
    plugins = plugin_scores(page.scores)
    if page.peers:
        check_peers(plugins)
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
    shipped = detectors[last_name if page.shipped is None else page.shipped]
    if page.detector is not None:
        compared = id_part(id_data, "test", shipped.classifier, COMPARED_IMAGES).images
        check_same_detector(Detector(page.detector), shipped, compared)
    shape = last.classifier.config.channels, last.classifier.config.image_size
    ood = {
        name: images if isinstance(images, np.ndarray) else unlabelled(Path(images), *shape)
        for name, images in test_sets.items()
    }
    with progress.task("scoring the test sets"):
        evaluation, scores = evaluate_detectors(
            detectors,
            id_data,
            ood,
            page.shipped,
            plugins=plugins,
            peers=page.peers,
            progress=progress,
        )
    write_json(out / "evaluation.json", evaluation.to_json())
    shown = id_part(id_data, "held_out", last.classifier, SHEET_IMAGES).images
    folder = page.training or _path_of(classifiers[last_name])
    training = training_record(folder) if folder is not None else None
    evaluated = EvaluatedSets(detectors, scores, evaluation.shipped, id_data, ood)
    distance = feature_discrepancy(evaluated)
    with progress.task("scoring the generated sets"):
        generated_sets = score_generated(evaluated, [*page.also, *folders], training, distance)
    data = ReportData(
        title=page.title,
        summary=page.summary,
        evaluation=evaluation,
        score="Unified",
        near=next(iter(ood)),
        scores=scores,
        sheets=_sheets(shown, [*page.also, *folders]),
        training=_training_curve(training),
        models=page.models,
        settings={
            **page.settings,
            "score": f"{shipped.unified.kind} of {', '.join(shipped.unified.names)}",
            "alpha": str(shipped.config.alpha),
        },
        versions=versions(REPORTED_PACKAGES),
        files={"detector and figures": str(out), **page.files},
        roles=page.roles or training_roles(classifiers),
        distances=distance_figures(evaluated, generated_sets, distance),
        ordered=ordered_pictures(evaluated, generated_sets),
        mistakes=mistake_pictures(evaluated),
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
    peers: bool = False,
    progress: Progress = SILENT,
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
        peers: Whether the scores of `PEERS` are measured as well.
        progress: Hears of the peers.

    Returns:
        The evaluation, and the scores of each model by score, for plots.

    Raises:
        GoodRtError: images do not fit, or a value is not finite.
    """
    shipped = list(detectors)[-1] if shipped is None else shipped
    scores, correct, left_out = {}, {}, {}
    for name, detector in detectors.items():
        of_detector = evaluated_discrepancies(detector)
        measured, labels = measure_part(detector, of_detector, id_data, "test", peers)
        of_test = all_scores(detector, measured, plugins)
        measured_ood = {
            kind: measure_images(detector, of_detector, images, peers)
            for kind, images in ood.items()
        }
        of_ood = {
            kind: all_scores(detector, of_kind, plugins) for kind, of_kind in measured_ood.items()
        }
        scores[name] = {
            score: ScoredSets(values, {kind: of_ood[kind][score] for kind in ood})
            for score, values in of_test.items()
        }
        if peers:
            fit, sets = _peer_inputs(detector, id_data, ood, measured, measured_ood)
            of_peers = score_with_peers(fit, sets, progress=progress)
            left_out[name] = of_peers.left_out
            scores[name] |= {
                peer: ScoredSets(values[ID_TEST], {kind: values[f"ood {kind}"] for kind in ood})
                for peer, values in of_peers.scores.items()
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
    settings = {name: PEERS[name].settings for name in evaluation.scores if name in PEERS}
    return replace(evaluation, peers=settings if peers else {}, left_out=left_out), scores


def check_peers(plugins: Mapping[str, LogitScore]) -> None:
    """Checks before anything long begins that peers can be measured.

    Args:
        plugins: Scores of plug-ins by name, which stand in the same tables.

    Raises:
        GoodRtError: pytorch-ood is missing, or a plug-in has a peer's name.
    """
    pytorch_ood_detectors()
    for name in plugins:
        if name in PEERS:
            raise GoodRtError(
                f"the score {name!r} is also the name of a peer; leave one of them out"
            )


def _peer_inputs(
    detector: DetectorModule,
    id_data: IdData,
    ood: TestSets,
    measured: Measurements,
    measured_ood: Mapping[str, Measurements],
) -> tuple[PeerFit, dict[str, ScoredImages]]:
    """What peers of a detector's classifier are fitted on, as its discrepancies are, and score."""
    classifier = detector.classifier
    limit = detector.config.bank_size
    fit = PeerFit.of(
        classifier, detector.id_features, lambda: id_batches(id_data, "train", classifier, limit)
    )
    sets = {ID_TEST: _scored_images(measured, lambda: id_batches(id_data, "test", classifier))}
    for kind, images in ood.items():
        sets[f"ood {kind}"] = _scored_images(measured_ood[kind], array_batches(images))
    return fit, sets


def _scored_images(measured: Measurements, batches: ImageBatches) -> ScoredImages:
    assert measured.features is not None  # evaluate_detectors keeps them for peers
    logits, features = torch.from_numpy(measured.logits), torch.from_numpy(measured.features)
    return ScoredImages(logits, features, batches)


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
    keep_features: bool = False,
) -> Measurements:
    """Logits and discrepancies of images.

    Args:
        detector: Its classifier is run.
        discrepancies: What is measured.
        images: (N, H, W, C) uint8, or (N, C, H, W) in [-1, 1], whole or in batches.
        keep_features: Whether the features are returned too.
    """
    if isinstance(images, np.ndarray):
        images = array_batches(images)()
    return measure(detector.classifier, discrepancies, images, keep_features)


def measure_part(
    detector: DetectorModule,
    discrepancies: Sequence[Discrepancy],
    id_data: IdData,
    name: str,
    keep_features: bool = False,
) -> tuple[Measurements, NDArray[np.int64]]:
    """A part of the ID data, measured batch by batch, and its labels (N,).

    Args:
        detector: Its classifier is run.
        discrepancies: What is measured.
        id_data: In-distribution images.
        name: The part: train, held_out or test.
        keep_features: Whether the features are returned too.
    """
    config, labels = detector.classifier.config, []

    def images() -> Iterator[Tensor]:
        for batch in id_data.batches(name, config.classes, config.channels, config.image_size):
            assert batch.labels is not None  # IdData checks it
            labels.append(batch.labels)
            yield from_uint8(batch.images)

    measured = measure_images(detector, discrepancies, images(), keep_features)
    return measured, np.concatenate(labels)


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
    shown = _contact_sheet(id_images[:SHEET_IMAGES])
    sheets = [Sheet.of("In-distribution", shown, "Held-out ID images.")]
    for folder in folders:
        generated = GeneratedSet(folder)
        rows = generated.rows()
        shown = _contact_sheet(generated.images(rows[:SHEET_IMAGES]))
        title, caption = GUIDANCE_TEXTS[rows[0].guidance]
        if number := generated.settings().get("round"):
            title = f"{title}, round {number}"
        energy = np.mean([row.energy for row in rows])
        distance = np.mean([row.knn_distance for row in rows])
        caption = f"{caption} Mean energy {energy:.2f}, mean k-NN distance {distance:.3f}."
        sheets.append(Sheet.of(title, shown, caption))
    return sheets


def _contact_sheet(images: NDArray[np.uint8]) -> Image.Image:
    """Images side by side; large ones are shrunk, small ones enlarged."""
    small = thumbnails(images)
    return contact_sheet(small, SHEET_COLUMNS, scale=2 if small.shape[1] <= THUMBNAIL // 2 else 1)


def _path_of(given: object) -> Path | None:
    return Path(given) if isinstance(given, (str, Path)) else None


def _training_curve(training: FinishedTraining | None) -> TrainingCurve | None:
    """The losses of a fine-tuning; None where it had no OOD images."""
    history = training.history if training is not None else ()
    losses = [
        (step.step, step.ce, step.regulariser) for step in history if step.regulariser is not None
    ]
    return TrainingCurve(training.regulariser, losses) if training is not None and losses else None
