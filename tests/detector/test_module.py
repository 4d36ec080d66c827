"""The detector's module against every output computed again in float64 with numpy, scipy and
scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf

from good_rt.classifier import Classifier, IdFeatures, predict
from good_rt.config.settings import DetectorConfig, DiscrepancyName
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule, build_module, measure
from good_rt.errors import GoodRtError
from good_rt.method.class_scales import ClassScales
from good_rt.method.combination.gate import Gate
from good_rt.method.discrepancy import DISCREPANCIES, DiscrepancyConfig
from good_rt.method.discrepancy.energy import Energy
from good_rt.method.discrepancy.knn import KnnDistance
from good_rt.method.measurements import Measurements
from good_rt.method.unified import UnifiedScore

TRAIN = from_uint8(assets.load_images("train").images[:300])
LABELS = assets.load_images("train").labels[:300]
KNOWN = from_uint8(assets.load_images("held_out").images[:100])
CALIBRATION = from_uint8(assets.load_images("held_out").images[100:199])
TEST = from_uint8(
    np.concatenate([assets.load_images(name).images[:40] for name in ("test", "near", "emoji")])
)
OOD = from_uint8(assets.load_images("validation").images[:80])
Array = NDArray[np.float64]


def outputs(classifier: Classifier, images: torch.Tensor) -> tuple[Array, Array]:
    """Logits and features in float64."""
    logits, features = (value.double().numpy() for value in predict(classifier, images))
    return logits, features


def unit(features: Array) -> Array:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def mahalanobis(train: Array, labels: NDArray[np.int64], queries: Array) -> Array:
    """The smallest squared Mahalanobis distance to a class, by scikit-learn's precision."""
    means = np.stack([train[labels == label].mean(axis=0) for label in np.unique(labels)])
    residuals = train - means[np.searchsorted(np.unique(labels), labels)]
    precision = LedoitWolf(assume_centered=True).fit(residuals).precision_
    squared: Array = cdist(queries, means, metric="mahalanobis", VI=precision).min(axis=1) ** 2
    return squared


def discrepancies(
    classifier: Classifier, images: torch.Tensor, config: DetectorConfig
) -> dict[str, Array]:
    """The discrepancies of images by their definitions."""
    logits, features = outputs(classifier, images)
    train = outputs(classifier, TRAIN)[1]
    t, one_class = config.temperature, np.zeros(len(train), np.int64)
    values = {
        "energy": -t * logsumexp(logits / t, axis=1),
        "knn_distance": np.sort(cdist(unit(features), unit(train)), axis=1)[:, config.k - 1],
        "mahalanobis": mahalanobis(unit(train), LABELS, unit(features)),
        "relative_mahalanobis": mahalanobis(train, LABELS, features)
        - mahalanobis(train, one_class, features),
    }
    return {name: values[name] for name in config.discrepancies}


def id_features(classifier: Classifier, size: int = len(TRAIN)) -> IdFeatures:
    """The features of the first training images."""
    return IdFeatures.of(classifier, [(TRAIN[:size], torch.from_numpy(LABELS[:size]))])


