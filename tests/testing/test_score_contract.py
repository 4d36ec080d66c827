"""Every score through the public contract, and each rule of the contract on a score that breaks
it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from good_rt.classifier import IdFeatures, load_classifier, predict
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.method.bank import FeatureBank
from good_rt.method.class_scales import ClassScales
from good_rt.method.classifier_guidance import ClassifierGuidance, IdScales, total
from good_rt.method.combination import COMBINATIONS, FitValues
from good_rt.method.combination.gate import Gate
from good_rt.method.discrepancy import Discrepancy, fit_discrepancy
from good_rt.method.discrepancy.energy import image_level
from good_rt.method.discrepancy.knn import KnnDistance
from good_rt.method.scores import LOGIT_SCORES
from good_rt.method.unified import UnifiedScore
from good_rt.testing import (
    ContractCheck,
    ContractError,
    ScoreInputs,
    discrepancy_inputs,
    feature_inputs,
    logit_inputs,
    parametrize_with_checks,
    score_checks,
)
from good_rt.testing.score import SCORE_CHECKS

FEATURES = F.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
CLASSES = torch.arange(60) % 3
CLUSTERS = F.normalize(FEATURES[CLASSES] + 0.2 * FEATURES.roll(1, dims=0), dim=1)
FEATURE_LEVELS: dict[str, tuple[Discrepancy, Tensor]] = {
    "k = 1": (KnnDistance(FeatureBank(FEATURES), 1), FEATURES),
    "k = 5": (KnnDistance(FeatureBank(FEATURES), 5), FEATURES),
    **{
        name: (fit_discrepancy(name, IdFeatures(CLUSTERS, CLASSES, 3)).double(), CLUSTERS)
        for name in ("mahalanobis", "relative_mahalanobis")
    },
}
"""Each with the ID features that it was fitted on."""


@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name, score in LOGIT_SCORES.items() for check in score_checks(score)],
    ids=lambda value: getattr(value, "name", value),
)
def test_logit_scores(name: str, check: ContractCheck) -> None:
    check()


@parametrize_with_checks(
    [
        *score_checks(image_level, logit_inputs(tensors=True)),
        *score_checks(lambda z: image_level(z, 2.5), logit_inputs(tensors=True)),
    ]
)
def test_the_image_level(check: ContractCheck) -> None:
    check()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (name, check)
        for name, (level, fitted) in FEATURE_LEVELS.items()
        for check in score_checks(
            lambda features, level=level: level(features, features), feature_inputs(fitted)
        )
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_feature_level(name: str, check: ContractCheck) -> None:
    check()


def unified_scores() -> dict[str, UnifiedScore]:
    """Scores of energy and k-NN distance: gates, and every combination fitted on normal values."""
    rng = np.random.default_rng(0)
    known, ood = (torch.from_numpy(rng.normal(mean, 1, (500, 2))) for mean in (0, 2))
    combinations = {
        **{f"c = {c}": Gate((0.6, 0.4), c) for c in (0.0, 1.5, -1.5)},
        **{name: fit(FitValues(known, ood)) for name, fit in COMBINATIONS.items()},
    }
    return {
        name: UnifiedScore(
            ("energy", "knn_distance"), ClassScales(((-8.0, 0.3),), ((1.0, 0.05),)), combine, name
        )
        for name, combine in combinations.items()
    }


def tensors(inputs: ScoreInputs) -> ScoreInputs:
    """The inputs as PyTorch's tensors."""
    known, ood, large = (
        tuple(map(torch.from_numpy, arrays or ()))
        for arrays in (inputs.known, inputs.ood, inputs.large)
    )
    return ScoreInputs(known, ood, large, inputs.rises)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (name, check)
        for name, score in unified_scores().items()
        for check in score_checks(
            lambda energy, distance, score=score: score(
                torch.stack([energy, distance], dim=1), torch.zeros(len(energy), 1)
            ),
            tensors(discrepancy_inputs()),
        )
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_unified_score(name: str, check: ContractCheck) -> None:
    """In the torch operations that detector.onnx is made of."""
    check()


