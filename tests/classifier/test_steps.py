"""Every source on the data's way: bank, guided sampling, fine-tuning, detector.onnx, gradient
engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from good_rt.classifier import (
    Classifier,
    IdFeatures,
    load_classifier,
    predict,
    save_classifier,
)
from good_rt.config.settings import DetectorConfig, GuidanceConfig, TrainConfig
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import build_module
from good_rt.detector.runtime import Detector
from good_rt.engines.onnxruntime import OnnxRuntimeEngine
from good_rt.errors import GoodRtError
from good_rt.export.detector import export_detector
from good_rt.export.guidance_module import GuidanceModule
from good_rt.export.vjp import export_vjp_onnx
from good_rt.method.bank import FeatureBank
from good_rt.method.classifier_guidance import ClassifierGuidance, IdScales
from good_rt.method.discrepancy.knn import KnnDistance
from good_rt.method.sampler import GuidedModel, SampleBatch, sample, sample_seeds
from good_rt.method.training import finetune
from good_rt.method.training_data import TrainingImages

ID = from_uint8(assets.load_images("train").images[:40])
OOD = from_uint8(assets.load_images("near").images[:12])
LABELS = torch.from_numpy(assets.load_images("train").labels[:40])
DETECTOR = DetectorConfig(
    ("energy", "knn_distance", "mahalanobis", "relative_mahalanobis"), "sum", k=2, alpha=0.2
)


def knn(features: Tensor) -> KnnDistance:
    """The distance to the second nearest of these features."""
    return KnnDistance(FeatureBank.of(features), 2)


def shrink(y: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
    """A denoiser of unit normal images: x̂0 = y / (1 + σ²)."""
    return y / (1 + sigma**2)


def test_a_guided_step_climbs_the_librarys_gradient(every_source: Any) -> None:
    classifier = every_source.load()
    if not classifier.differentiable:
        pytest.skip("no gradient")
    logits, features = predict(classifier, ID)
    feature = knn(features[:20])
    scales = IdScales.measure(logits[20:], features[20:], feature)
    guidance = ClassifierGuidance(classifier, feature, scales, 0.5)
    sigmas = np.array([1.0, 0.5, 0.0])
    found = {}
    for mu in (0.0, 0.3):
        images = sample(
            GuidedModel(shrink, lambda z: z, guidance if mu else None),
            sigmas,
            GuidanceConfig(mu=mu),
            SampleBatch(sample_seeds(0, [0, 1]), (1, 32, 32)),
            eta=0.0,
        )
        with torch.no_grad():
            found[mu] = guidance(images)
    assert (found[0.3] > found[0.0]).all()


def test_the_detectors_file_scores_as_pytorch_does(every_source: Any, tmp_path: Path) -> None:
    classifier = every_source.load()
    module = build_module(
        classifier,
        IdFeatures.of(classifier, [(ID[:20], LABELS[:20])]),
        ID[20:30],
        ID[30:],
        [OOD],
        DETECTOR,
    )
    images = (
        from_uint8(assets.load_images("test").images[:40]) + 1
    ) / 2  # none that it was calibrated on: a tie
    parity = export_detector(module, tmp_path / "detector.onnx", images, training="none")
    assert max(parity.max_relative.values()) < 1e-4
    detector = Detector(tmp_path / "detector.onnx")
    assert (detector.info.channels, detector.info.image_size) == (1, 32)
    pixels = assets.load_images("near").images[:12]
    logits, _ = predict(classifier, from_uint8(pixels))
    np.testing.assert_allclose(detector.score(pixels).logits, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_gradient_engine_gives_autograds_gradient(every_source: Any, tmp_path: Path) -> None:
    classifier = every_source.load()
    if not classifier.differentiable:
        pytest.skip("no gradient")
    module = GuidanceModule(None, classifier, knn(predict(classifier, ID[:20])[1])).eval()
    latents = ID[30:32] + 0.05 * torch.randn(
        2, 1, 32, 32, generator=torch.Generator().manual_seed(0)
    )
    weight = torch.full((2,), 0.5)
    inputs = {
        "latents": latents,
        "offset": torch.zeros_like(latents),
        "image_weight": weight,
        "feature_weight": weight,
    }
    export_vjp_onnx(module, inputs, "latents", ("value",), tmp_path / "guidance.onnx")
    found = OnnxRuntimeEngine(tmp_path / "guidance.onnx")(cotangent=torch.ones(2), **inputs)
    leaf = latents.clone().requires_grad_(True)
    value = module(leaf, *list(inputs.values())[1:])
    (expected,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(found["value"], value.detach(), rtol=1e-3, atol=1e-4)
    assert float((found["gradient"] - expected).norm() / expected.norm()) < 0.01


def test_fine_tuning_changes_the_weights_and_the_folder_keeps_them(
    every_source: Any, tmp_path: Path
) -> None:
    classifier = every_source.load()
    data = TrainingImages(ID[:20], LABELS[:20], ID[20:], LABELS[20:], None, OOD[:6], OOD[6:])
    config = TrainConfig(steps=2, id_batch=8, ood_batch=4, evaluate_every=2, max_accuracy_drop=1.0)
    if not classifier.trainable:
        with pytest.raises(GoodRtError, match="cannot be trained"):
            finetune(classifier, data, config)
        return
    trained = finetune(classifier, data, config).classifier
    assert not torch.allclose(predict(trained, OOD)[0], predict(classifier, OOD)[0])
    save_classifier(trained, tmp_path / "clf")
    own = "own_networks:Plain@" if "own_networks" in every_source.spec else ""
    again = load_classifier(f"{own}{tmp_path / 'clf'}")
    for ours, theirs in zip(predict(again, OOD), predict(trained, OOD), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_step_prepares_an_image_alike(
    every_source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the network is given for one image: in the bank, in guidance, in training, in the
    detector."""
    classifier = every_source.load()
    given: list[Tensor] = []
    prepare = Classifier.prepare
    monkeypatch.setattr(
        Classifier, "prepare", lambda self, x: given.append(prepare(self, x)) or given[-1]
    )
    image = ID[:1]
    expected = prepare(classifier, image)
    seen: dict[str, Tensor] = {}

    predict(classifier, image)
    seen["bank"] = given[0]
    given.clear()
    feature = knn(predict(classifier, ID[1:10])[1])
    module = build_module(
        classifier,
        IdFeatures.of(classifier, [(ID[1:20], LABELS[1:20])]),
        ID[20:30],
        ID[30:],
        [OOD],
        DETECTOR,
    )
    given.clear()
    module((image + 1) / 2)
    seen["detector"] = given[0]
    if classifier.differentiable:
        given.clear()
        leaf = image.clone().requires_grad_(True)
        ClassifierGuidance(classifier, feature, IdScales(1, 1), 0.5)(leaf)
        seen["guidance"] = given[0]
        given.clear()
        GuidanceModule(None, classifier, feature)(
            image, torch.zeros_like(image), torch.ones(1), torch.ones(1)
        )
        seen["gradient engine"] = given[0]
    if classifier.trainable:
        given.clear()
        monkeypatch.setattr("good_rt.method.training.augment", lambda images, *rest: images)
        data = TrainingImages(image, LABELS[:1], image, LABELS[:1])
        finetune(classifier, data, TrainConfig(steps=1, id_batch=2, max_accuracy_drop=1.0))
        batch = next(x for x in given if x.shape[0] == 2)
        seen["training"] = batch[:1]
    assert set(seen) >= {"bank", "detector"}
    for name, found in seen.items():
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=2e-6, msg=name)
