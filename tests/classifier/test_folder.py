"""Classifier folders: saved and loaded alike, preprocessing as written in them, and each kind of
damage by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from good_rt.classifier import (
    Classifier,
    ClassifierConfig,
    load_classifier,
    predict,
    save_classifier,
)
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
from good_rt.errors import GoodRtError

IMAGES = from_uint8(assets.load_images("test").images[:12])


@pytest.fixture
def folder(classifier_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(classifier_dir, tmp_path / "clf")


def test_saved_and_loaded_is_the_same(classifier: Classifier, tmp_path: Path) -> None:
    save_classifier(classifier, tmp_path)
    again = load_classifier(tmp_path)
    assert again.config == classifier.config
    assert again.fingerprint == classifier.fingerprint
    assert not any(p.requires_grad for p in again.parameters()) and not again.training
    for ours, theirs in zip(predict(again, IMAGES), predict(classifier, IMAGES), strict=True):
        assert torch.equal(ours, theirs)


def test_features_and_logits_are_the_networks(classifier: Classifier) -> None:
    logits, features = classifier(IMAGES)
    network = classifier.network
    assert isinstance(network, SmallResNet)
    assert torch.equal(logits, network(IMAGES))
    assert torch.equal(features, network.forward_features(IMAGES))


def test_mean_and_std_are_of_images_in_0_to_1(classifier: Classifier) -> None:
    config = ClassifierConfig(**{**vars(classifier.config), "mean": (0.3,), "std": (0.25,)})
    given = Classifier(classifier.network, config)(IMAGES)[0]
    assert torch.allclose(given, classifier.network((IMAGES * 0.5 + 0.5 - 0.3) / 0.25), atol=1e-4)


def test_predicting_does_not_depend_on_the_batch_and_leaves_the_mode(
    classifier: Classifier,
) -> None:
    whole, parts = predict(classifier, IMAGES), predict(classifier, IMAGES, batch=5)
    for ours, theirs in zip(whole, parts, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.enable_grad():
        classifier.train()
        assert not predict(classifier, IMAGES)[0].requires_grad
        assert classifier.training
        classifier.eval()


def test_images_of_another_shape_are_refused(classifier: Classifier) -> None:
    with pytest.raises(
        GoodRtError, match=r"takes images of shape \(1, 32, 32\), not \(3, 32, 32\)"
    ):
        classifier(IMAGES.expand(-1, 3, -1, -1))


def test_half_precision_is_read_as_float32(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}, path
    )
    assert {p.dtype for p in load_classifier(folder).parameters()} == {torch.float32}


def test_another_weight_is_another_fingerprint(folder: Path, classifier: Classifier) -> None:
    state = load_file(folder / "model.safetensors")
    state["head.bias"][0] += 1
    save_file(state, folder / "model.safetensors")
    assert load_classifier(folder).fingerprint != classifier.fingerprint


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / "classifier.json").read_text())
        change(values)
        (folder / "classifier.json").write_text(json.dumps(values))

    return apply


def reweigh(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return apply


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "model.pt")
    (folder / "model.safetensors").unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"clf is not a classifier folder: classifier\.json is missing"),
    "no config": (lambda f: (f / "classifier.json").unlink(), r"classifier\.json is missing"),
    "config no JSON": (
        lambda f: (f / "classifier.json").write_text("{"),
        r"classifier\.json is not valid JSON",
    ),
    "no classes": (edit(lambda v: v.pop("classes")), r"is damaged \(classes is missing\); save"),
    "empty classes": (edit(lambda v: v.update(classes=[])), "classes is empty, but must be one or"),
    "numbers as classes": (
        edit(lambda v: v.update(classes=[1, 2])),
        r"is damaged \(classes\.0 is 1, but must be a text\); save the classifier again",
    ),
    "classes as text": (
        edit(lambda v: v.update(classes="abcdefgh")),
        "classes is 'abcdefgh', but must be a list",
    ),
    "unknown setting": (edit(lambda v: v.update(depth=3)), r"\(depth is not a known key\)"),
    "architecture null": (
        edit(lambda v: v.update(architecture=None)),
        r"classifier\.json is damaged \(architecture is None, but must be a text\)",
    ),
    "image size as text": (edit(lambda v: v.update(image_size="32")), "image_size is '32', but"),
    "no pixels": (edit(lambda v: v.update(image_size=0)), "image_size is 0, but must be at least"),
    "negative size": (edit(lambda v: v.update(image_size=-32)), "image_size is -32, but must be"),
    "huge size": (
        edit(lambda v: v.update(image_size=10**9)),
        "image_size is 1000000000, but must be at most 16384",
    ),
    "fraction of channels": (edit(lambda v: v.update(channels=1.0)), r"channels is 1\.0, but must"),
    "huge channels": (edit(lambda v: v.update(input_channels=10**9)), "input_channels is 1000000"),
    "resize as list": (edit(lambda v: v.update(resize=[32, 32])), "resize is a list, but must be"),
    "huge resize": (
        edit(lambda v: v.update(resize={"size": 10**9, "crop": 32})),
        r"resize\.size is 1000000000, but must be at most",
    ),
    "crop larger than resize": (
        edit(lambda v: v.update(resize={"size": 16, "crop": 48})),
        r"classifier\.json: cannot crop 48 pixels out of 16",
    ),
    "interpolation": (
        edit(lambda v: v.update(resize={"size": 48, "crop": 48, "interpolation": "x"})),
        r"classifier\.json: unknown interpolation 'x'",
    ),
    "mean of three channels": (
        edit(lambda v: v.update(mean=[0.5] * 3, std=[0.5] * 3)),
        r"classifier\.json: the classifier's mean has 3 values for 1 channel",
    ),
    "mean as text": (edit(lambda v: v.update(mean=["0.5"])), r"mean\.0 is '0\.5', but must be a"),
    "infinite mean": (edit(lambda v: v.update(mean=[float("inf")])), r"mean\.0 is inf, but must"),
    "std of 0": (
        edit(lambda v: v.update(mean=[0.5], std=[0])),
        r"std\.0 is 0, but must be greater than 0",
    ),
    "unknown architecture": (
        edit(lambda v: v.update(architecture="os:system")),
        "unknown architecture 'os:system'; known are small_resnet",
    ),
    "arguments": (
        edit(lambda v: v.update(arguments={"depth": 3})),
        "arguments do not fit architecture",
    ),
    "negative width": (
        edit(lambda v: v.update(arguments={"width": -1})),
        r"classifier\.json: arguments do not fit architecture",
    ),
    "number as features": (edit(lambda v: v.update(features=3)), "features is 3, but must be a"),
    "other width": (
        edit(lambda v: v.update(arguments={"width": 16})),
        r"does not fit classifier\.json: size mismatch",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing$"),
    "pickle": (
        pickled,
        r"is missing; model\.pt is a pickle and is not read: convert it to safetensors",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:1000]
        ),
        "is not a safetensors file",
    ),
    "NaN": (
        reweigh(lambda s: s["head.weight"].view(-1)[3:4].fill_(torch.nan)),
        "weight 'head.weight' has values that",
    ),
    "inf": (
        reweigh(lambda s: s["stem.1.running_var"][:1].fill_(torch.inf)),
        "weight 'stem.1.running_var'",
    ),
    "lacks one": (reweigh(lambda s: s.pop("head.bias")), "lacks 'head.bias'; it does not belong"),
    "one too many": (
        reweigh(lambda s: s.update(tail=torch.ones(1))),
        "has 'tail', which the network does not",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_is_named(folder: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(folder)
    with pytest.raises(GoodRtError, match=message):
        load_classifier(folder)