CONFIGS = {
    "default": DetectorConfig(),
    "gate": DetectorConfig(("energy", "knn_distance"), "gate", k=1),
    "gate of all, k = 7": DetectorConfig(
        tuple(DISCREPANCIES), "gate", k=7, alpha=0.2, temperature=2.5
    ),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> DetectorConfig:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def module(classifier: Classifier, config: DetectorConfig) -> DetectorModule:
    return build_module(
        classifier, id_features(classifier), KNOWN, CALIBRATION, [OOD[:50], OOD[50:]], config
    )


def test_measure(classifier: Classifier, config: DetectorConfig, module: DetectorModule) -> None:
    found = measure(classifier, module.discrepancies, TEST.split(50))
    np.testing.assert_allclose(found.logits, outputs(classifier, TEST)[0])
    expected = discrepancies(classifier, TEST, config)
    assert tuple(found.discrepancies) == tuple(expected) == config.discrepancies
    for name, values in expected.items():
        np.testing.assert_allclose(
            found.discrepancies[name], values, rtol=1e-3, atol=1e-4, err_msg=name
        )
    columns = found.values(config.discrepancies)
    assert columns.shape == (len(TEST), len(config.discrepancies))


def test_every_output(
    classifier: Classifier, config: DetectorConfig, module: DetectorModule
) -> None:
    with torch.no_grad():
        found = dict(zip(module.outputs, module((TEST + 1) / 2), strict=True))
    np.testing.assert_allclose(found["logits"], outputs(classifier, TEST)[0], rtol=1e-3, atol=1e-4)
    test, known, calibration = (
        discrepancies(classifier, images, config) for images in (TEST, KNOWN, CALIBRATION)
    )
    assert module.outputs == ("logits", *test, "score", "p_value", "is_ood")
    for name, values in test.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3, err_msg=name)

    # standardised on KNOWN, whose scales tests/method/test_class_scales.py checks
    u, parts = module.unified, {"test": TEST, "known": KNOWN, "calibration": CALIBRATION}
    logits = {name: outputs(classifier, images)[0] for name, images in parts.items()}
    scales = ClassScales.fit(list(known), Measurements(logits["known"], known))
    np.testing.assert_allclose(u.scales.medians, scales.medians, rtol=1e-3)
    np.testing.assert_allclose(u.scales.spreads, scales.spreads, rtol=1e-2)

    def unified(values: dict[str, Array], of: str) -> Array:
        columns = torch.from_numpy(np.stack(list(values.values()), axis=1))
        a = scales.standardise(columns, torch.from_numpy(logits[of])).numpy()
        weights = np.array(u.combination.weights)
        if config.combination == "sum":
            mean: Array = a.mean(axis=1)
            return mean
        assert isinstance(u.combination, Gate)
        c = u.combination.c
        score: Array = logsumexp(c * a, axis=1, b=weights) / c
        return score

    score = unified(test, "test")
    np.testing.assert_allclose(found["score"], score, rtol=1e-2, atol=1e-2)
    p_value = np.array(
        [(1 + np.sum(unified(calibration, "calibration") >= s)) / 100 for s in score]
    )
    assert (
        np.abs(found["p_value"].numpy() - p_value).max() <= 0.0101
    )  # a near tie may go either way
    assert (np.abs(found["p_value"].numpy() - p_value) > 1e-6).mean() <= 0.05
    np.testing.assert_allclose(module.p_values(found["score"].numpy()), found["p_value"], rtol=1e-6)
    np.testing.assert_array_equal(found["is_ood"], found["p_value"] <= np.float32(config.alpha))


@pytest.mark.parametrize("c", [0.0, 1e-9, 2.0, -2.0])
def test_the_modules_gate_is_the_unified_score(classifier: Classifier, c: float) -> None:
    score = UnifiedScore(
        ("energy", "knn_distance"),
        ClassScales(((-5.0, 0.3),) * 8, ((2.0, 0.1),) * 8),
        Gate((0.7, 0.3), c),
        "gate",
    )
    features = id_features(classifier)
    parts = [
        Energy.fit(features, DiscrepancyConfig()),
        KnnDistance.fit(features, DiscrepancyConfig()),
    ]
    module = DetectorModule(
        classifier, parts, score, np.linspace(-3, 3, 99), DetectorConfig(), features
    )
    with torch.no_grad():
        logits, energy, distance, found, p_value, _ = module((TEST + 1) / 2)
    expected = score(torch.stack([energy.double(), distance.double()], dim=1), logits)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    counted = (1 + (np.linspace(-3, 3, 99)[None] >= found.numpy()[:, None]).sum(1)) / 100
    np.testing.assert_allclose(p_value, counted, atol=0.0101)


