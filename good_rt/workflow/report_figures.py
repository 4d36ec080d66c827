"""What the report shows beside the figures: how far each set lies from the training data, generated
images in the order of the score, and the detector's mistakes.

`good_rt.workflow.evaluate` has scored the test sets; here the generated sets are scored as well,
and the few images that are shown are read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from good_rt.classifier import predict
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.generated_split import HELD_OUT_EVERY
from good_rt.data.id_data import IdData, spaced, thinned
from good_rt.data.pixels import from_uint8
from good_rt.detector.module import DetectorModule, measure
from good_rt.evaluation.feature_map import DistanceFigures, SetDistances
from good_rt.evaluation.picture_rows import PictureLabel, PictureRows
from good_rt.evaluation.results import ScoredSets
from good_rt.evaluation.training_gain import TrainingRoles
from good_rt.method.conformal import largest_accepted
from good_rt.method.discrepancy import (
    DISCREPANCIES,
    TITLES,
    Discrepancy,
    DiscrepancyConfig,
    fit_discrepancy,
)
from good_rt.method.discrepancy.energy import Energy
from good_rt.method.measurements import Measurements
from good_rt.method.scores import LOGIT_SCORES
from good_rt.workflow.peers import array_batches
from good_rt.workflow.train import FinishedTraining, training_record

ScoreArray = NDArray[np.floating[Any]]
UNIFIED_ROW, ENERGY_ROW = "Unified", "Energy"
"""Names of two scores of an evaluation."""
GENERATED_IMAGES = 2000
"""Images of a generated set that are scored at most, evenly spaced."""
ORDERED_IMAGES, ORDERED_COLUMNS, LABEL_EVERY = 32, 16, 4
MISTAKES = 12
"""Mistakes that are shown of each set."""
GUIDANCE_TEXTS = {
    "none": ("Unguided", "Samples of the diffusion model without guidance."),
    "img": ("Image level", "Guided to a low log-partition of the classifier."),
    "feat": ("Feature level", "Guided away from the features of ID images."),
    "both": ("Both levels", "Guided by the sum of both."),
}
"""Title and caption of a generated set by its kind of guidance."""


@dataclass(frozen=True)
class EvaluatedSets:
    """What `good_rt.workflow.evaluate` has measured.

    Attributes:
        detectors: Detectors by model.
        scores: Model -> score -> scores of the ID test images and OOD sets.
        shipped: The model whose detector is shipped.
        id_data: In-distribution images.
        ood: OOD images by name, (N, H, W, C) uint8.
    """

    detectors: Mapping[str, DetectorModule]
    scores: Mapping[str, Mapping[str, ScoredSets]]
    shipped: str
    id_data: IdData
    ood: Mapping[str, NDArray[np.uint8]]

    @property
    def detector(self) -> DetectorModule:
        """The shipped detector."""
        return self.detectors[self.shipped]

    @property
    def unified(self) -> ScoredSets:
        """Its scores."""
        return self.scores[self.shipped][UNIFIED_ROW]

    @property
    def compared(self) -> tuple[str, ...]:
        """The first model and the shipped one, which are shown beside each other."""
        return tuple(dict.fromkeys((next(iter(self.detectors)), self.shipped)))

    def is_refused(self, scores: ScoreArray) -> NDArray[np.bool_]:
        """Which of N scores the shipped detector refuses, (N,)."""
        return self.detector.p_values(scores) <= self.detector.config.alpha


@dataclass(frozen=True)
class ScoredGenerated:
    """The images of a generated set, scored.

    Attributes:
        title: Its name in the report.
        images: (N, H, W, C) uint8.
        scores: (N,) unified scores by model.
        plane: (N, 2) energy and feature distance by the shipped classifier.
        held_out: Whether only images are here that no training has seen.
    """

    title: str
    images: NDArray[np.uint8]
    scores: Mapping[str, ScoreArray]
    plane: ScoreArray
    held_out: bool


def training_roles(classifiers: Mapping[str, object]) -> TrainingRoles | None:
    """Which classifier is the original, the control and the trained one, by the training.json
    beside their folders; None without an original and a trained one.

    Args:
        classifiers: Paths or specs by name; anything else is passed over.
    """
    records = {
        name: training_record(Path(given))
        for name, given in classifiers.items()
        if isinstance(given, (str, Path))
    }
    original = [name for name, record in records.items() if record is None]
    trained = [name for name, record in records.items() if record and record.generated]
    control = [name for name, record in records.items() if record and not record.generated]
    if not original or not trained:
        return None
    return TrainingRoles(original[0], trained[-1], control[-1] if control else None)


def feature_discrepancy(evaluated: EvaluatedSets) -> Discrepancy | None:
    """The discrepancy of features that the map shows: the first of the shipped score, else the
    first that was evaluated; None where none could be fitted.

    Args:
        evaluated: The evaluation.
    """
    detector, rows = evaluated.detector, evaluated.scores[evaluated.shipped]
    of_score = {one.name: one for one in detector.discrepancies}
    for name in (*of_score, *DISCREPANCIES):
        if name == Energy.name or TITLES[name] not in rows:
            continue
        if name in of_score:
            return of_score[name]
        parameters = DiscrepancyConfig(detector.config.k, detector.config.temperature)
        return fit_discrepancy(name, detector.id_features, parameters)
    return None


def score_generated(
    evaluated: EvaluatedSets,
    folders: Sequence[Path],
    training: FinishedTraining | None,
    distance: Discrepancy | None,
) -> list[ScoredGenerated]:
    """The generated sets, scored by the compared models.

    Of a set that a classifier was trained with as OOD, only the held-out images are taken: an image
    that was trained with says nothing of others.

    Args:
        evaluated: The evaluation.
        folders: The generated sets.
        training: The training of the trained classifier, if there is one.
        distance: What `feature_discrepancy` returned.
    """
    seen = {Path(folder) for folder in (training.generated if training else ())}
    scored: list[ScoredGenerated] = []
    for folder in folders:
        generated = GeneratedSet(folder)
        rows = generated.rows()
        held_out = folder.resolve() in seen
        if held_out:
            rows = rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        kept = thinned(range(len(rows)), GENERATED_IMAGES)
        images = generated.images([rows[place] for place in kept])
        title = GUIDANCE_TEXTS[rows[0].guidance][0].lower()
        if title in {one.title for one in scored}:
            job_round = generated.settings().get("round")
            title = (
                f"{title} ({folder.name})" if job_round is None else f"{title}, round {job_round}"
            )
        measured = {
            model: _measured(
                evaluated.detectors[model], distance if model == evaluated.shipped else None, images
            )
            for model in evaluated.compared
        }
        scores = {
            model: evaluated.detectors[model].scores(of_model)
            for model, of_model in measured.items()
        }
        plane = _plane(measured[evaluated.shipped], distance)
        scored.append(ScoredGenerated(title, images, scores, plane, held_out))
    return scored


def _measured(
    detector: DetectorModule, distance: Discrepancy | None, images: NDArray[np.uint8]
) -> Measurements:
    """The discrepancies of the detector's score, and ``distance``, in one pass of the network."""
    wanted = {one.name: one for one in detector.discrepancies}
    if distance is not None:
        wanted.setdefault(distance.name, distance)
    return measure(detector.classifier, list(wanted.values()), array_batches(images)())


