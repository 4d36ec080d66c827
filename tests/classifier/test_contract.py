"""Every source through the public contract, and each rule of the contract on a classifier that
breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from good_rt.classifier import (
    Classifier,
    ClassifierConfig,
    Resize,
    load_classifier,
)
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
from good_rt.errors import GoodRtError
from good_rt.testing import ContractError, classifier_checks, parametrize_with_checks
from good_rt.testing.classifier import CLASSIFIER_CHECKS, ClassifierCase


@pytest.mark.parametrize("check", CLASSIFIER_CHECKS, ids=lambda check: check.__name__)
def test_every_source_keeps_the_contract(
    every_classifier: tuple[str, Classifier], check: Callable[[ClassifierCase], None]
) -> None:
    _, classifier = every_classifier
    check(ClassifierCase(lambda: classifier))


@pytest.mark.parametrize("check", CLASSIFIER_CHECKS, ids=lambda check: check.__name__)
def test_every_source_keeps_the_contract_for_its_own_images(
    every_source: Any, check: Callable[[ClassifierCase], None]
) -> None:
    check(ClassifierCase(lambda: load_classifier(every_source.spec, every_source.settings)))


@parametrize_with_checks(classifier_checks(lambda: load_classifier(assets.CLASSIFIER)))
def test_the_demos_classifier(check: Callable[[], None]) -> None:
    check()


def small_classifier(kind: type[Classifier] = Classifier, **changes: Any) -> Classifier:
    """A tiny classifier that keeps every rule, of a class that may break one, with changes of its
    config."""
    torch.manual_seed(0)
    config = ClassifierConfig(
        "small_resnet",
        ("a", "b", "c"),
        channels=1,
        image_size=32,
        arguments={"width": 4},
        mean=(0.5,),
        std=(0.25,),
        input_channels=1,
        resize=Resize(32, 32),
    )
    network = SmallResNet(in_channels=1, width=4, num_classes=3)
    classifier = kind(network, replace(config, **changes), "fingerprint")
    return classifier.eval().requires_grad_(False)


def with_outputs(
    change: Callable[[Classifier, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Classifier:
    """The tiny classifier with its images, logits and features changed after the fact."""

    class ChangedClassifier(Classifier):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return change(self, images, *super().forward(images))

    return small_classifier(ChangedClassifier)


def in_training_mode() -> Classifier:
    return small_classifier().train()


def with_noise(c: Classifier, x: Tensor, logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return logits + torch.rand_like(logits), features


def finite_inside_only(
    c: Classifier, x: Tensor, logits: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    outside = x.abs().amax(dim=(1, 2, 3)) > 1
    return logits.masked_fill(outside[:, None], torch.nan), features


def writing_into_images(
    c: Classifier, x: Tensor, logits: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    x.mul_(0.5)
    return logits, features


def writing_into_weights(
    c: Classifier, x: Tensor, logits: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    c.network.head.bias.add_(0.1)  # type: ignore[union-attr,operator]
    return logits, features


class TakesAnything(Classifier):
    """Makes do with images of any shape."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(torch.zeros(len(images), 1, 32, 32))


class IgnoresSize(Classifier):
    """Gives other outputs for images of another size."""

    def for_images(self, channels: int, size: int) -> Classifier:
        larger = super().for_images(channels, size)
        larger.network = copy.deepcopy(larger.network)
        larger.network.head = nn.Linear(16, 5)
        return larger


def frozen_in_buffers() -> Classifier:
    """A network without weights that claims to be trainable."""
    classifier = small_classifier()
    for module in classifier.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return classifier


def with_fresh_weights() -> Iterator[Classifier]:
    """Another head each time, under the same fingerprint."""
    for seed in range(9):
        classifier = small_classifier()
        torch.manual_seed(seed)
        nn.init.normal_(classifier.network.head.weight)  # type: ignore[union-attr,arg-type]
        yield classifier


