"""Every source against its own library: logits, features, preprocessing, gradients; and what cannot
be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from good_rt.classifier import (
    Classifier,
    ClassifierConfig,
    Resize,
    load_classifier,
    predict,
    save_classifier,
)
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
from good_rt.errors import GoodRtError
from good_rt.method.bank import FeatureBank
from good_rt.method.classifier_guidance import ClassifierGuidance, IdScales
from good_rt.method.discrepancy.knn import KnnDistance

GREY = assets.load_images("test").images[:6]
PIXELS = np.repeat(GREY, 3, axis=-1)
COLOUR = from_uint8(PIXELS) * torch.tensor([1.0, 0.7, -0.4]).view(1, 3, 1, 1)
COLOUR = COLOUR + 0.05 * torch.randn(
    COLOUR.shape, generator=torch.Generator().manual_seed(0)
)  # no ties in max pooling


def opened(source: Any, channels: int = 3, size: int = 32) -> Classifier:
    return load_classifier(source.spec, source.settings).for_images(channels, size)


def by_library(source: Any, images: Tensor) -> Tensor:
    """The network's input from images (N, 3, H, W) in [-1, 1], by torch's own resizing."""
    x = (images + 1) / 2
    if images.shape[-1] != source.size:
        size = (source.resize, source.resize)
        x = F.interpolate(x, size, mode=source.interpolation, antialias=True, align_corners=False)
        first = round((source.resize - source.size) / 2)
        x = x[..., first : first + source.size, first : first + source.size]
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (source.mean, source.std))
    return (x - mean) / std


def test_logits_and_features_are_the_librarys(every_source: Any) -> None:
    classifier = opened(every_source)
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    logits, features = predict(classifier, COLOUR)
    x = by_library(every_source, COLOUR)
    with torch.no_grad():
        torch.testing.assert_close(classifier.prepare(COLOUR), x, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(logits, every_source.logits(x), rtol=1e-3, atol=2e-4)
        expected = every_source.features(x)
        scale = float(expected.norm(dim=1).max())
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=2e-4 * scale)


def test_images_of_the_networks_size_are_taken_as_they_are(every_source: Any) -> None:
    classifier = load_classifier(every_source.spec, every_source.settings)
    assert classifier.config.image_size == every_source.size
    images = torch.rand(1, 3, every_source.size, every_source.size) * 2 - 1
    torch.testing.assert_close(
        classifier.prepare(images), by_library(every_source, images), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("every_source", ["torchvision"], indirect=True)
def test_torchvisions_own_size_crop_and_classes(every_source: Any) -> None:
    config = load_classifier(every_source.spec).config
    assert (config.image_size, config.resize) == (224, Resize(256, 224, "bilinear"))
    assert config.classes == tuple(f"class {i}" for i in range(8))


def test_grey_images_are_repeated_and_colour_for_a_grey_network_is_refused(
    every_source: Any,
) -> None:
    grey = from_uint8(GREY)
    ours = predict(opened(every_source, channels=1), grey)[0]
    torch.testing.assert_close(
        ours, predict(opened(every_source), grey.expand(-1, 3, -1, -1))[0], rtol=1e-4, atol=1e-4
    )


def test_the_gradient_is_the_bare_librarys(every_source: Any) -> None:
    """∇ℓ of image- and feature-level guidance against autograd through the library's own model."""
    classifier = opened(every_source)
    assert classifier.differentiable == every_source.differentiable
    if not classifier.differentiable:
        with pytest.raises(GoodRtError, match=r"no gradient .*Max.*guide with the network"):
            classifier(COLOUR.clone().requires_grad_(True))
        return
    features = predict(classifier, COLOUR)[1]
    bank = FeatureBank.of(features[:4])
    scales = IdScales(2.0, 0.3)
    guidance = ClassifierGuidance(classifier, KnnDistance(bank, 2), scales, 0.5)
    ours, theirs = (COLOUR[4:].clone().requires_grad_(True) for _ in range(2))
    (gradient,) = torch.autograd.grad(guidance(ours).sum(), ours)
    x = by_library(every_source, theirs)
    own = F.normalize(every_source.features(x), dim=1)
    distance = torch.cdist(own, bank.features).sort(dim=1).values[:, 1]
    value = -torch.logsumexp(every_source.logits(x), dim=1) * 0.5 / 2.0 + distance * 0.5 / 0.3
    (expected,) = torch.autograd.grad(value.sum(), theirs)
    assert float(expected.abs().max()) > 0
    # as vectors, since a ReLU beside its kink goes either way in single precision
    assert float((gradient - expected).norm() / expected.norm()) < 0.01


def test_the_gradient_is_the_finite_difference(every_source: Any) -> None:
    if every_source.spec.endswith(".onnx"):
        pytest.skip("an ONNX file has one precision")
    classifier = opened(every_source).double()
    image = COLOUR[:1].double().requires_grad_(True)
    direction = torch.randn(
        image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )

    def value(x: Tensor) -> Tensor:
        return torch.logsumexp(classifier(x)[0], dim=1).sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    step = (
        1e-3 if "transformers" in every_source.spec else 1e-6
    )  # its softmax is in single precision whatever happens
    with torch.no_grad():
        difference = (value(image + step * direction) - value(image - step * direction)) / (
            2 * step
        )
    assert float((gradient * direction).sum()) == pytest.approx(
        float(difference), rel=1e-2, abs=1e-6
    )


def test_saved_and_opened_it_is_the_same(every_source: Any, tmp_path: Path) -> None:
    classifier = opened(every_source)
    save_classifier(classifier, tmp_path / "clf")
    spec = tmp_path / "clf"
    again = load_classifier(
        f"own_networks:Plain@{spec}" if "own_networks" in every_source.spec else spec
    )
    assert again.config == replace(classifier.config)
    for ours, theirs in zip(predict(again, COLOUR), predict(classifier, COLOUR), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (
        again.fingerprint
        and again.fingerprint
        == load_classifier(
            f"own_networks:Plain@{spec}" if "own_networks" in every_source.spec else spec
        ).fingerprint
    )


@pytest.mark.parametrize(
    "interpolation", ["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]
)
@pytest.mark.parametrize(("size", "crop"), [(48, 48), (40, 32), (20, 16)])
def test_resizing_is_pils(interpolation: str, size: int, crop: int) -> None:
    from good_rt.classifier.resampling import FILTERS, resampling_matrix

    image = GREY[3, :, :, 0].astype(np.float32)
    whole = np.asarray(Image.fromarray(image).resize((size, size), FILTERS[interpolation]))
    first = round((size - crop) / 2)
    matrix = resampling_matrix(32, size, crop, interpolation).numpy()
    np.testing.assert_allclose(
        matrix @ image @ matrix.T,
        whole[first : first + crop, first : first + crop],
        rtol=1e-4,
        atol=1e-3,
    )


def test_a_grey_classifier_sees_the_luminance_of_colour() -> None:
    config = ClassifierConfig(
        "small_resnet", ("a",) * 8, 1, 32, {"width": 8}, input_channels=1, resize=Resize(32, 32)
    )
    grey = Classifier(SmallResNet(in_channels=1, width=8), config).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    by_pillow = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])
    found = (grey.for_images(3, 32).prepare(from_uint8(pixels)) + 1) * 127.5
    assert found.shape == (5, 1, 32, 32)
    np.testing.assert_allclose(found[:, 0].numpy(), by_pillow, atol=0.51)