def _plane(measured: Measurements, distance: Discrepancy | None) -> ScoreArray:
    """(N, 2): energy and feature distance; zeros without a distance."""
    if distance is None:
        return np.zeros((len(measured.logits), 2))
    energy = LOGIT_SCORES[ENERGY_ROW](measured.logits)
    return np.stack([energy, measured.discrepancies[distance.name]], axis=1)


def distance_figures(
    evaluated: EvaluatedSets,
    generated: Sequence[ScoredGenerated],
    distance: Discrepancy | None,
) -> DistanceFigures | None:
    """Distances of the ID test images, the generated sets and the OOD test sets; None without a
    discrepancy of features.

    Args:
        evaluated: The evaluation.
        generated: The generated sets.
        distance: What `feature_discrepancy` returned.
    """
    if distance is None:
        return None
    title = TITLES[distance.name]
    rows = evaluated.scores[evaluated.shipped]

    def refused(scores: ScoreArray) -> float:
        return float(evaluated.is_refused(scores).mean())

    unified = {model: evaluated.scores[model][UNIFIED_ROW] for model in evaluated.compared}
    of_id = {model: sets.id for model, sets in unified.items()}
    plane = np.stack([rows[ENERGY_ROW].id, rows[title].id], axis=1)
    sets = [SetDistances("ID test images", "id", of_id, plane, refused(evaluated.unified.id))]
    for one in generated:
        share = refused(one.scores[evaluated.shipped])
        sets.append(SetDistances(one.title, "generated", one.scores, one.plane, share))
    for name in evaluated.ood:
        of_set = {model: sets.ood[name] for model, sets in unified.items()}
        plane = np.stack([rows[ENERGY_ROW].ood[name], rows[title].ood[name]], axis=1)
        share = refused(evaluated.unified.ood[name])
        sets.append(SetDistances(name, "ood", of_set, plane, share))
    thresholds = {}
    for model in evaluated.compared:
        detector = evaluated.detectors[model]
        calibration = detector.calibration.double().cpu().numpy()
        thresholds[model] = largest_accepted(calibration, detector.config.alpha)
    return DistanceFigures(
        sets,
        thresholds,
        (ENERGY_ROW, f"{title} distance"),
        UNIFIED_ROW,
        evaluated.detector.config.alpha,
        [one.title for one in generated if one.held_out],
    )