FRESH = with_fresh_weights()
BROKEN: dict[str, Callable[[], Classifier]] = {
    "check_classifier_logits": lambda: with_outputs(lambda c, x, z, f: (z[:, :1], f)),
    "check_classifier_features": lambda: with_outputs(lambda c, x, z, f: (z, 0 * f)),
    "check_classifier_classes": lambda: small_classifier(classes=("a", "b", "b")),
    "check_classifier_evaluation_mode": in_training_mode,
    "check_classifier_repeated_calls": lambda: with_outputs(with_noise),
    "check_classifier_batch_independence": lambda: with_outputs(
        lambda c, x, z, f: (z - z.mean(dim=0), f)
    ),
    "check_classifier_tells_images_apart": lambda: with_outputs(lambda c, x, z, f: (0 * z, f)),
    "check_classifier_pixel_range": lambda: small_classifier(mean=(124.0,), std=(58.0,)),
    "check_classifier_values_beyond_range": lambda: with_outputs(finite_inside_only),
    "check_classifier_gradient_reaches_image": lambda: with_outputs(
        lambda c, x, z, f: (z.detach(), f)
    ),
    "check_classifier_gradient_of_own_sample": lambda: with_outputs(
        lambda c, x, z, f: (z + 0.1 * z.sum(dim=0, keepdim=True), f)
    ),
    "check_classifier_gradient_finite_difference": lambda: with_outputs(
        lambda c, x, z, f: (z / 2 + z.detach() / 2, f)
    ),
    "check_classifier_images_unchanged": lambda: with_outputs(writing_into_images),
    "check_classifier_weights_unchanged": lambda: with_outputs(writing_into_weights),
    "check_classifier_nan_propagates": lambda: with_outputs(lambda c, x, z, f: (z.nan_to_num(), f)),
    "check_classifier_refuses_wrong_images": lambda: small_classifier(TakesAnything),
    "check_classifier_takes_other_sizes": lambda: small_classifier(IgnoresSize),
    "check_classifier_trainable_weights": frozen_in_buffers,
    "check_classifier_loads_alike": lambda: next(FRESH),
    "check_classifier_saved_and_loaded": lambda: with_outputs(lambda c, x, z, f: (2 * z, f)),
}


def test_every_check_is_seen_to_fail() -> None:
    assert set(BROKEN) == {check.__name__ for check in CLASSIFIER_CHECKS}


@pytest.mark.parametrize("check", classifier_checks(small_classifier), ids=lambda c: c.name)
def test_the_unbroken_classifier_passes(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_classifier_fails(name: str) -> None:
    (check,) = (check for check in classifier_checks(BROKEN[name]) if check.name == name)
    with pytest.raises(ContractError) as broken:
        check()
    assert "\n" not in str(broken.value)


FEATURES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "one feature is 0": (lambda f: torch.cat([f[:-1], 0 * f[-1:]]), "a feature of an image is 0"),
    "nan": (lambda f: f * torch.nan, "are not finite"),
    "infinite": (lambda f: f / 0, "are not finite"),
    "double": (lambda f: f.double(), "float64, not torch.float32"),
    "a map": (lambda f: f[:, :, None], "have shape"),
    "one too few": (lambda f: f[1:], "have shape"),
}


@pytest.mark.parametrize("name", list(FEATURES))
def test_broken_features_are_named(name: str) -> None:
    change, message = FEATURES[name]
    broken = classifier_checks(lambda: with_outputs(lambda c, x, z, f: (z, change(f))))
    (check,) = (check for check in broken if check.name == "check_classifier_features")
    with pytest.raises(ContractError, match=message):
        check()


def test_what_is_no_classifier_is_named() -> None:
    check = classifier_checks(lambda: nn.Linear(2, 2))[0]  # type: ignore[arg-type,return-value]
    with pytest.raises(ContractError, match=r"returned a Linear, not a good_rt\.classifier"):
        check()


def test_pixels_that_are_no_floats_are_refused(classifier: Classifier) -> None:
    with pytest.raises(GoodRtError, match=r"takes floats in \[-1, 1\], not torch\.uint8"):
        classifier(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