@pytest.fixture(scope="module")
def guidance_case() -> tuple[Callable[[float], ClassifierGuidance], ScoreInputs]:
    """The demo's classifier in double precision as guidance for a λ; ID images and noise."""
    classifier = copy.deepcopy(load_classifier(assets.CLASSIFIER)).double()
    images = from_uint8(assets.load_images("train").images[:200]).double()
    logits, features = predict(classifier, images)
    feature = KnnDistance(FeatureBank.of(features[:150]), 2)
    scales = IdScales.measure(logits[150:], features[150:], feature)
    known = from_uint8(assets.load_images("test").images[:12]).double()
    ood = from_uint8(assets.load_images("textures").images[:12]).double()
    return (
        lambda lam: ClassifierGuidance(classifier, feature, scales, lam),
        ScoreInputs((known,), (ood,)),
    )


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_guidance_is_a_score_of_images(
    guidance_case: tuple[Callable[[float], ClassifierGuidance], ScoreInputs], lam: float
) -> None:
    make, inputs = guidance_case
    for check in score_checks(make(lam), inputs):
        check()


def test_a_sum_of_guidances_is_a_score_of_images(
    guidance_case: tuple[Callable[[float], ClassifierGuidance], ScoreInputs],
) -> None:
    make, inputs = guidance_case
    for check in score_checks(total(make(0.0), make(1.0)), inputs):
        check()


def energy(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Keeps every rule."""
    largest = logits.max(axis=1)
    return -(largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)))


def writing(logits: NDArray[Any]) -> NDArray[np.float64]:
    scores = energy(logits)
    logits -= logits.max()
    return scores


def finite_above_zero(logits: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.sqrt(energy(logits) + 3)


def half_detached(logits: Tensor) -> Tensor:
    return image_level(logits) / 2 + image_level(logits).detach() / 2


CALLS = itertools.count()
LOGITS, TENSORS = logit_inputs(), logit_inputs(tensors=True)
BROKEN: dict[str, tuple[Callable[..., Any], ScoreInputs]] = {
    "check_score_shape": (lambda z: energy(z)[:, None], LOGITS),
    "check_score_finite": (finite_above_zero, LOGITS),
    "check_score_higher_is_more_ood": (lambda z: -energy(z), LOGITS),
    "check_score_monotone": (lambda energy, distance: energy - distance, discrepancy_inputs()),
    "check_score_batch_independence": (lambda z: energy(z) - energy(z).mean(), LOGITS),
    "check_score_order_independence": (lambda z: energy(z) + np.arange(len(z)), LOGITS),
    "check_score_inputs_unchanged": (writing, LOGITS),
    "check_score_repeated_calls": (lambda z: energy(z) + 1e-6 * next(CALLS), LOGITS),
    "check_score_nan_is_not_hidden": (lambda z: energy(np.nan_to_num(z)), LOGITS),
    "check_score_large_values": (lambda z: -np.log(np.exp(z).sum(axis=1)), LOGITS),
    "check_score_single_precision": (lambda z: energy(z) + 0.1 * (z.dtype == "f4"), LOGITS),
    "check_score_gradient": (half_detached, TENSORS),
}


def test_every_check_is_seen_to_fail() -> None:
    assert set(BROKEN) == {check.__name__ for check in SCORE_CHECKS}


def test_the_unbroken_score_passes() -> None:
    for check in score_checks(energy):
        check()


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_score_fails(name: str) -> None:
    score, inputs = BROKEN[name]
    (check,) = (check for check in score_checks(score, inputs) if check.name == name)
    with pytest.raises(ContractError) as broken:
        check()
    assert "\n" not in str(broken.value)


def test_checks_that_the_inputs_do_not_allow_are_left_out() -> None:
    def names(*arguments: Any, **settings: Any) -> set[str]:
        return {check.name for check in score_checks(*arguments, **settings)}

    every = {check.__name__ for check in SCORE_CHECKS}
    assert every - names(energy) == {"check_score_gradient", "check_score_monotone"}
    assert "check_score_gradient" in names(image_level, TENSORS)
    assert "check_score_gradient" not in names(image_level, TENSORS, differentiable=False)
