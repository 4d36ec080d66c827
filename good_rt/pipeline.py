"""From folders to results: what training, detector and evaluation each take from ID data and generated sets.

The steps of the command line, as functions; each part of the data has one use, so that no step judges itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from good_rt.classifier import Classifier
from good_rt.data import IdData, from_uint8, halves, spread
from good_rt.dataset import GeneratedSet
from good_rt.detection import DetectorConfig, DetectorModule, Discrepancies, build_detector, measure
from good_rt.diffusion import DiffusionModel
from good_rt.errors import GoodRtError
from good_rt.evaluation import Evaluation, Refusal, ScoredSets, Share, evaluate_scores
from good_rt.labelled import LabelledImages
from good_rt.scores import LOGIT_SCORES
from good_rt.training import TrainingImages
from good_rt.unified import FloatArray

HELD_OUT_EVERY = 5
"""Every fifth generated image is kept from training: it chooses the state that is kept, and fits the gate."""
ALPHAS = (0.01, 0.05)
"""The shares of ID inputs at which `evaluate` checks the refusals."""


def id_part(id_data: IdData, name: str, classifier: Classifier) -> LabelledImages:
    """One part of the ID data, as this classifier takes it."""
    config = classifier.config
    return id_data.part(name, len(config.classes), config.channels, config.image_size)


def generated_parts(folders: Sequence[Path], classifier: Classifier) -> tuple[Tensor, Tensor]:
    """All generated images, as those to train with and those held out: (N, C, H, W) in [-1, 1] each."""
    shape = (classifier.config.image_size, classifier.config.image_size, classifier.config.channels)
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for folder in folders:
        images = GeneratedSet(folder).images()
        if images.shape[1:] != shape:
            raise GoodRtError(f"{folder}: images are {images.shape[1:]}, the classifier takes {shape}; generate anew")
        held_out = np.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        if not held_out.any():
            raise GoodRtError(f"{folder} holds {len(images)} images; generate at least {HELD_OUT_EVERY}")
        parts[0].append(from_uint8(images[~held_out]))
        parts[1].append(from_uint8(images[held_out]))
    return torch.cat(parts[0]), torch.cat(parts[1])


def decoded_images(
    model: DiffusionModel, images: Tensor, batch: int = 64, on_images: Callable[[int], None] = lambda count: None
) -> Tensor | None:
    """VAE reconstructions of images (N, C, H, W) in [-1, 1]; None for a pixel model, which has no decoder to betray."""
    encode, decode = model.encoder, model.decoder
    if encode is None or decode is None:
        return None
    done = []
    with torch.no_grad():
        for part in images.split(batch):
            # eight bits a pixel, as the generated images have
            done.append((((decode(encode(part)).clamp(-1, 1) + 1) * 127.5).round()) / 127.5 - 1)
            on_images(len(part))
    return torch.cat(done)


def training_images(
    classifier: Classifier,
    id_data: IdData,
    generated: Sequence[Path] = (),
    model: DiffusionModel | None = None,
    decoded: int = 4096,
    on_images: Callable[[int], None] = lambda count: None,
) -> TrainingImages:
    """What `good_rt.training.finetune` takes: without ``generated`` sets it is the control.

    With a diffusion ``model``, the first ``decoded`` ID images are also given as its VAE reconstructs them.
    """
    train = id_part(id_data, "train", classifier)
    val, _ = halves(id_part(id_data, "held_out", classifier))
    assert train.labels is not None and val.labels is not None
    images = from_uint8(train.images)
    reconstructed = decoded_images(model, images[:decoded], on_images=on_images) if model is not None else None
    ood, val_ood = generated_parts(generated, classifier) if generated else (None, None)
    return TrainingImages(
        images,
        torch.from_numpy(train.labels),
        from_uint8(val.images),
        torch.from_numpy(val.labels),
        reconstructed,
        ood,
        val_ood,
    )


def detector_for(
    classifier: Classifier,
    id_data: IdData,
    generated: Sequence[Path],
    config: DetectorConfig = DetectorConfig(),
    bank_size: int = 10_000,
) -> DetectorModule:
    """The detector of a classifier: bank from the training images, gate from one half of the held-out ones against
    held-out generated images of every kind, p-value from the other half."""
    if not generated:
        raise GoodRtError("the gate needs generated images of at least one kind; make them with `good-rt generate`")
    bank = spread(id_part(id_data, "train", classifier), bank_size)
    known, calibration = halves(id_part(id_data, "held_out", classifier))
    _, ood = generated_parts(generated, classifier)
    return build_detector(
        classifier,
        from_uint8(bank.images),
        from_uint8(known.images),
        from_uint8(calibration.images),
        [ood],
        config,
    )


def measure_images(detector: DetectorModule, images: NDArray[np.uint8]) -> Discrepancies:
    """Logits and both discrepancies of images (N, H, W, C)."""
    return measure(detector.classifier, detector.feature_bank, from_uint8(images), detector.config)


def all_scores(detector: DetectorModule, found: Discrepancies) -> dict[str, FloatArray]:
    """Every score of N measured images, (N,) each, higher = more OOD: the peers, the k-NN distance, the unified."""
    scores = {name: score(found.logits) for name, score in LOGIT_SCORES.items()}
    scores["k-NN"] = found.knn_distance
    scores["Unified"] = detector.unified(found.energy, found.knn_distance)
    return scores


def evaluate_detectors(
    detectors: Mapping[str, DetectorModule],
    id_data: IdData,
    ood: Mapping[str, NDArray[np.uint8]],
    seed: int = 0,
) -> tuple[Evaluation, dict[str, dict[str, ScoredSets]]]:
    """Every score of every detector on every OOD set, with the scores themselves for plots.

    Accuracy is each classifier's on the ID test images; the refusals are those of the last detector.
    """
    if not detectors or not ood:
        raise GoodRtError("an evaluation needs at least one classifier and one OOD set")
    scores, correct, refusals = {}, {}, []
    for name, detector in detectors.items():
        test = id_part(id_data, "test", detector.classifier)
        assert test.labels is not None  # id_part checks it
        found = measure_images(detector, test.images)
        of_test = all_scores(detector, found)
        of_ood = {kind: all_scores(detector, measure_images(detector, images)) for kind, images in ood.items()}
        scores[name] = {
            score: ScoredSets(values, {kind: of_ood[kind][score] for kind in ood}) for score, values in of_test.items()
        }
        correct[name] = Share.of(found.logits.argmax(axis=1) == test.labels)
        p_values = detector.p_values(scores[name]["Unified"].id)
        refusals = [Refusal.at(alpha, p_values) for alpha in ALPHAS]
    return evaluate_scores(scores, id_accuracy=correct, id_refusal=refusals, seed=seed), scores
