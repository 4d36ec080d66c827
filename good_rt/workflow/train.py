"""The step `train`: the classifier, fine-tuned with generated images so that it tells ID from OOD.

It decodes the images, runs `good_rt.method.training.finetune`, and writes the trained classifier
and training.json.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from good_rt.classifier import Classifier, predict, save_classifier
from good_rt.config.settings import TrainConfig
from good_rt.data.batches import half_rows, id_part
from good_rt.data.generated_split import generated_images, generated_parts
from good_rt.data.id_data import IdData, thinned
from good_rt.data.pixels import from_uint8
from good_rt.diffusion import DiffusionModel
from good_rt.errors import GoodRtError
from good_rt.files import paths_of, sole_user
from good_rt.method.augmentation import Augmentation
from good_rt.method.objective import OBJECTIVES, regulariser_weight
from good_rt.method.training import (
    TrainResult,
    TrainStep,
    check_trainable,
    finetune,
    has_bfloat16,
)
from good_rt.method.training_data import TrainingImages
from good_rt.models import Models, ModelSpec
from good_rt.progress import SILENT, Progress
from good_rt.records import RecordType, drop_format
from good_rt.workflow.class_order import check_class_order

TRAINING_FILE = "training.json"


def _name_objective(values: dict[str, Any]) -> dict[str, Any]:
    """Version 2 to 3: the only objective was the logistic loss of the energy, called ``bce``, all
    images were flipped and shifted, and folders were relative to the working directory."""
    history = [
        {("regulariser" if key == "bce" else key): value for key, value in step.items()}
        for step in values["history"]
    ]
    config = {**values["config"], "objective": "logistic", "augmentation": "flip+shift"}
    augmentation = {"flip": True, "shift": True}
    folders = {
        name: [str(Path(folder).resolve()) for folder in values[name]]
        for name in ("generated", "unguided")
    }
    new = {"config": config, "augmentation": augmentation, "history": history}
    return {**values, **folders, **new}


TRAINING_RECORD = RecordType("training", "train again", (drop_format, _name_objective))
TRAINING_BYTES = 4 * 2**30
"""The most memory that training images take, as floats."""
DECODED_PIXELS = 2**18
"""Pixels that go through the autoencoder at once, which takes more memory than any other model."""
DECODED_IMAGES = 4096
"""ID images that are also given as the autoencoder reconstructs them."""


@dataclass(frozen=True)
class FinishedTraining:
    """The keys of training.json.

    Attributes:
        config: Settings of the training.
        generated: Folders of guided images, relative to the file's folder; none in the control.
        unguided: Folders of unguided images, in the same way.
        kept_step: The step whose state was kept.
        held_out_accuracy: ID accuracy on the held-out images.
        held_out_accuracy_before: That of the original classifier.
        augmentation: How the images varied.
        history: Every step.
    """

    config: Mapping[str, Any]
    generated: tuple[str, ...]
    unguided: tuple[str, ...]
    kept_step: int
    held_out_accuracy: float
    held_out_accuracy_before: float
    augmentation: Augmentation
    history: tuple[TrainStep, ...]

    @property
    def regulariser(self) -> str:
        """What the regulariser is, for reports."""
        name = str(self.config.get("objective"))
        return OBJECTIVES[name].title if name in OBJECTIVES else name


def train(
    models: Models | ModelSpec,
    id_data: IdData | Path | str,
    out: Path | str,
    generated: Sequence[Path | str] = (),
    unguided: Sequence[Path | str] = (),
    config: TrainConfig = TrainConfig(),
    images: TrainingImages | None = None,
    progress: Progress = SILENT,
) -> TrainResult:
    """Fine-tunes the classifier; writes out/classifier and out/training.json.

    Args:
        models: The classifier, and the diffusion model whose autoencoder reconstructs ID images.
        id_data: In-distribution images.
        out: Folder of the trained classifier; an interrupted run resumes there.
        generated: Sets of guided images, as OOD; without them the training is the control.
        unguided: Sets of unguided images, as ID.
        config: Settings of the training.
        images: What `training_images` returned for these arguments (or its ``control``), where
            several trainings share it.
        progress: Hears of every step.

    Returns:
        The kept classifier on the CPU, its accuracy, and the losses.

    Raises:
        GoodRtError: the classifier cannot be trained, no state kept the accuracy, or ``out`` holds
            another training.
    """
    models = models.load() if isinstance(models, ModelSpec) else models
    ood_folders = paths_of(generated)
    unguided_folders = paths_of(unguided)
    if images is None:
        images = training_images(
            models, IdData.of(id_data), ood_folders, unguided_folders, progress
        )
    if (images.ood is not None, images.unguided is not None) != (bool(generated), bool(unguided)):
        raise GoodRtError(
            "the images to train with are not those of the generated and unguided folders named"
        )
    if config.bfloat16 is None:
        config = replace(config, bfloat16=has_bfloat16(models.device))
    config = replace(config, weight=regulariser_weight(config))
    out, classifier = Path(out), models.classifier.to(models.device)
    task = progress.task("training" if generated else "training the control", config.steps)
    with sole_user(out), task as advance:
        result = finetune(classifier, images, config, out, on_step=lambda step: advance(1))
    save_classifier(result.classifier.cpu(), out / "classifier")
    record = FinishedTraining(
        config=asdict(config),
        generated=_relative(ood_folders, out),
        unguided=_relative(unguided_folders, out),
        kept_step=result.kept_step,
        held_out_accuracy=result.accuracy,
        held_out_accuracy_before=result.accuracy_before,
        augmentation=result.augmentation,
        history=result.history,
    )
    TRAINING_RECORD.write(out / TRAINING_FILE, asdict(record))
    return result


def training_images(
    models: Models,
    id_data: IdData,
    generated: Sequence[Path] = (),
    unguided: Sequence[Path] = (),
    progress: Progress = SILENT,
) -> TrainingImages:
    """The images that `good_rt.method.training.finetune` trains with.

    The first `DECODED_IMAGES` ID images are also given as the model's autoencoder reconstructs
    them. Of more images than fit into `TRAINING_BYTES`, evenly spaced ones are taken.

    Args:
        models: The classifier, and the diffusion model with the autoencoder.
        id_data: In-distribution images.
        generated: Sets of guided images, as OOD; without them the training is the control.
        unguided: Sets of unguided images, as ID, each of the class that the classifier predicts,
            since not every model is conditional.
        progress: Hears of the reconstructions.

    Raises:
        GoodRtError: the classifier cannot be trained, or a generated set does not fit.
    """
    classifier = models.classifier
    check_trainable(classifier)  # before the work of decoding
    classifier.to(models.device)
    check_class_order(id_data, classifier)
    ood, val_ood = generated_parts(generated, classifier) if generated else (None, None)
    samples = [generated_images(folder, classifier, guided=False) for folder in unguided]
    config = classifier.config
    limit = TRAINING_BYTES // (4 * config.channels * config.image_size**2)
    known = id_part(id_data, "train", classifier, limit)
    validated, _ = half_rows(id_data, "held_out")  # the other half calibrates
    validation = id_part(id_data, "held_out", classifier, rows=thinned(validated, limit))
    assert known.labels is not None and validation.labels is not None
    pixels = from_uint8(known.images)
    diffusion, decoded = models.diffusion.to(models.device), None
    if diffusion.decoder is not None:
        with progress.task("reconstructing ID images", len(pixels[:DECODED_IMAGES])) as advance:
            decoded = decoded_images(diffusion, pixels[:DECODED_IMAGES], on_images=advance)
    sampled = torch.cat(samples) if samples else None
    return TrainingImages(
        images=pixels,
        labels=torch.from_numpy(known.labels),
        val_images=from_uint8(validation.images),
        val_labels=torch.from_numpy(validation.labels),
        decoded=decoded,
        ood=ood,
        val_ood=val_ood,
        unguided=sampled,
        unguided_labels=None if sampled is None else predict(classifier, sampled)[0].argmax(dim=1),
    )


def with_generated(
    images: TrainingImages, generated: Sequence[Path], classifier: Classifier
) -> TrainingImages:
    """The same ID images and unguided samples, with other guided images as OOD.

    Args:
        images: What `training_images` returned.
        generated: Sets of guided images.
        classifier: Decides the shape.

    Raises:
        GoodRtError: a generated set does not fit.
    """
    ood, val_ood = generated_parts(generated, classifier)
    return replace(images, ood=ood, val_ood=val_ood)


def decoded_images(
    model: DiffusionModel,
    images: Tensor,
    batch: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
) -> Tensor | None:
    """Reconstructions (N, C, H, W) in [-1, 1] by the model's autoencoder, rounded to 8 bits a
    value.

    Args:
        model: The diffusion model.
        images: (N, C, H, W) in [-1, 1].
        batch: Images that run at once; None for as many as `DECODED_PIXELS` hold, at most 64.
        on_images: Called after each batch with its size.

    Returns:
        The reconstructions, on the CPU; None for a pixel model, which has no autoencoder.
    """
    encode, decode = model.encoder, model.decoder
    if encode is None or decode is None:
        return None
    device = next(encode.parameters()).device
    batch = batch or min(64, max(1, DECODED_PIXELS // (images.shape[2] * images.shape[3])))
    done = []
    with torch.no_grad():
        for part in images.split(batch):
            decoded = decode(encode(part.to(device))).clamp(-1, 1)
            done.append((((decoded + 1) * 127.5).round() / 127.5 - 1).cpu())
            on_images(len(part))
    return torch.cat(done)


def _relative(folders: Sequence[Path], start: Path) -> tuple[str, ...]:
    """Folders as seen from another, so that a job can be moved as a whole."""
    return tuple(os.path.relpath(folder.resolve(), start.resolve()) for folder in folders)


def training_record(classifier: Path) -> FinishedTraining | None:
    """training.json of a classifier that `train` wrote, with absolute folders; None for any
    other."""
    # a classifier of the user's code is named MODULE:ATTR@FOLDER
    _, _, saved = str(classifier).partition("@")
    if not classifier.exists() and not saved:
        return None
    path = (classifier if classifier.exists() else Path(saved)).parent / TRAINING_FILE
    if not path.exists():
        return None
    record = TRAINING_RECORD.read_as(FinishedTraining, path)
    generated, unguided = (
        tuple(str((path.parent / folder).resolve()) for folder in folders)
        for folders in (record.generated, record.unguided)
    )
    return replace(record, generated=generated, unguided=unguided)
