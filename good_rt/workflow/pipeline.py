"""From folders to results: what training, detector and evaluation each take from ID data and
generated sets.

The steps of the command line, as functions; each part of the data has one use, so that no step
judges itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from good_rt.classifier import Classifier, predict
from good_rt.classifier import Images
from good_rt.data.batches import half_rows, id_batches
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData, from_uint8, halves
from good_rt.data.labelled import LabelledImages
from good_rt.config.settings import DetectorConfig
from good_rt.detector.module import DetectorModule, Discrepancies, build_detector, measure
from good_rt.diffusion import DiffusionModel
from good_rt.errors import GoodRtError
from good_rt.evaluation.results import Evaluation, Refusal, ScoredSets, Share, evaluate_scores
from good_rt.method.conformal import allows
from good_rt.method.gate import FloatArray
from good_rt.method.scores import LOGIT_SCORES
from good_rt.method.training import TrainingImages

HELD_OUT_EVERY = 5
"""Every fifth generated image is kept from training: it chooses the state that is kept, and fits
the gate."""
TRAINING_BYTES = 4 * 2**30
"""The most memory that training images take, as floats."""
DECODED_PIXELS = 2**18
"""Of the images that go through the autoencoder at once, which takes more memory than any other
model."""
ALPHAS = (0.01, 0.05)
"""The shares of ID inputs at which `evaluate` checks the refusals."""


def check_models(model: DiffusionModel, classifier: Classifier) -> None:
    """Raises GoodRtError, saying what to do, when what the diffusion model makes is not what the
    classifier takes."""
    config = classifier.config
    channels, height, width = model.image_shape
    wanted = f"{config.image_size}x{config.image_size} pixels, {config.channels} channel{'s'[: config.channels != 1]}"
    if (height, width) != (config.image_size, config.image_size) or channels != config.channels:
        raise GoodRtError(
            f"the diffusion model makes images of {width}x{height} pixels, {channels} "
            f"channel{'s'[: channels != 1]}; "
            f"the classifier takes {wanted}: choose a diffusion model that makes those, or train "
            "one on these images"
        )
    classes = len(config.classes)
    if model.num_class_embeds is not None and model.num_class_embeds < classes:
        raise GoodRtError(
            f"the diffusion model knows {model.num_class_embeds} classes, the classifier "
            f"{classes}: choose one "
            "that was trained on the same classes, or on none"
        )


def id_part(
    id_data: IdData, name: str, classifier: Classifier, limit: int | None = None
) -> LabelledImages:
    """One part of the ID data, as this classifier takes it; with ``limit`` at most so many images,
    evenly spaced."""
    config = classifier.config
    return id_data.part(name, config.classes, config.channels, config.image_size, limit)


def generated_parts(folders: Sequence[Path], classifier: Classifier) -> tuple[Tensor, Tensor]:
    """All generated images, as those to train with and those held out: (N, C, H, W) in [-1, 1]
    each."""
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for folder in folders:
        images = generated_images(folder, classifier, guided=True)
        held_out = torch.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        if not held_out.any():
            raise GoodRtError(
                f"{folder} holds {len(images)} images; generate at least {HELD_OUT_EVERY}"
            )
        parts[0].append(images[~held_out])
        parts[1].append(images[held_out])
    return torch.cat(parts[0]), torch.cat(parts[1])


def generated_images(folder: Path, classifier: Classifier, *, guided: bool) -> Tensor:
    """A generated set's images (N, C, H, W) in [-1, 1]. Raises GoodRtError when the classifier
    takes other ones, and when one was not made as ``guided`` says: what no guidance made is ID,
    what one did is OOD."""
    generated = GeneratedSet(folder)
    rows = generated.rows()
    for row in rows:
        if (row.guidance != "none") != guided:
            takes = (
                "OOD images are guided ones"
                if guided
                else "unguided ones are of `good-rt generate --guidance none`"
            )
            raise GoodRtError(
                f"{folder}: {row.file} was generated with guidance {row.guidance!r}; {takes}"
            )
    shape = (classifier.config.image_size, classifier.config.image_size, classifier.config.channels)
    images = generated.images(rows)
    if images.shape[1:] != shape:
        raise GoodRtError(
            f"{folder}: images are {images.shape[1:]}, the classifier takes {shape}; generate anew"
        )
    return from_uint8(images)


def decoded_images(
    model: DiffusionModel,
    images: Tensor,
    batch: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
) -> Tensor | None:
    """VAE reconstructions of images (N, C, H, W) in [-1, 1]; None for a pixel model, which has no
    decoder to betray."""
    encode, decode = model.encoder, model.decoder
    if encode is None or decode is None:
        return None
    device = next(encode.parameters()).device
    batch = batch or min(64, max(1, DECODED_PIXELS // (images.shape[2] * images.shape[3])))
    done = []
    with torch.no_grad():
        for part in images.split(batch):
            # eight bits a pixel, as the generated images have
            decoded = decode(encode(part.to(device))).clamp(-1, 1)
            done.append((((decoded + 1) * 127.5).round() / 127.5 - 1).cpu())
            on_images(len(part))
    return torch.cat(done)


def training_images(
    classifier: Classifier,
    id_data: IdData,
    generated: Sequence[Path] = (),
    model: DiffusionModel | None = None,
    unguided: Sequence[Path] = (),
    decoded: int = 4096,
    on_images: Callable[[int], None] = lambda count: None,
) -> TrainingImages:
    """What `good_rt.method.training.finetune` takes: without ``generated`` sets it is the control.

    With a diffusion ``model``, the first ``decoded`` ID images are also given as its VAE
    reconstructs them. ``unguided`` sets are ID, each image of the class that the classifier sees in
    it: not every model is conditioned. Of more images than fit into `TRAINING_BYTES`, an even share
    is taken.
    """
    # first, so that a wrong path is said at once
    ood, val_ood = generated_parts(generated, classifier) if generated else (None, None)
    samples = (
        torch.cat([generated_images(folder, classifier, guided=False) for folder in unguided])
        if unguided
        else None
    )
    config = classifier.config
    limit = TRAINING_BYTES // (4 * config.channels * config.image_size**2)
    train = id_part(id_data, "train", classifier, limit)
    val, _ = halves(id_part(id_data, "held_out", classifier, limit))
    assert train.labels is not None and val.labels is not None
    images = from_uint8(train.images)
    reconstructed = (
        decoded_images(model, images[:decoded], on_images=on_images) if model is not None else None
    )
    return TrainingImages(
        images,
        torch.from_numpy(train.labels),
        from_uint8(val.images),
        torch.from_numpy(val.labels),
        reconstructed,
        ood,
        val_ood,
        samples,
        None if samples is None else predict(classifier, samples)[0].argmax(dim=1),
    )


def detector_for(
    classifier: Classifier,
    id_data: IdData,
    generated: Sequence[Path],
    config: DetectorConfig = DetectorConfig(),
    bank_size: int = 10_000,
) -> DetectorModule:
    """The detector of a classifier: bank from the training images, gate from one half of the
    held-out ones against held-out generated images of every kind, p-value from the other half.

    Without ``generated`` images the gate weighs both discrepancies alike. The ID images need no
    labels.
    """
    known, calibration = half_rows(id_data, "held_out")
    ood = [generated_parts([folder], classifier)[1] for folder in generated]
    return build_detector(
        classifier,
        id_batches(id_data, "train", classifier, bank_size),
        id_batches(id_data, "held_out", classifier, rows=known),
        id_batches(id_data, "held_out", classifier, rows=calibration),
        ood,
        config,
    )


def measure_images(detector: DetectorModule, images: NDArray[np.uint8] | Images) -> Discrepancies:
    """Logits and both discrepancies of images (N, H, W, C) uint8, or (N, C, H, W) in [-1, 1], whole
    or in batches."""
    if isinstance(images, np.ndarray):
        images = from_uint8(images)
    return measure(detector.classifier, detector.feature_bank, images, detector.config)


def measure_part(
    detector: DetectorModule, id_data: IdData, name: str
) -> tuple[Discrepancies, NDArray[np.int64]]:
    """A part of the ID data, measured batch by batch, and its labels (N,)."""
    config, labels = detector.classifier.config, []

    def images() -> Iterator[Tensor]:
        for batch in id_data.batches(name, config.classes, config.channels, config.image_size):
            assert batch.labels is not None  # IdData checks it
            labels.append(batch.labels)
            yield from_uint8(batch.images)

    return measure_images(detector, images()), np.concatenate(labels)


def all_scores(detector: DetectorModule, found: Discrepancies) -> dict[str, FloatArray]:
    """Every score of N measured images, (N,) each, higher = more OOD: the peers, the k-NN distance,
    the unified."""
    scores = {name: score(found.logits) for name, score in LOGIT_SCORES.items()}
    scores["k-NN"] = found.knn_distance
    scores["Unified"] = detector.unified(found.energy, found.knn_distance)
    return scores


def evaluate_detectors(
    detectors: Mapping[str, DetectorModule],
    id_data: IdData,
    ood: Mapping[str, NDArray[np.uint8]],
    shipped: str | None = None,
    seed: int = 0,
) -> tuple[Evaluation, dict[str, dict[str, ScoredSets]]]:
    """Every score of every detector on every OOD set, with the scores themselves for plots.

    Accuracy is each classifier's on the ID test images; the refusals are those of the detector
    ``shipped``, by default the last, at `ALPHAS` as far as its calibration images allow, and at its
    own α last.
    """
    if not detectors or not ood:
        raise GoodRtError("an evaluation needs at least one classifier and one OOD set")
    detector = list(detectors.values())[-1] if shipped is None else detectors[shipped]
    scores, correct = {}, {}
    for name, one in detectors.items():
        found, labels = measure_part(one, id_data, "test")
        of_test = all_scores(one, found)
        of_ood = {
            kind: all_scores(one, measure_images(one, images)) for kind, images in ood.items()
        }
        scores[name] = {
            score: ScoredSets(values, {kind: of_ood[kind][score] for kind in ood})
            for score, values in of_test.items()
        }
        correct[name] = Share.of(found.logits.argmax(axis=1) == labels)
    p_values, own = detector.p_values(scores[shipped or name]["Unified"].id), detector.config.alpha
    alphas = [*(a for a in ALPHAS if a != own and allows(a, len(detector.calibration))), own]
    refusals = [Refusal.at(alpha, p_values) for alpha in alphas]
    return evaluate_scores(
        scores, shipped=shipped, id_accuracy=correct, id_refusal=refusals, seed=seed
    ), scores