def ordered_pictures(
    evaluated: EvaluatedSets, generated: Sequence[ScoredGenerated]
) -> list[PictureRows]:
    """The images of each generated set at even steps of their order by the shipped score.

    Args:
        evaluated: The evaluation.
        generated: The generated sets.
    """
    pictures = []
    for one in generated:
        scores = one.scores[evaluated.shipped]
        order = np.argsort(scores, kind="stable")
        shown = order[spaced(len(order), min(ORDERED_IMAGES, len(order)))]
        labelled = scores[shown[::LABEL_EVERY]]
        labels = _labels(evaluated, [(score_text(score),) for score in labelled], labelled)
        kept = " held-out" if one.held_out else ""
        ends = " to ".join(score_text(scores[place]) for place in (shown[0], shown[-1]))
        caption = f"{len(shown)} of {len(scores):,}{kept} images, scores {ends}"
        images = one.images[shown]
        pictures.append(
            PictureRows(one.title, caption, images, labels, ORDERED_COLUMNS, LABEL_EVERY)
        )
    return pictures


def mistake_pictures(evaluated: EvaluatedSets) -> list[PictureRows]:
    """The ID test images that are refused, highest score first, and the images of each OOD set that
    are accepted, lowest score first.

    Args:
        evaluated: The evaluation.
    """
    pictures = [_refused_pictures(evaluated)]
    classes = evaluated.detector.classifier.config.classes
    for name, images in evaluated.ood.items():
        scores = evaluated.unified.ood[name]
        order = np.argsort(scores, kind="stable")
        accepted = order[~evaluated.is_refused(scores[order])]
        shown = accepted[:MISTAKES]
        lines = [(classes[label],) for label in _predicted(evaluated.detector, images[shown])]
        labels = _labels(evaluated, lines, scores[shown])
        caption = f"{len(accepted):,} of {len(images):,} images accepted"
        pictures.append(PictureRows(name, caption, images[shown], labels, MISTAKES))
    return pictures


def _refused_pictures(evaluated: EvaluatedSets) -> PictureRows:
    config, scores = evaluated.detector.classifier.config, evaluated.unified.id
    order = np.argsort(-scores, kind="stable")
    refused = order[evaluated.is_refused(scores[order])]
    shown = refused[:MISTAKES]
    rows = sorted(evaluated.id_data.rows("test"))  # scores are in this order
    part = evaluated.id_data.part(
        "test",
        config.classes,
        config.channels,
        config.image_size,
        rows=[rows[place] for place in shown],
    )
    assert part.labels is not None  # IdData checks it
    lines = [
        (config.classes[label],) + (() if label == guess else (f"→ {config.classes[guess]}",))
        for label, guess in zip(
            part.labels, _predicted(evaluated.detector, part.images), strict=True
        )
    ]
    labels = _labels(evaluated, lines, scores[shown])
    caption = f"{len(refused):,} of {len(scores):,} images refused"
    return PictureRows("ID test images", caption, part.images, labels, MISTAKES)


def _predicted(detector: DetectorModule, images: NDArray[np.uint8]) -> list[int]:
    """The class that the classifier predicts of each image."""
    if not len(images):
        return []
    return predict(detector.classifier, from_uint8(images))[0].argmax(dim=1).tolist()


def _labels(
    evaluated: EvaluatedSets, lines: Sequence[tuple[str, ...]], scores: ScoreArray
) -> list[PictureLabel]:
    """Labels of images: their lines, and the p-value below."""
    p_values, refused = evaluated.detector.p_values(scores), evaluated.is_refused(scores)
    return [
        PictureLabel((*of_image, p_text(p)), bool(is_refused))
        for of_image, p, is_refused in zip(lines, p_values, refused, strict=True)
    ]


def p_text(p_value: float) -> str:
    """A p-value with two digits."""
    return f"p {p_value:.2g}" if p_value < 0.1 else f"p {p_value:.2f}"


def score_text(score: float) -> str:
    """A score with one decimal and a true minus sign."""
    return f"{score:.1f}".replace("-", "−")
