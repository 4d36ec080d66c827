"""The objectives against independent formulas, in values and gradients; and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import expit, logsumexp
from sklearn.covariance import LedoitWolf
from torch import Tensor

from good_rt.classifier import Classifier, IdFeatures, predict
from good_rt.config.settings import ObjectiveName, TrainConfig
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.errors import GoodRtError
from good_rt.method.objective import OBJECTIVES, Objective, regulariser_weight
from good_rt.method.objective.contrastive import ANCHORS, ContrastiveObjective
from good_rt.method.objective.hinge import HingeObjective, automatic_margins
from good_rt.method.objective.logistic import LogisticObjective
from good_rt.method.objective.mahalanobis import FIT_EVERY, MahalanobisObjective
from good_rt.method.objective.separation import MonotoneHead
from good_rt.method.objective.uniform import UniformObjective
from good_rt.method.outputs import BatchOutputs, OriginalOutputs
from good_rt.method.training_data import TrainingImages

CLASSES, SIZE = 4, 6
M_IN, M_OUT = -8.0, -1.0


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int = 0, known: int = 9, ood: int = 5) -> BatchOutputs:
    """Outputs in float64 whose logits and features take gradients; some classes occur once."""
    labels = torch.arange(known) % CLASSES
    centres = 3 * numbers(7, CLASSES, SIZE).abs()
    features = torch.cat([centres[labels], centres.mean(dim=0).expand(ood, -1)])
    features = features + 0.5 * numbers(seed, known + ood, SIZE)
    logits = 2 * numbers(seed + 1, known + ood, CLASSES)
    logits[:known] += 4 * F.one_hot(labels, CLASSES)
    return BatchOutputs(logits.requires_grad_(), features.requires_grad_(), labels)


def single(seed: int, known: int = 12, ood: int = 4) -> BatchOutputs:
    """`batch` in float32, without gradients."""
    outputs = batch(seed, known, ood).detach()
    return BatchOutputs(outputs.logits.float(), outputs.features.float(), outputs.labels)


def known_features(seed: int = 3, images: int = 200) -> IdFeatures:
    outputs = batch(seed, known=images, ood=1).detach()
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return IdFeatures(outputs.features[order].float(), outputs.labels[order], CLASSES)


def made(name: str) -> Objective:
    """An objective in float64, with a head that is not at its start."""
    objective: Objective = {
        "logistic": LogisticObjective,
        "hinge": lambda: HingeObjective(M_IN, M_OUT),
        "uniform": UniformObjective,
        "mahalanobis": lambda: MahalanobisObjective(known_features(), 150),
        "contrastive": ContrastiveObjective,
    }[name]()
    objective.double()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.fill_(0.7)
    return objective


def logistic(objective: Objective, outputs: BatchOutputs) -> float:
    logits, count = outputs.logits.detach().numpy(), len(outputs.labels)
    p = expit(np.exp(0.7) * (logsumexp(logits, axis=1) - 0.7))
    return float(-np.log(np.concatenate([p[:count], 1 - p[count:]])).mean())


def hinge(objective: Objective, outputs: BatchOutputs) -> float:
    energies = -logsumexp(outputs.logits.detach().numpy(), axis=1)
    known = [max(0, energy - M_IN) ** 2 for energy in energies[: len(outputs.labels)]]
    ood = [max(0, M_OUT - energy) ** 2 for energy in energies[len(outputs.labels) :]]
    return float((np.mean(known) + np.mean(ood)) / (M_OUT - M_IN) ** 2)


def uniform(objective: Objective, outputs: BatchOutputs) -> float:
    ood = outputs.logits[len(outputs.labels) :].detach()
    return float(F.cross_entropy(ood, torch.full_like(ood, 1 / CLASSES)))


def mahalanobis(objective: Objective, outputs: BatchOutputs) -> float:
    """From scikit-learn's covariances and scipy's distances; every other feature fits, the others
    standardise."""
    known = known_features()
    fit, rest = known.features[::2].double().numpy(), known.features[1::2].double().numpy()
    labels = known.labels[::2].numpy()
    asked = outputs.features.detach().numpy()

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def squared(fitted: np.ndarray, groups: np.ndarray, x: np.ndarray) -> np.ndarray:
        means = np.stack([fitted[groups == group].mean(axis=0) for group in np.unique(groups)])
        covariance = LedoitWolf(assume_centered=True).fit(fitted - means[groups]).covariance_
        return cdist(x, means, "mahalanobis", VI=np.linalg.inv(covariance)).min(axis=1) ** 2

    def distances(x: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                squared(unit(fit), labels, unit(x)),
                squared(fit, labels, x) - squared(fit, np.zeros_like(labels), x),
            ],
            axis=1,
        )

    reference = distances(rest)
    u = ((distances(asked) - reference.mean(axis=0)) / reference.std(axis=0)).mean(axis=1)
    p, count = expit(np.exp(0.7) * (-u - 0.7)), len(outputs.labels)
    return float(-np.log(np.concatenate([p[:count], 1 - p[count:]])).mean())


def contrastive(objective: Objective, outputs: BatchOutputs) -> float:
    """Eq. 2 of Khosla et al., sum by sum."""
    z = F.normalize(outputs.features.detach(), dim=1).numpy()
    labels = outputs.labels.tolist()
    losses = []
    for i, label in enumerate(labels):
        positives = [p for p, other in enumerate(labels) if other == label and p != i]
        if not positives:
            continue
        total = sum(np.exp(z[i] @ z[a] / 0.1) for a in range(len(z)) if a != i)
        logs = [np.log(np.exp(z[i] @ z[p] / 0.1) / total) for p in positives]
        losses.append(-sum(logs) / len(positives))
    return float(np.mean(losses))


FORMULAS: dict[str, Callable[[Objective, BatchOutputs], float]] = {
    "logistic": logistic,
    "hinge": hinge,
    "uniform": uniform,
    "mahalanobis": mahalanobis,
    "contrastive": contrastive,
}


def test_settings_name_the_objectives() -> None:
    assert set(get_args(ObjectiveName)) == set(OBJECTIVES) == set(FORMULAS)
    assert TrainConfig().objective == "logistic"


def test_the_shown_default_weights_are_those_of_the_objectives() -> None:
    weights = {name: regulariser_weight(TrainConfig(objective=name)) for name in OBJECTIVES}
    assert weights == {
        "logistic": 3.0, "hinge": 3.0, "mahalanobis": 3.0, "uniform": 0.5, "contrastive": 0.5
    }  # fmt: skip
    assert regulariser_weight(TrainConfig(objective="uniform", weight=2.0)) == 2.0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_value_is_the_formulas(name: str, seed: int) -> None:
    objective, outputs = made(name), batch(seed, known=9 + seed)
    expected = FORMULAS[name](objective, outputs)
    # the fitted Gaussians are float32
    rounding = 1e-4 if name == "mahalanobis" else 1e-10
    assert float(objective(outputs).detach()) == pytest.approx(expected, rel=rounding)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_gradient_is_the_values(name: str) -> None:
    """Against finite differences in float64, for logits, features and the head."""
    objective, outputs = made(name), batch(4)

    def value(logits: Tensor, features: Tensor, *parameters: Tensor) -> Tensor:
        names = [name for name, _ in objective.named_parameters()]
        of_batch = BatchOutputs(logits, features, outputs.labels)
        return torch.func.functional_call(
            objective, dict(zip(names, parameters, strict=True)), of_batch
        )

    inputs = outputs.logits, outputs.features, *objective.parameters()
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "reached", "of_id"),
    [
        ("logistic", "logits", True),
        ("hinge", "logits", True),
        ("uniform", "logits", False),
        ("mahalanobis", "features", True),
        ("contrastive", "features", True),
    ],
)
def test_the_gradient_reaches_the_network(name: str, reached: str, of_id: bool) -> None:
    objective, outputs = made(name), batch(5, known=12, ood=6)
    objective(outputs).backward()
    gradient = getattr(outputs, reached).grad.abs().sum(dim=1)
    assert bool(gradient[12:].any()) and bool(gradient[:12].any()) == of_id


def test_uniform_is_torchs_cross_entropy_with_uniform_targets_in_its_gradient() -> None:
    outputs = batch(6)
    ood = outputs.logits[9:].detach().requires_grad_()
    UniformObjective()(outputs).backward()
    F.cross_entropy(ood, torch.full_like(ood, 1 / CLASSES)).backward()
    assert outputs.logits.grad is not None
    torch.testing.assert_close(outputs.logits.grad[9:], ood.grad)


def test_ood_images_are_only_negatives_of_the_contrastive_loss() -> None:
    """A batch without pairs of a class has no anchor, whatever its OOD images are."""
    outputs = batch(0, known=CLASSES)
    loss = ContrastiveObjective()(outputs)
    loss.backward()
    assert float(loss.detach()) == 0 and outputs.features.grad is not None
    assert not outputs.features.grad.any()


def test_many_anchors_are_compared_in_parts() -> None:
    outputs = batch(1, known=ANCHORS + 40, ood=3)
    found = float(ContrastiveObjective()(outputs).detach())
    assert found == pytest.approx(contrastive(ContrastiveObjective(), outputs), rel=1e-10)


@pytest.mark.parametrize("name", ["logistic", "mahalanobis"])
def test_held_out_id_and_ood_images_have_the_same_weight(name: str) -> None:
    objective, outputs = made(name), batch(2, known=12, ood=3)
    ood_four_times = BatchOutputs(
        torch.cat([outputs.logits, *[outputs.logits[12:]] * 3]),
        torch.cat([outputs.features, *[outputs.features[12:]] * 3]),
        outputs.labels,
    )
    with torch.no_grad():
        held_out = float(objective.held_out(outputs))
        assert held_out == pytest.approx(float(objective(ood_four_times)), rel=1e-12)
        assert held_out == pytest.approx(float(objective.held_out(ood_four_times)), rel=1e-12)


energies = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@settings(deadline=None)
@given(energies, energies | st.just([]))
def test_margins_are_ordered(known: list[float], ood: list[float]) -> None:
    try:
        m_in, m_out = automatic_margins(torch.tensor(known), torch.tensor(ood))
    except GoodRtError:  # nothing between which a margin could lie
        assert np.std(np.array(known, np.float64)) <= 1e-9 * max(map(abs, known), default=0)
        return
    assert m_in < m_out
    objective = HingeObjective(m_in, m_out)
    assert objective.m_in < objective.m_out
    assert m_in == pytest.approx(np.median(np.array(known, np.float64)))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50))
def test_the_hinge_does_not_depend_on_the_energies_unit(
    seed: int, unit: float, zero: float
) -> None:
    """Energies that are all multiplied and shifted have the margins multiplied and shifted, and the
    same loss."""
    known, ood = numbers(seed, 30), numbers(seed + 1, 10) + 1
    margins = np.array(automatic_margins(known, ood))
    others = automatic_margins(unit * known + zero, unit * ood + zero)
    np.testing.assert_allclose(others, unit * margins + zero, rtol=1e-9, atol=1e-9)

    def loss(margins: tuple[float, float], energies: Tensor) -> float:
        outputs = BatchOutputs(-energies[:, None], torch.zeros(40, 1), torch.zeros(30).long())
        return float(HingeObjective(*margins)(outputs))

    both = torch.cat([known, ood])
    first = loss((float(margins[0]), float(margins[1])), both)
    assert loss(others, unit * both + zero) == pytest.approx(first, rel=1e-6)


def test_margins_of_near_generated_images_leave_the_id_energies() -> None:
    """Generated images within the ID energies are drawn to their tail; far ones set the margin."""
    known = torch.arange(101.0)
    assert automatic_margins(known, torch.full((9,), 60.0)) == (50.0, 95.0)
    assert automatic_margins(known, torch.full((9,), 140.0)) == (50.0, 140.0)
    assert automatic_margins(known, torch.zeros(0)) == (50.0, 95.0)


@pytest.mark.parametrize("value", [3.0, np.nan])
def test_energies_that_do_not_vary_are_refused(value: float) -> None:
    with pytest.raises(GoodRtError, match="energies of held-out images do not vary"):
        automatic_margins(torch.full((5,), value), torch.full((5,), value))


def test_ids_of_one_class_are_refused_by_mahalanobis() -> None:
    one_class = IdFeatures(known_features().features, torch.ones(200).long(), CLASSES)
    with pytest.raises(GoodRtError, match="needs ID images of two or more classes; choose"):
        MahalanobisObjective(one_class, 100)


def test_mahalanobis_follows_the_features() -> None:
    """After `FIT_EVERY` steps it is what it would be of the latest features; before, it is as at
    the start."""
    objective, outputs = MahalanobisObjective(known_features(), 120), single(8)
    start = objective.discrepancy(outputs)
    latest = []
    for step in range(1, FIT_EVERY + 1):
        assert torch.equal(objective.discrepancy(outputs), start)
        made_batch = single(100 + step)
        objective.update(made_batch, step)
        latest.append(made_batch)
    features = torch.cat([each.features[:12] for each in latest])[-120:]
    labels = torch.cat([each.labels for each in latest])[-120:]
    assert torch.equal(objective.features, features) and torch.equal(objective.labels, labels)
    again = MahalanobisObjective(IdFeatures(features, labels, CLASSES), 120)
    assert torch.equal(objective.discrepancy(outputs), again.discrepancy(outputs))
    assert not torch.allclose(objective.discrepancy(outputs), start, rtol=1e-3)


def test_mahalanobis_is_fitted_as_before_while_one_class_is_missing() -> None:
    objective = MahalanobisObjective(known_features(), 30)
    start = objective.mean
    one_class = single(1, known=40, ood=1)
    one_class = BatchOutputs(one_class.logits, one_class.features, torch.zeros(40).long())
    objective.update(one_class, FIT_EVERY)
    assert objective.mean is start


def test_mahalanobis_continues_from_its_state_of_another_size() -> None:
    objective, outputs = MahalanobisObjective(known_features(), 150), single(8)
    objective.update(single(9), FIT_EVERY)
    state = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    other = MahalanobisObjective(known_features(seed=5, images=40), 150)
    other.restore(state)
    assert torch.equal(other(outputs), objective(outputs))
    objective.update(single(10), 2 * FIT_EVERY)
    other.update(single(10), 2 * FIT_EVERY)
    assert torch.equal(other(outputs), objective(outputs))


def test_heads_start_half_way_between_id_and_generated_images(classifier: Classifier) -> None:
    train, val = assets.load_images("train"), assets.load_images("held_out")
    assert train.labels is not None and val.labels is not None
    ood = from_uint8(assets.load_images("textures").images[:20])
    data = TrainingImages(
        from_uint8(train.images[:200]), torch.from_numpy(train.labels[:200]),
        from_uint8(val.images[:60]), torch.from_numpy(val.labels[:60]), ood=ood, val_ood=ood,
    )  # fmt: skip
    original = OriginalOutputs(classifier, data)
    for kind in (LogisticObjective, MahalanobisObjective):
        objective = kind.start(original)
        discrepancies = objective.discrepancy(original.held_out)
        known, generated = discrepancies[:60].mean(), discrepancies[60:].mean()
        assert objective.head.middle.item() == pytest.approx(-float(known + generated) / 2)
    hinge = HingeObjective.start(original)
    known = -predict(classifier, data.val_images)[0].logsumexp(dim=1)
    assert float(hinge.m_in) == pytest.approx(float(known.double().quantile(0.5)))


def test_a_head_is_increasing() -> None:
    head, numbers = MonotoneHead(2.0), torch.linspace(-9, 9, 50)
    with torch.no_grad():
        head.log_slope -= 5
    assert bool((head(numbers).diff() > 0).all())
