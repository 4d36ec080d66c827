"""The step `build_detector`: discrepancies, score and calibration of a classifier, written as
detector.onnx.

The discrepancies are fitted on training images. One half of the held-out images standardises and
combines them, some combinations also with held-out generated images; the other half calibrates the
p-value, so that no part judges itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from good_rt.classifier import Classifier, IdFeatures, load_classifier
from good_rt.config.settings import DetectorConfig
from good_rt.data.batches import half_rows, id_batches, id_features
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.generated_split import generated_parts
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule, build_module, measure
from good_rt.detector.runtime import Detector, DetectorInfo, ListedScore
from good_rt.errors import GoodRtError
from good_rt.export.detector import DetectorParity, export_detector
from good_rt.export.parity import RELATIVE
from good_rt.files import demo_path, paths_of
from good_rt.method.combination import FITTED_ON_GENERATED
from good_rt.models import check_classifier_path
from good_rt.progress import SILENT, Progress
from good_rt.workflow.class_order import check_class_order
from good_rt.workflow.train import training_record

DETECTOR_PARITY_IMAGES = 512
"""Held-out images that detector.onnx is compared with PyTorch on."""
WITH_GENERATED, WITHOUT_TRAINING = "generated OOD images", "none"
"""What a detector file says that its classifier was fine-tuned with."""


@dataclass(frozen=True)
class BuiltDetector:
    """A detector and its file.

    Attributes:
        path: The detector.onnx.
        module: The module that it was exported from.
        parity: How far both differ.
    """

    path: Path
    module: DetectorModule
    parity: DetectorParity


def build_detector(
    classifier: Classifier | Path | str,
    id_data: IdData | Path | str,
    out: Path | str,
    generated: Sequence[Path | str] = (),
    config: DetectorConfig = DetectorConfig(),
    *,
    module: DetectorModule | None = None,
    training: str | None = None,
    progress: Progress = SILENT,
) -> BuiltDetector:
    """Builds the detector of a classifier and writes it as the ONNX file ``out``.

    The file is compared with PyTorch on held-out images before it gets its name.

    Args:
        classifier: The classifier, its folder, or a spec.
        id_data: In-distribution images; without labels, their classes are those that the
            classifier predicts.
        out: The file to write.
        generated: Sets of guided images; the combinations logistic, gate and kl are fitted with
            them.
        config: Settings of the detector.
        module: What `detector_for` returned for these arguments, where it is already there.
        training: What the file says that the classifier was fine-tuned with; by default read from
            the training.json beside its folder.
        progress: Hears of the parts.

    Returns:
        The file, its module, and how far they differ.

    Raises:
        GoodRtError: the images do not fit, are too few to calibrate alpha, or do not suffice for a
            discrepancy or the combination.
        ParityError: the file does not compute what PyTorch computes; nothing is written.
    """
    folders, id_data = paths_of(generated), IdData.of(id_data)
    if training is None:
        path = None if isinstance(classifier, Classifier) else Path(classifier)
        training = training_of(path)
    if module is None:
        network = open_classifier(classifier, folders)
        with progress.task("building the detector"):
            module = detector_for(network, id_data, folders, config)
    known, _ = half_rows(id_data, "held_out")
    batches = id_batches(
        id_data, "held_out", module.classifier, rows=known[:DETECTOR_PARITY_IMAGES]
    )
    images = (torch.cat(list(batches)) + 1) / 2
    with progress.task("exporting the detector"):
        parity = export_detector(module, Path(out), images, training=training)
    return BuiltDetector(Path(out), module, parity)


def config_of(info: DetectorInfo) -> DetectorConfig:
    """The settings that a detector file was built with, as far as its version tells them.

    Args:
        info: Its metadata.
    """
    score = ListedScore.of(info)
    listed, settings = score.discrepancies.values(), dict[str, Any]()
    for name in ("k", "bank_size", "temperature"):
        values = [getattr(one, name) for one in listed]
        if any(values):
            settings[name] = next(filter(None, values))
    names: Any = info.discrepancies  # which are known, or the file would not be read
    return DetectorConfig(names, score.combination["name"], alpha=info.alpha, **settings)


def check_same_detector(
    detector: Detector, module: DetectorModule, images: NDArray[np.uint8]
) -> None:
    """Checks that a detector file is the detector that a module computes.

    Args:
        detector: The file.
        module: The detector in PyTorch.
        images: (N, H, W, C) uint8 to compare both on.

    Raises:
        GoodRtError: settings, or p-values of an image, differ.
    """
    info, config = detector.info, module.config
    for name, found, wanted in (
        ("classes", info.classes, module.classifier.config.classes),
        ("discrepancies", info.discrepancies, tuple(config.discrepancies)),
        ("combination", info.score["combination"]["name"], config.combination),
        ("alpha", info.alpha, config.alpha),
        ("calibration_size", info.calibration_size, len(module.calibration)),
    ):
        if found != wanted:
            raise GoodRtError(
                f"{detector.path} has {name} {found}, but {wanted} would be measured; measure the "
                "classifier, images and settings that it was built from, or build it again"
            )
    measured = measure(module.classifier, module.discrepancies, from_uint8(images))
    differences = detector.score(images).p_value - module.p_values(module.scores(measured))
    ranks = float(np.abs(differences).max()) * (info.calibration_size + 1)
    if ranks > 1.5 + RELATIVE * info.calibration_size:
        raise GoodRtError(
            f"{detector.path} gives other p-values than what would be measured; measure the "
            "classifier, images and settings that it was built from, or build it again"
        )


def training_of(classifier: Path | None) -> str:
    """What the classifier of this path was fine-tuned with, by the training.json beside it."""
    training = training_record(classifier) if classifier is not None else None
    return WITH_GENERATED if training is not None and training.generated else WITHOUT_TRAINING


def detector_for(
    classifier: Classifier,
    id_data: IdData,
    generated: Sequence[Path] = (),
    config: DetectorConfig = DetectorConfig(),
    features: IdFeatures | None = None,
) -> DetectorModule:
    """The detector of a classifier as a PyTorch module.

    Args:
        classifier: Images to logits and features.
        id_data: In-distribution images. Their classes, or without labels those that the classifier
            predicts, are the classes of the Mahalanobis distances.
        generated: Sets of guided images; some combinations are fitted with them.
        config: Settings of the detector.
        features: The features of training images, where they are already there.
    """
    check_class_order(id_data, classifier)
    known, calibration = half_rows(id_data, "held_out")
    # read in any case, so that a damaged set is refused whatever the combination
    ood = [generated_parts([folder], classifier)[1] for folder in generated]
    if config.combination not in FITTED_ON_GENERATED:
        ood = []
    if features is None:
        features = id_features(id_data, classifier, config.bank_size)
    return build_module(
        classifier,
        features,
        id_batches(id_data, "held_out", classifier, rows=known),
        id_batches(id_data, "held_out", classifier, rows=calibration),
        ood,
        config,
    )


def open_classifier(
    classifier: Classifier | Path | str,
    generated: Sequence[Path] = (),
    device: torch.device | None = None,
) -> Classifier:
    """A classifier for the images of generated sets; it resizes them where its network has another
    size.

    Args:
        classifier: The classifier, its folder, or a spec.
        generated: Sets of images, of which the first decides the shape; empty for the network's
            own.
        device: Where the classifier goes; None leaves it where it is.

    Raises:
        GoodRtError: the classifier cannot be read, or does not take such images.
    """
    if not isinstance(classifier, Classifier):
        path = demo_path(classifier, assets.CLASSIFIER)
        check_classifier_path(path)
        classifier = load_classifier(path)
    if generated:
        classifier = classifier.fitted(GeneratedSet(generated[0]).image_shape)
    return classifier if device is None else classifier.to(device)
