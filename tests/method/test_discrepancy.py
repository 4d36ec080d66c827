"""The discrepancies against scikit-learn, scipy and autograd; and what they refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from torch import Tensor

from good_rt.classifier import IdFeatures
from good_rt.errors import GoodRtError
from good_rt.method.bank import FeatureBank
from good_rt.method.discrepancy import (
    DISCREPANCIES,
    TITLES,
    Discrepancy,
    DiscrepancyConfig,
    fit_discrepancy,
)
from good_rt.method.discrepancy.energy import Energy, image_level
from good_rt.method.discrepancy.knn import KnnDistance
from good_rt.method.discrepancy.mahalanobis import FittedGaussians, Gaussians, Mahalanobis
from good_rt.method.discrepancy.relative_mahalanobis import RelativeMahalanobis

ROUNDING = 5e-4
"""Of squared distances near 0, which are differences of squared norms of up to 4,000."""
MAHALANOBIS = ("mahalanobis", "relative_mahalanobis")
Array = NDArray[np.float64]


def clusters(
    images: int = 300, size: int = 12, classes: int = 4, dead: int = 0, seed: int = 0
) -> IdFeatures:
    """Features after a ReLU around one centre a class, with correlated noise, in float32.

    Args:
        images: M.
        size: D.
        classes: K, each with images.
        dead: The last so many features are 0 for all images.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    centres, mixing = rng.normal(3, 2, (classes, size)), rng.normal(0, 0.5, (size, size))
    labels = np.arange(images) % classes
    features = (centres[labels] + rng.normal(size=(images, size)) @ mixing).clip(0)
    features[:, size - dead :] = 0
    return IdFeatures(torch.from_numpy(features).float(), torch.from_numpy(labels), classes)


CASES = {
    "plain": clusters(),
    "dead features": clusters(dead=5),
    "more features than images": clusters(images=24, size=60),
    "one image a class": clusters(images=30, size=8, classes=29),
    "features of very different scale": IdFeatures(
        clusters().features * torch.logspace(-3, 3, 12), clusters().labels, 4
    ),
}


def queries(case: IdFeatures, seed: int = 9) -> Tensor:
    """ID features, features between and far from all, and far outliers; float32 (N, D)."""
    draw = torch.Generator().manual_seed(seed)
    spread = case.features.std(dim=0)
    noise = torch.randn(20, case.features.shape[1], generator=draw)
    return torch.cat(
        [
            case.features[:20],
            case.features[:20].roll(1, dims=0) + spread * noise,
            100 * spread * noise.abs(),
            case.features.mean(dim=0) + 1e4 * spread * noise[:5],
            case.features[:3] + noise[:3],  # in directions without any spread too
        ]
    )


def logits_of(features: Tensor) -> Tensor:
    return features[:, :3].contiguous()


def unit(features: Array) -> Array:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def squared_distances(train: Array, labels: Array, points: Array) -> Array:
    """(N, C) squared Mahalanobis distances by scikit-learn's covariance and scipy."""
    classes = np.unique(labels)
    means = np.stack([train[labels == label].mean(axis=0) for label in classes])
    residuals = train - means[np.searchsorted(classes, labels)]
    precision = LedoitWolf(assume_centered=True).fit(residuals).precision_
    squared: Array = cdist(points, means, metric="mahalanobis", VI=precision) ** 2
    return squared


def by_definition(name: str, case: IdFeatures, points: Tensor) -> Array:
    """A Mahalanobis discrepancy in float64."""
    train, of_points = case.features.double().numpy(), points.double().numpy()
    labels = case.labels.numpy()
    if name == "mahalanobis":
        return squared_distances(unit(train), labels, unit(of_points)).min(axis=1)
    background = squared_distances(train, np.zeros_like(labels), of_points)[:, 0]
    return squared_distances(train, labels, of_points).min(axis=1) - background


def double(module: Discrepancy) -> Discrepancy:
    return copy.deepcopy(module).double()


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("name", MAHALANOBIS)
def test_mahalanobis_distances_are_those_of_scikit_learn(name: str, case: str) -> None:
    points = queries(CASES[case])
    found = fit_discrepancy(name, CASES[case])(logits_of(points), points)
    assert found.dtype == torch.float32
    expected = by_definition(name, CASES[case], points)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=ROUNDING)


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("name", list(DISCREPANCIES))
def test_float32_graphs_agree_with_float64(name: str, case: str) -> None:
    """As in detector.onnx; also far from all ID images, and where features are constant."""
    points, fitted = queries(CASES[case]), fit_discrepancy(name, CASES[case])
    with torch.no_grad():
        found = fitted.graph()(logits_of(points), points).double()
        expected = double(fitted)(logits_of(points).double(), points.double())
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=ROUNDING)


def test_the_squared_distance_to_each_class_is_not_negative() -> None:
    case = CASES["plain"]
    at_means = torch.stack([case.features[case.labels == c].mean(dim=0) for c in range(4)])
    squared = Gaussians(FittedGaussians.of(case.features, case.labels))(at_means)
    assert squared.shape == (4, 4)
    assert squared.diagonal().abs().max() < 1e-4
    assert squared.min() > -1e-4


def test_ood_is_farther_than_id() -> None:
    case = CASES["plain"]
    fresh = clusters(seed=0, images=600)
    far = torch.randn(100, 12, generator=torch.Generator().manual_seed(1)).abs() * 4
    for name in ("knn_distance", *MAHALANOBIS):
        one = fit_discrepancy(name, case)
        known = one(logits_of(fresh.features), fresh.features)
        assert one(logits_of(far), far).median() > known.quantile(0.95), name


