"""Decoder, classifier and discrepancies as one module, and its gradient as a graph, for every
feature discrepancy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from good_rt.classifier import Classifier, predict
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule
from good_rt.engines.onnxruntime import OnnxRuntimeEngine
from good_rt.export.graphs import FusedGuidance
from good_rt.export.guidance_module import GuidanceModule
from good_rt.export.vjp import export_vjp_onnx
from good_rt.method.classifier_guidance import ClassifierGuidance, EngineGuidance, IdScales
from good_rt.method.discrepancy import DISCREPANCIES, DiscrepancyConfig, fit_discrepancy
from good_rt.method.guidance import value_and_gradient

FEATURES = [name for name in DISCREPANCIES if name != "energy"]
IMAGES = from_uint8(assets.load_images("near").images[:6])
LATENTS = IMAGES + 0.05 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FEATURES)
def test_the_engine_gives_autograds_value_and_gradient(
    name: str, classifier: Classifier, detector_module: DetectorModule, tmp_path: Path
) -> None:
    feature = fit_discrepancy(name, detector_module.id_features, DiscrepancyConfig(k=3))
    module = GuidanceModule(None, classifier, feature, temperature=2.0).eval()
    inputs = {
        "latents": LATENTS,
        "offset": 0.01 * torch.ones_like(LATENTS),
        "image_weight": torch.full((6,), 0.5),
        "feature_weight": torch.full((6,), 0.25),
    }
    export_vjp_onnx(module, inputs, "latents", ("value",), tmp_path / "guidance.onnx")
    engine = OnnxRuntimeEngine(tmp_path / "guidance.onnx")
    found = engine(cotangent=torch.ones(6), **inputs)
    leaf = LATENTS.clone().requires_grad_(True)
    value = module(leaf, *list(inputs.values())[1:])
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(found["value"], value.detach(), rtol=1e-3, atol=1e-3)
    assert float((found["gradient"] - gradient).norm() / gradient.norm()) < 0.01


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FEATURES)
def test_the_module_is_the_guidance(
    name: str, lam: float, classifier: Classifier, detector_module: DetectorModule
) -> None:
    features = detector_module.id_features
    feature = fit_discrepancy(name, features, DiscrepancyConfig(k=3))
    held_out = predict(classifier, from_uint8(assets.load_images("held_out").images[:100]))
    scales = IdScales.measure(*held_out, feature)
    module = GuidanceModule(None, classifier, feature).eval()

    def run(
        cotangent: torch.Tensor, latents: torch.Tensor, *others: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = latents.detach().requires_grad_(True)
        value = module(leaf, *others)
        (gradient,) = torch.autograd.grad(value, leaf, cotangent)
        return value.detach(), gradient

    fused = EngineGuidance(run, scales, lam, (1, 32, 32))
    plain = ClassifierGuidance(classifier, feature, scales, lam)
    found, expected = (
        value_and_gradient(guidance, lambda latents: latents, LATENTS, 0.0, None)
        for guidance in (fused, plain)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_fingerprint_names_what_the_graph_holds(detector_module: DetectorModule) -> None:
    features = detector_module.id_features
    other = replace(features, features=features.features + 0.1)
    guidances = [
        FusedGuidance(fit_discrepancy(name, rows, DiscrepancyConfig(k=k)), temperature)
        for name, rows, k, temperature in (
            ("knn_distance", features, 3, 1.0),
            ("knn_distance", features, 4, 1.0),
            ("knn_distance", features, 3, 2.0),
            ("knn_distance", other, 3, 1.0),
            ("mahalanobis", features, 3, 1.0),
            ("relative_mahalanobis", features, 3, 1.0),
            ("mahalanobis", other, 3, 1.0),
        )
    ]
    assert len({guidance.fingerprint for guidance in guidances}) == len(guidances)
    again = FusedGuidance(fit_discrepancy("mahalanobis", features), 1.0)
    assert again.fingerprint == guidances[4].fingerprint
