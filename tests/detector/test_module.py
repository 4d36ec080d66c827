"""The detector's module against every output computed again in float64 with numpy and scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from good_rt.classifier import Classifier, predict
from good_rt.config.settings import DetectorConfig
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule, build_module, measure
from good_rt.detector.runtime import OUTPUTS
from good_rt.errors import GoodRtError
from good_rt.method.bank import FeatureBank
from good_rt.method.gate import UnifiedScore

BANK = from_uint8(assets.load_images("train").images[:300])
KNOWN = from_uint8(assets.load_images("held_out").images[:100])
CALIBRATION = from_uint8(assets.load_images("held_out").images[100:199])
TEST = from_uint8(
    np.concatenate([assets.load_images(name).images[:40] for name in ("test", "near", "emoji")])
)
OOD = from_uint8(assets.load_images("validation").images[:80])


def discrepancies(
    classifier: Classifier, images: torch.Tensor, k: int, temperature: float
) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
    """Logits, energies and distances to the k-th nearest of `BANK`, in float64 by scipy."""
    logits, features = (value.double().numpy() for value in predict(classifier, images))
    bank = predict(classifier, BANK)[1].double().numpy()
    distance = np.sort(cdist(features, bank), axis=1)[:, k - 1]
    return logits, -temperature * logsumexp(logits / temperature, axis=1), distance


def bank_of(classifier: Classifier, size: int = len(BANK)) -> FeatureBank:
    """The feature bank of the first images of `BANK`."""
    return FeatureBank.of(classifier, BANK[:size])


@pytest.fixture(scope="module", params=[(1, 1.0, 0.05), (7, 2.5, 0.2)], ids=["k=1", "k=7"])
def config(request: pytest.FixtureRequest) -> DetectorConfig:
    k, temperature, alpha = request.param
    return DetectorConfig(k=k, alpha=alpha, temperature=temperature)


@pytest.fixture(scope="module")
def module(classifier: Classifier, config: DetectorConfig) -> DetectorModule:
    return build_module(
        classifier, bank_of(classifier), KNOWN, CALIBRATION, [OOD[:50], OOD[50:]], config
    )


def test_measure(classifier: Classifier, config: DetectorConfig) -> None:
    bank = bank_of(classifier)
    found = measure(classifier, bank, TEST, config)
    logits, energy, distance = discrepancies(classifier, TEST, config.k, config.temperature)
    np.testing.assert_allclose(found.logits, logits)
    np.testing.assert_allclose(found.energy, energy, rtol=1e-5)
    np.testing.assert_allclose(found.knn_distance, distance, rtol=1e-4, atol=1e-6)


def test_every_output(
    classifier: Classifier, config: DetectorConfig, module: DetectorModule
) -> None:
    with torch.no_grad():
        found = dict(zip(OUTPUTS, module((TEST + 1) / 2), strict=True))
    logits, energy, distance = discrepancies(classifier, TEST, config.k, config.temperature)
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["energy"], energy, rtol=1e-4)
    np.testing.assert_allclose(found["knn_distance"], distance, rtol=1e-3, atol=1e-5)

    # standardised on KNOWN
    _, known_energy, known_distance = discrepancies(classifier, KNOWN, config.k, config.temperature)
    u = module.unified
    np.testing.assert_allclose(
        (u.energy_mean, u.energy_std), (known_energy.mean(), known_energy.std()), rtol=1e-4
    )
    np.testing.assert_allclose(
        (u.distance_mean, u.distance_std), (known_distance.mean(), known_distance.std()), rtol=1e-4
    )

    def unified(energy: np.ndarray, distance: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        a_img = (energy - known_energy.mean()) / known_energy.std()
        a_feat = (distance - known_distance.mean()) / known_distance.std()
        terms = np.stack([u.c * a_img, u.c * a_feat])
        return logsumexp(terms, axis=0, b=np.array([[1 - u.pi], [u.pi]])) / u.c

    score = unified(energy, distance)
    np.testing.assert_allclose(found["score"], score, rtol=1e-2, atol=1e-2)
    calibration = unified(*discrepancies(classifier, CALIBRATION, config.k, config.temperature)[1:])
    p_value = np.array([(1 + np.sum(calibration >= s)) / 100 for s in score])
    assert (
        np.abs(found["p_value"].numpy() - p_value).max() <= 0.0101
    )  # a near tie may go either way
    assert (np.abs(found["p_value"].numpy() - p_value) > 1e-6).mean() <= 0.05
    np.testing.assert_allclose(module.p_values(found["score"].numpy()), found["p_value"], rtol=1e-6)
    np.testing.assert_array_equal(found["is_ood"], found["p_value"] <= np.float32(config.alpha))


@pytest.mark.parametrize("c", [0.0, 1e-9, 2.0, -2.0])
def test_the_modules_gate_is_the_unified_score(classifier: Classifier, c: float) -> None:
    score = UnifiedScore(-5.0, 2.0, 0.3, 0.1, 0.3, c)
    bank = bank_of(classifier)
    module = DetectorModule(classifier, bank, score, np.linspace(-3, 3, 99), DetectorConfig())
    with torch.no_grad():
        _, energy, distance, found, p_value, _ = module((TEST + 1) / 2)
    expected = score(energy.double().numpy(), distance.double().numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    counted = (1 + (np.linspace(-3, 3, 99)[None] >= found.numpy()[:, None]).sum(1)) / 100
    np.testing.assert_allclose(p_value, counted, atol=0.0101)


def test_an_image_of_the_bank_has_distance_0(
    module: DetectorModule, config: DetectorConfig
) -> None:
    with torch.no_grad():
        distance = module((BANK[:20] + 1) / 2)[2]
    assert (distance < 1e-3).all() == (config.k == 1)


def test_at_most_alpha_of_new_id_images_is_refused_but_for_chance(module: DetectorModule) -> None:
    images = from_uint8(assets.load_images("held_out").images[1000:1400])
    with torch.no_grad():
        p_value = module((images + 1) / 2)[4].numpy()
    # 99 calibration scores: the refused share is Beta(α·100, (1−α)·100), 400 images add their own
    # noise
    for alpha in (0.05, 0.2):
        assert (p_value <= alpha).mean() <= alpha + 4 * np.sqrt(
            alpha * (1 - alpha) * (1 / 100 + 1 / 400)
        )


def test_too_few_calibration_images_and_too_large_k_are_refused(classifier: Classifier) -> None:
    with pytest.raises(
        GoodRtError, match=r"alpha 0\.05 needs at least 19 calibration images, there are 18"
    ):
        build_module(classifier, bank_of(classifier), KNOWN, CALIBRATION[:18], [OOD])
    with pytest.raises(GoodRtError, match="k must be between 1 and 5"):
        build_module(
            classifier, bank_of(classifier, 5), KNOWN, CALIBRATION, [OOD], DetectorConfig(k=6)
        )


def test_the_detectors_of_the_fixtures_agree(detector_module: DetectorModule, id_dir: Path) -> None:
    assert len(detector_module.bank) == 400
    assert len(detector_module.calibration) == 120
    assert (detector_module.calibration.diff() >= 0).all()
