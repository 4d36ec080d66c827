"""Every architecture with every kind of classifier, end to end: guided images, fine-tuning,
detector.onnx, scores.

What becomes of each step is recorded as a property of the test; `benchmarks/models.py` makes a
table of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import BUILDERS, load
from id_data import write_id_data

from good_rt.classifier import Classifier, predict
from good_rt.config.settings import (
    DetectorConfig,
    GenerationConfig,
    GuidanceConfig,
    SamplerConfig,
    TrainConfig,
)
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.runtime import Detector
from good_rt.environment import CPU
from good_rt.errors import GoodRtError
from good_rt.evaluation.metrics import detection_metrics
from good_rt.export.detector import export_detector
from good_rt.method.training import finetune
from good_rt.models import Models
from good_rt.workflow.detector import detector_for
from good_rt.workflow.evaluate import evaluate_detectors
from good_rt.workflow.generate import fill
from good_rt.workflow.generator import generation_record, make_generator
from good_rt.workflow.train import training_images

PARTS = {"train": 40, "held_out": 60, "test": 24}
NEAR = assets.load_images("near").images[:12]
WORKS = "works"
REFUSED = {"torchscript": {"train"}, "onnx": {"train"}, "opaque onnx": {"generate", "train"}}
"""Kind of classifier -> the steps that are not for it: files with frozen weights, and one without a
gradient."""


@pytest.fixture(scope="module")
def few_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ID data folder of a few real images."""
    return write_id_data(tmp_path_factory.mktemp("few"), PARTS)


def refusal(work: Callable[[], object]) -> str:
    """How the work is refused: in one line that says what to do instead."""
    with pytest.raises(GoodRtError, match=r"; (train|guide) ") as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(classifier: Classifier) -> Classifier:
    """The same with the demo's classes: an untrained network without names is as good as chance,
    and refused."""
    config = replace(classifier.config, classes=assets.CLASSES)
    return Classifier(classifier.network, config, classifier.fingerprint).eval()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", BUILDERS)
def test_end_to_end(
    folders: Callable[[str], Path], architecture: str, every_classifier: tuple[str, Classifier],
    network_of_files: Classifier, few_dir: Path, make_config: Callable[..., GenerationConfig],
    record_property: Callable[[str, object], None], tmp_path: Path,
) -> None:  # fmt: skip
    (kind, classifier), network_of_files = every_classifier, named(network_of_files)
    classifier = named(classifier)
    refused = REFUSED.get(kind, set())
    record_property("architecture", architecture)
    record_property("classifier", kind)
    models = Models(load(folders, architecture), classifier, CPU)
    data, indices = IdData(few_dir), list(range(10))

    scale = 1.0 if models.diffusion.conditioner is None else 2.5
    config = replace(
        make_config(10, twins=False),
        guidance=GuidanceConfig(mu=0.2, rho=0.2),
        sampler=SamplerConfig(steps=2, cfg=scale),
    )
    generator = make_generator(models, data, config)
    guided = WORKS
    if "generate" in refused:
        guided = refusal(lambda: generator.images(config, indices))
        # as the refusal says to
        generator = make_generator(replace(models, classifier=network_of_files), data, config)
    record = generation_record(models, config, generator.gradients)
    ood = fill(generator, config, tmp_path / "ood", record)
    unguided = generator.images(config, indices, guided=False).astype(int)
    assert (np.abs(ood.images() - unguided).max(axis=(1, 2, 3)) > 2).all()
    record_property("generate", guided)

    trainable = Models(models.diffusion, network_of_files, CPU) if "train" in refused else models
    images = training_images(trainable, data, [ood.folder])
    train = TrainConfig(steps=2, id_batch=8, ood_batch=4, evaluate_every=2, max_accuracy_drop=1.0)
    trained, training = classifier, WORKS
    if "train" not in refused:
        trained = finetune(classifier, images, train).classifier
        assert not torch.allclose(
            predict(trained, images.val_images)[0], predict(classifier, images.val_images)[0]
        )
    else:
        training = refusal(lambda: training_images(models, data, [ood.folder]))
        assert refusal(lambda: finetune(classifier, images, train)) == training
    record_property("train", training)

    module = detector_for(trained, data, [ood.folder], DetectorConfig(k=3, alpha=0.1))
    pixels = assets.load_images("test").images[: PARTS["test"]]
    parity = export_detector(
        module, tmp_path / "detector.onnx", (from_uint8(pixels) + 1) / 2, training="none"
    )
    assert max(parity.max_relative.values()) < 1e-4
    detector = Detector(tmp_path / "detector.onnx")
    scores = [detector.score(part).score for part in (pixels, NEAR)]
    evaluation, _ = evaluate_detectors({"trained": module}, data, {"near": NEAR})
    row = next(row for row in evaluation.rows if (row.score, row.ood_set) == ("Unified", "near"))
    assert detection_metrics(*scores).auroc == pytest.approx(row.metrics.auroc, abs=0.01)
    record_property("detector", WORKS)
