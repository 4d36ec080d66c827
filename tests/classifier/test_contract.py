"""Every source through the public contract, and each rule of the contract on a classifier that
breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.classifier import (
    Classifier,
    ClassifierConfig,
    Resize,
    load_classifier,
    save_classifier,
)
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
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