@pytest.mark.parametrize("name", list(DISCREPANCIES))
def test_a_value_does_not_depend_on_other_images(name: str) -> None:
    points, one = queries(CASES["plain"]), fit_discrepancy(name, CASES["plain"])
    together = one(logits_of(points), points)
    alone = torch.cat([one(logits_of(point), point) for point in points.split(1)])
    assert together.shape == (len(points),)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(DISCREPANCIES))
def test_nan_propagates(name: str) -> None:
    points, one = queries(CASES["plain"])[:4].clone(), fit_discrepancy(name, CASES["plain"])
    points[2, 0] = torch.nan
    # faiss takes finite features only
    for module in (one.graph(),) if name == "knn_distance" else (one, one.graph()):
        assert module(logits_of(points), points).isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", list(DISCREPANCIES))
def test_gradients(name: str) -> None:
    case = CASES["plain"]
    one = double(fit_discrepancy(name, case, DiscrepancyConfig(k=3, temperature=2.0)))
    points = queries(case)[20:26].double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: one(logits_of(x), x), points)
    assert torch.autograd.gradcheck(lambda x: one.graph().double()(logits_of(x), x), points)


@pytest.mark.parametrize("k", [1, 4, 300])
def test_the_knn_graph_is_the_knn_distance(k: int) -> None:
    case = CASES["plain"]
    one = KnnDistance(FeatureBank.of(case.features), k)
    points = queries(case)[20:]
    values, gradients = [], []
    for module in (one, one.graph()):
        leaf = points.clone().requires_grad_(True)
        values.append(module(logits_of(leaf), leaf))
        gradients += torch.autograd.grad(values[-1].sum(), leaf)
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    bank, unit_points = F.normalize(case.features, dim=1), F.normalize(points, dim=1)
    expected = torch.cdist(unit_points.double(), bank.double()).sort(dim=1).values[:, k - 1]
    torch.testing.assert_close(values[0].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["knn_distance", "mahalanobis"])
def test_the_norm_of_a_feature_does_not_matter(name: str) -> None:
    case = CASES["plain"]
    points, one = queries(case)[:40], fit_discrepancy(name, case)
    scaled = fit_discrepancy(name, IdFeatures(7 * case.features, case.labels, case.classes))
    expected = one(logits_of(points), points)
    for module in (one, scaled):
        found = module(logits_of(points), 0.3 * points)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_relative_mahalanobis_is_of_raw_features() -> None:
    case = CASES["plain"]
    points, one = queries(case)[:40], fit_discrepancy("relative_mahalanobis", case)
    assert not torch.allclose(
        one(logits_of(points), 0.3 * points), one(logits_of(points), points), rtol=0.1
    )


@pytest.mark.parametrize("name", MAHALANOBIS)
def test_classes_without_images_do_not_count(name: str) -> None:
    case = CASES["plain"]
    gaps = IdFeatures(case.features, 3 * case.labels + 1, 20)
    points = queries(case)
    found, expected = (
        fit_discrepancy(name, one)(logits_of(points), points) for one in (gaps, case)
    )
    assert torch.equal(found, expected)


def test_labels_that_skip_a_gaussian_are_refused() -> None:
    with pytest.raises(GoodRtError, match="no ID image is of class 1, so the Mahalanobis distance"):
        FittedGaussians.of(torch.randn(10, 3), torch.tensor([0, 2] * 5))


def test_one_class_suffices_for_mahalanobis_only() -> None:
    case = clusters(classes=1)
    points = queries(case)
    found = fit_discrepancy("mahalanobis", case)(logits_of(points), points)
    np.testing.assert_allclose(found, by_definition("mahalanobis", case, points), rtol=1e-3)
    with pytest.raises(GoodRtError, match="compares classes, and all ID images are of one; choose"):
        fit_discrepancy("relative_mahalanobis", case)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    features = CASES["plain"].features.clone()
    features[17, 3] = bad
    with pytest.raises(GoodRtError, match="features of ID image 17 are not finite; check"):
        IdFeatures(features, CASES["plain"].labels, 4)


@pytest.mark.parametrize("shape", [(0, 4), (5,), (5, 2, 2)])
def test_what_is_no_matrix_of_features_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GoodRtError, match=r"\(M, D\) matrix of features with M > 0"):
        IdFeatures(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64), 2)


@pytest.mark.parametrize("name", MAHALANOBIS)
def test_features_that_do_not_vary_are_refused(name: str) -> None:
    same = IdFeatures(torch.ones(8, 5), torch.arange(8) % 2, 2)
    with pytest.raises(GoodRtError, match="features of ID images do not vary; the classifier is"):
        fit_discrepancy(name, same)


def test_an_unknown_discrepancy_is_refused() -> None:
    with pytest.raises(
        GoodRtError, match="no discrepancy 'euclid'; there are energy, knn_distance"
    ):
        fit_discrepancy("euclid", CASES["plain"])


def test_the_energy_uses_its_temperature_only() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    one = fit_discrepancy("energy", CASES["plain"], DiscrepancyConfig(temperature=2.5))
    assert isinstance(one, Energy) and one.parameters_used() == {"temperature": 2.5}
    assert torch.equal(one(logits, torch.zeros(5, 2)), image_level(logits, 2.5))


def test_every_discrepancy_has_a_title_and_fits_its_own_class() -> None:
    assert TITLES.keys() == DISCREPANCIES.keys() and len(set(TITLES.values())) == len(TITLES)
    kinds = {
        "energy": Energy,
        "knn_distance": KnnDistance,
        "mahalanobis": Mahalanobis,
        "relative_mahalanobis": RelativeMahalanobis,
    }
    for name, kind in kinds.items():
        one = fit_discrepancy(name, CASES["plain"])
        assert type(one) is kind and one.name == name and one.title == TITLES[name]
        assert not one.training