@pytest.mark.parametrize("k", [1, 7])
def test_an_image_of_the_bank_has_distance_0(classifier: Classifier, k: int) -> None:
    config = DetectorConfig(("knn_distance",), k=k)
    module = build_module(classifier, id_features(classifier), KNOWN, CALIBRATION, [], config)
    with torch.no_grad():
        distance = module((TRAIN[:20] + 1) / 2)[1]
    assert (distance < 1e-3).all() == (k == 1)


def test_at_most_alpha_of_new_id_images_is_refused_but_for_chance(module: DetectorModule) -> None:
    images = from_uint8(assets.load_images("held_out").images[1000:1400])
    with torch.no_grad():
        p_value = module((images + 1) / 2)[-2].numpy()
    # 99 calibration scores: the refused share is Beta(α·100, (1−α)·100), 400 images add their own
    # noise
    for alpha in (0.05, 0.2):
        assert (p_value <= alpha).mean() <= alpha + 4 * np.sqrt(
            alpha * (1 - alpha) * (1 / 100 + 1 / 400)
        )


def test_too_few_calibration_images_and_too_large_k_are_refused(classifier: Classifier) -> None:
    features = id_features(classifier)
    with pytest.raises(
        GoodRtError, match=r"alpha 0\.05 needs at least 19 calibration images, there are 18"
    ):
        build_module(classifier, features, KNOWN, CALIBRATION[:18], [OOD])
    few, config = id_features(classifier, 5), DetectorConfig(("knn_distance",), k=6)
    with pytest.raises(GoodRtError, match="k must be between 1 and 5"):
        build_module(classifier, few, KNOWN, CALIBRATION, [OOD], config)


@torch.no_grad()
@pytest.mark.parametrize("where", ["features", "calibration"])
def test_nan_makes_the_p_value_nan(classifier: Classifier, where: str) -> None:
    module = build_module(classifier, id_features(classifier), KNOWN, CALIBRATION, [])
    logits, features = predict(classifier, TEST[:4])
    if where == "features":
        features[1, 0] = torch.nan
    else:
        module.calibration[17] = torch.nan
    decided = module.decide(logits, features, torch.ones(4, dtype=torch.bool))
    outputs = dict(zip(module.outputs, decided, strict=True))
    expected = [False, True, False, False] if where == "features" else [True] * 4
    assert outputs["p_value"].isnan().tolist() == expected
    assert outputs["is_ood"][outputs["p_value"].isnan()].all()  # nothing unknown passes as ID


def test_a_combination_of_generated_images_is_refused_without_them(classifier: Classifier) -> None:
    config = DetectorConfig(combination="logistic")
    with pytest.raises(GoodRtError, match="logistic is fitted on generated images; give some, or"):
        build_module(classifier, id_features(classifier), KNOWN, CALIBRATION, [], config)


def test_discrepancies_that_repeat_or_are_none_are_refused() -> None:
    for names in ((), ("energy", "energy")):
        with pytest.raises(GoodRtError, match="name one or more discrepancies, each once"):
            DetectorConfig(names)
    with pytest.raises(GoodRtError, match="discrepancies"):
        DetectorConfig(("mahalanobi",))  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("energy",), ("knn_distance", "energy"), ("mahalanobis",)])
def test_kl_needs_energy_first(names: tuple[DiscrepancyName, ...]) -> None:
    message = (
        f"kl weighs energy against .*, but the discrepancies are {', '.join(names)}; name energy "
        "first, then one or more others"
    )
    with pytest.raises(GoodRtError, match=message):
        DetectorConfig(names, "kl")
    assert DetectorConfig(("energy", "mahalanobis"), "kl").combination == "kl"


def test_the_detectors_of_the_fixtures_agree(detector_module: DetectorModule, id_dir: Path) -> None:
    assert len(detector_module.id_features) == 400
    assert len(detector_module.calibration) == 120
    assert (detector_module.calibration.diff() >= 0).all()
