"""Scores of other papers, against their formulas in NumPy, scikit-learn and our own scores, and who
gets none. Without pytorch-ood, only its absence is tested."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from scipy.stats import spearmanr
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.neighbors import NearestNeighbors
from torch import nn

from good_rt.classifier import Classifier, IdFeatures, load_classifier, outputs
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.errors import GoodRtError
from good_rt.evaluation.results import Evaluation
from good_rt.method.scores import LOGIT_SCORES
from good_rt.workflow.evaluate import ReportPage, evaluate
from good_rt.workflow.job_file import Job
from good_rt.workflow.peers import (
    PEERS,
    PeerFit,
    PeerScores,
    ScoredImages,
    adascale,
    array_batches,
    linear_head,
    peer_scores,
    score_with_peers,
)
from good_rt.workflow.run import run_job

Floats = NDArray[np.float64]
ID_IMAGES = 300
SETS = ("test", "near", "textures")


@pytest.fixture(scope="module")
def detectors() -> Any:
    return pytest.importorskip("pytorch_ood.detector", exc_type=ImportError)


def images(name: str, count: int = 60) -> NDArray[np.uint8]:
    return assets.load_images(name).images[:count]


@pytest.fixture(scope="module")
def sets() -> dict[str, NDArray[np.uint8]]:
    return {name: images(name) for name in SETS}


@pytest.fixture(scope="module")
def labels() -> NDArray[np.int64]:
    found = assets.load_images("train").labels
    assert found is not None
    return found[:ID_IMAGES]


@pytest.fixture(scope="module")
def fit(classifier: Classifier, labels: NDArray[np.int64], detectors: Any) -> PeerFit:
    batches = array_batches(images("train", ID_IMAGES))
    _, features = outputs(classifier, batches())
    return PeerFit.of(classifier, IdFeatures(features, torch.from_numpy(labels), 8), batches)


@pytest.fixture(scope="module")
def scored(
    classifier: Classifier,
    labels: NDArray[np.int64],
    sets: dict[str, NDArray[np.uint8]],
    detectors: Any,
) -> PeerScores:
    return peer_scores(classifier, images("train", ID_IMAGES), labels, sets)


@pytest.fixture(scope="module")
def arrays(classifier: Classifier, labels: NDArray[np.int64]) -> dict[str, Any]:
    """What the formulas below take, in double precision: ID features x, features z and
    logits f of test images, weights w and b."""
    x = outputs(classifier, from_uint8(images("train", ID_IMAGES)))[1].double().numpy()
    f, z = (part.double().numpy() for part in outputs(classifier, from_uint8(images("near"))))
    head: Any = classifier.network.head
    w, b = (part.detach().double().numpy() for part in (head.weight, head.bias))
    return {"x": x, "y": labels, "z": z, "f": f, "w": w, "b": b}


def energy(features: Floats, w: Floats, b: Floats) -> Floats:
    return -logsumexp(features @ w.T + b, axis=1)


def largest(row: Floats, pruned: float) -> Floats:
    """The activations that remain when a share is pruned, as a mask."""
    kept = len(row) - round(len(row) * pruned)
    return np.isin(np.arange(len(row)), np.argsort(-row, kind="stable")[:kept])


def generalised_entropy(f: Floats, **_: Any) -> Floats:
    p = softmax(f, axis=1).clip(1e-7, 1 - 1e-7)
    return (p**0.1 * (1 - p) ** 0.1).mean(axis=1)


def react(x: Floats, z: Floats, w: Floats, b: Floats, **_: Any) -> Floats:
    return energy(np.minimum(z, np.percentile(x, 90)), w, b)


def dice(x: Floats, z: Floats, w: Floats, b: Floats, **_: Any) -> Floats:
    contribution = x.mean(axis=0) * w
    return energy(z, np.where(contribution > np.quantile(contribution, 0.9), w, 0), b)


def ash_s(z: Floats, w: Floats, b: Floats, **_: Any) -> Floats:
    rows = []
    for row in z:
        kept = row * largest(row, 0.65)
        rows.append(kept * np.exp(row.sum() / kept.sum()))
    return energy(np.array(rows), w, b)


def scale(z: Floats, w: Floats, b: Floats, **_: Any) -> Floats:
    factors = [np.exp(row.sum() / row[largest(row, 0.65)].sum()) for row in z]
    return energy(z * np.array(factors)[:, None], w, b)


def vim(x: Floats, z: Floats, w: Floats, b: Floats, **_: Any) -> Floats:
    origin = -np.linalg.pinv(w) @ b
    _, vectors = np.linalg.eigh((x - origin).T @ (x - origin))
    residual = vectors[:, : w.shape[1] - w.shape[1] // 2]
    alpha = (x @ w.T + b).max(axis=1).mean()
    alpha /= np.linalg.norm((x - origin) @ residual, axis=1).mean()
    return alpha * np.linalg.norm((z - origin) @ residual, axis=1) + energy(z, w, b)


def she(x: Floats, y: Any, z: Floats, f: Floats, w: Floats, b: Floats) -> Floats:
    right = (x @ w.T + b).argmax(axis=1) == y
    patterns = np.stack([x[right & (y == c)].mean(axis=0) for c in range(8)])
    return -(z * patterns[f.argmax(axis=1)]).sum(axis=1)


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nnguide(x: Floats, z: Floats, w: Floats, b: Floats, **_: Any) -> Floats:
    bank = -energy(x, w, b)[:, None] * unit(x)
    return np.sort(unit(z) @ bank.T, axis=1)[:, -10:].mean(axis=1) * energy(z, w, b)


def fdbd(x: Floats, z: Floats, f: Floats, w: Floats, **_: Any) -> Floats:
    scores = []
    for feature, logits in zip(z, f, strict=True):
        c = logits.argmax()
        distances = [
            (logits[c] - logits[d]) / np.linalg.norm(w[c] - w[d]) for d in range(8) if d != c
        ]
        scores.append(-np.mean(distances) / np.linalg.norm(feature - x.mean(axis=0)))
    return np.array(scores)


def knn(x: Floats, z: Floats, **_: Any) -> Floats:
    distances, _ = NearestNeighbors(n_neighbors=50).fit(unit(x)).kneighbors(unit(z))
    return distances[:, -1]


def dual_cache(x: Floats, y: Any, z: Floats, f: Floats, w: Floats, b: Floats) -> Floats:
    means = unit(np.stack([unit(x)[y == c].mean(axis=0) for c in range(8)]))
    similarity = [
        sum(means[i, d] * means[j, d] for i in range(8) for j in range(8) if i != j) / 64
        for d in range(x.shape[1])
    ]
    order = np.argsort(np.array(similarity) - means.var(axis=0))
    rows = [row for c in range(8) for row in np.flatnonzero(y == c)[:16]]
    logits = []
    for channels in np.array_split(order, 2):
        affinity = np.exp(-5.5 * (1 - unit(z[:, channels]) @ unit(x[rows][:, channels]).T))
        cached = np.stack([affinity[:, y[rows] == c].sum(axis=1) for c in range(8)], axis=1)
        logits.append(z[:, channels] @ w[:, channels].T + b + cached)
    probabilities = softmax(np.concatenate(logits, axis=1), axis=1)
    return -np.log(probabilities[:, :8].max(axis=1))


FORMULAS: dict[str, Callable[..., Floats]] = {
    "GEN": generalised_entropy,
    "KNN (k = 50)": knn,
    "ViM": vim,
    "ReAct": react,
    "DICE": dice,
    "ASH-S": ash_s,
    "SCALE": scale,
    "SHE": she,
    "NNGuide": nnguide,
    "fDBD": fdbd,
    "Dual cache": dual_cache,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_peer_is_the_papers_formula(name: str, scored: PeerScores, arrays: dict[str, Any]) -> None:
    np.testing.assert_allclose(
        scored.scores[name]["near"], FORMULAS[name](**arrays), rtol=2e-3, atol=1e-4
    )


def test_every_peer_scores_every_set(
    scored: PeerScores, sets: dict[str, NDArray[np.uint8]]
) -> None:
    assert scored.left_out == {}
    assert list(scored.scores) == [*LOGIT_SCORES, *PEERS]
    for by_set in scored.scores.values():
        assert {name: values.shape for name, values in by_set.items()} == {
            name: (len(of_set),) for name, of_set in sets.items()
        }
        assert len(np.unique(by_set["near"])) > 10


def test_peers_learn_nothing_from_the_sets_they_score(
    classifier: Classifier, labels: NDArray[np.int64], scored: PeerScores
) -> None:
    """An image's score does not depend on the other images, nor on which sets there are."""
    some = images("near")[20:45][::-1]
    alone = peer_scores(classifier, images("train", ID_IMAGES), labels, {"some": some})
    for name, by_set in scored.scores.items():
        np.testing.assert_allclose(
            alone.scores[name]["some"], by_set["near"][20:45][::-1], rtol=1e-3, atol=1e-4
        )


def test_scores_of_logits_are_pytorch_oods_too(
    scored: PeerScores, arrays: dict[str, Any], detectors: Any
) -> None:
    logits = torch.from_numpy(arrays["f"])
    for name, peer in (("MaxLogit", "MaxLogit"), ("Energy", "EnergyBased")):
        expected = getattr(detectors, peer)(None).predict_logits(logits)
        np.testing.assert_allclose(scored.scores[name]["near"], expected, rtol=1e-5)
    expected = 1 + detectors.MaxSoftmax(None).predict_logits(logits)
    np.testing.assert_allclose(scored.scores["MSP"]["near"], expected, atol=1e-6)


def test_gaussian_peers_against_scikit_learn(scored: PeerScores, arrays: dict[str, Any]) -> None:
    x, y, z = arrays["x"], arrays["y"], arrays["z"]
    means = np.stack([x[y == c].mean(axis=0) for c in range(8)])
    within = EmpiricalCovariance(assume_centered=True).fit(x - means[y])
    to_class = np.stack([within.mahalanobis(z - mean) for mean in means], axis=1).min(axis=1)
    background = EmpiricalCovariance().fit(x).mahalanobis(z)
    # pytorch-ood's covariances are sums over the images, and its raw distance is halved
    raw, relative = (scored.scores[name]["near"] for name in ("Mahalanobis (raw)", "RMD"))
    np.testing.assert_allclose(2 * len(x) * raw, to_class, rtol=0.02)
    np.testing.assert_allclose(
        len(x) * relative, to_class - background, rtol=0.02, atol=0.02 * background.max()
    )
    shrunk = LedoitWolf(assume_centered=True).fit(x - means[y])
    robust = np.stack([shrunk.mahalanobis(z - mean) for mean in means], axis=1).min(axis=1)
    assert spearmanr(raw, robust).statistic > 0.8


def test_odin_peer_is_the_papers_formula(classifier: Classifier, scored: PeerScores) -> None:
    inputs = from_uint8(images("near")).requires_grad_()
    logits, _ = classifier(inputs)
    loss = -(logits / 1000).log_softmax(dim=1).amax(dim=1).sum()
    loss.backward()
    assert inputs.grad is not None
    moved = inputs.detach() - 2 * 0.0014 * inputs.grad.sign()  # [-1, 1] is twice as wide as [0, 1]
    expected = -softmax(outputs(classifier, moved)[0].double().numpy() / 1000, axis=1).max(axis=1)
    np.testing.assert_allclose(scored.scores["ODIN"]["near"], expected, atol=1e-6)


def shift_statistics(classifier: Classifier, pixels: NDArray[np.uint8]) -> list[float]:
    """Q' of AdaSCALE, image by image."""
    found = []
    for image in from_uint8(pixels).split(1):
        image = image.requires_grad_()
        logits, feature = classifier(image)
        logits.max().backward()
        assert image.grad is not None
        gradient = image.grad.flatten().numpy()
        step = np.zeros_like(gradient)
        smallest = np.argsort(np.abs(gradient), kind="stable")[: int(gradient.size * 0.05)]
        step[smallest] = 0.5 * np.sign(gradient[smallest])
        moved = outputs(classifier, image.detach() + torch.from_numpy(step).view_as(image))[1][0]
        z, other = feature[0].detach().numpy(), moved.numpy()
        order = np.argsort(-z, kind="stable")
        shift = abs(z - other)[order[: max(1, int(z.size * 0.01))]].sum()
        correction = np.maximum(other, 0)[order[: max(1, int(z.size * 0.05))]].sum()
        found.append(10 * shift + correction)
    return found


def test_adascale_peer_is_the_papers_formula(
    classifier: Classifier, scored: PeerScores, arrays: dict[str, Any]
) -> None:
    reference = np.array(shift_statistics(classifier, images("train", ID_IMAGES)))
    statistics = shift_statistics(classifier, images("near"))
    rows = []
    for z, statistic in zip(arrays["z"], statistics, strict=True):
        percentile = 0.6 + (1 - np.mean(reference <= statistic)) * 0.25
        rows.append(z * np.exp(z.sum() / z[largest(z, percentile)].sum()))
    expected = energy(np.array(rows), arrays["w"], arrays["b"])
    found = scored.scores["AdaSCALE-A"]["near"]
    # an image whose percentile lies between two numbers of activations may fall on either side
    assert np.mean(np.isclose(found, expected, rtol=2e-3)) > 0.9


def test_adascale_of_one_percentile_is_scale(
    fit: PeerFit, scored: PeerScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adascale, "ADASCALE", replace(adascale.ADASCALE, lowest=0.65, highest=0.65))
    near = ScoredImages.of(fit.classifier, array_batches(images("near")))
    fixed = score_with_peers(fit, {"near": near}, ["AdaSCALE-A"]).scores["AdaSCALE-A"]["near"]
    np.testing.assert_allclose(fixed, scored.scores["SCALE"]["near"], rtol=1e-5)


def test_adascale_thins_id_images_evenly() -> None:
    parts = torch.arange(23).view(-1, 1).split([3, 1, 9, 0, 10])
    thinned = torch.cat(list(adascale._thinned(lambda: parts, 4)()))
    assert thinned.flatten().tolist() == list(range(0, 23, 4))


class Squared(nn.Module):
    """A head that is no linear function of the features."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features) ** 2


def with_head(classifier: Classifier, head: Callable[[nn.Linear], nn.Module]) -> Classifier:
    """A copy of the classifier whose head is another."""
    import copy

    network: Any = copy.deepcopy(classifier.network)
    network.head = head(network.head)
    return Classifier(network, classifier.config)


def test_peers_without_a_linear_head_are_left_out(
    classifier: Classifier, labels: NDArray[np.int64], detectors: Any
) -> None:
    changed = with_head(classifier, Squared)
    assert linear_head(changed, from_uint8(images("near"))) is None
    result = peer_scores(changed, images("train", ID_IMAGES), labels, {"near": images("near")})
    need_head = {name for name, one in PEERS.items() if one.needs_head}
    assert need_head == set(result.left_out) and {"ViM", "ReAct", "DICE"} < need_head
    assert set(result.left_out.values()) == {
        "the classifier's logits are no linear function of its features"
    }
    assert {"RMD", "GEN", "ODIN", "MSP"} <= set(result.scores)


def test_the_head_of_an_exported_graph_is_found_for_peers(
    classifier: Classifier, tmp_path: Path
) -> None:
    program = torch.export.export(
        classifier.network,
        (torch.zeros(2, 1, 32, 32),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    torch.export.save(program, tmp_path / "c.pt2")
    graph = load_classifier(tmp_path / "c.pt2")
    assert not any(isinstance(part, nn.Linear) for part in graph.network.modules())
    near = from_uint8(images("near"))
    head, original = linear_head(graph, near), linear_head(classifier, near)
    assert head is not None and original is not None
    torch.testing.assert_close(head.weight, original.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.bias, original.bias)


def test_peers_that_the_id_images_do_not_suit_are_left_out(
    classifier: Classifier, labels: NDArray[np.int64], detectors: Any
) -> None:
    rows = np.flatnonzero(labels != 7)[:40]
    result = peer_scores(
        classifier, images("train", ID_IMAGES)[rows], labels[rows], {"near": images("near")}
    )
    missing = "1 of 8 classes have no ID image to fit on"
    assert result.left_out["SHE"] == result.left_out["Dual cache"] == missing
    assert "k=50 exceeds the number of ID samples (40)" in result.left_out["KNN (k = 50)"]
    assert {"Mahalanobis (raw)", "RMD", "ViM"} <= set(result.scores)


def test_peers_of_a_classifier_without_gradient(
    classifier: Classifier, labels: NDArray[np.int64], detectors: Any
) -> None:
    frozen = with_head(classifier, lambda head: head)
    frozen.network.differentiable = False  # type: ignore[assignment]
    result = peer_scores(frozen, images("train", ID_IMAGES), labels, {"near": images("near")})
    assert result.left_out == dict.fromkeys(
        ("ODIN", "AdaSCALE-A"), "the classifier has no gradient"
    )


def test_a_peer_that_does_not_exist(
    classifier: Classifier, labels: NDArray[np.int64], sets: dict[str, NDArray[np.uint8]]
) -> None:
    with pytest.raises(GoodRtError, match=r"there is no peer 'Vim'; take some of MSP, .*ViM"):
        peer_scores(classifier, images("train", ID_IMAGES), labels, sets, ["Vim"])


JOB = """\
version = 3
[data]
images = "ID"
[models]
classifier = "CLASSIFIER"
diffusion = "DIFFUSION"
[train]
kinds = []
[detector]
classifier = "before"
[evaluate]
peers = true
"""


@pytest.fixture
def job(id_dir: Path, classifier_dir: Path, model_dir: Path, tmp_path: Path) -> Path:
    text = JOB.replace("ID", str(id_dir), 1).replace("CLASSIFIER", str(classifier_dir))
    (tmp_path / "job.toml").write_text(text.replace("DIFFUSION", str(model_dir)))
    return tmp_path / "job.toml"


def test_peers_need_pytorch_ood_before_anything_begins(
    classifier: Classifier, id_dir: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_ood", None)
    monkeypatch.delitem(sys.modules, "pytorch_ood.detector", raising=False)
    install = r"pytorch_ood\.detector is missing .*pip install 'good-rt\[peers\]'"
    page = ReportPage(peers=True)
    with pytest.raises(GoodRtError, match=install):
        evaluate({"a": classifier}, id_dir, {"near": images("near")}, job.parent / "e", page=page)
    assert not (job.parent / "e").exists()
    assert Job.read(job).config.evaluate.config.peers
    with pytest.raises(GoodRtError, match=install + r" \(evaluate\.peers in .*job\.toml\)"):
        run_job(job)
    assert not (job.parent / "job").exists()


def test_an_evaluation_with_peers(
    run: Callable[..., Any],
    classifier_dir: Path,
    id_dir: Path,
    generated_dirs: list[Path],
    tmp_path: Path,
    detectors: Any,
) -> None:
    np.savez(tmp_path / "near.npz", images=images("near"))
    words = ["evaluate", "--generated", generated_dirs[0], "--id", id_dir, "--bank-size", 300]
    words += ["--classifier", f"before={classifier_dir}", "--classifier", f"same={classifier_dir}"]
    words += ["--test-set", f"near={tmp_path / 'near.npz'}", "--alpha", 0.1]
    shown = run(*words, "--peers", "-o", tmp_path / "with")
    assert shown.code == 0, shown.err
    assert f"{len(PEERS)} scores of other papers (GEN, ODIN, " in shown.out
    record = json.loads((tmp_path / "with" / "evaluation.json").read_text())
    evaluation = Evaluation.from_json(record)
    assert evaluation.peers == {name: one.settings for name, one in PEERS.items()}
    assert evaluation.left_out == {"before": {}, "same": {}}
    assert evaluation.scores[-len(PEERS) :] == tuple(PEERS)
    for name in PEERS:
        assert evaluation.row("before", name).metrics == evaluation.row("same", name).metrics
    report = (tmp_path / "with" / "report.html").read_text()
    assert report.count("<small>peer</small>") == 5 * len(PEERS)
    assert PEERS["GEN"].settings in report
    without = Evaluation.from_json(run(*words, "-o", tmp_path / "without", "--json").json)
    assert without.peers == {} and not set(PEERS) & set(without.scores)
    assert [row for row in evaluation.rows if row.score not in PEERS] == list(without.rows)


def test_an_evaluation_of_peers_left_out_of_one_model(
    run: Callable[..., Any], classifier: Classifier, id_dir: Path, tmp_path: Path, detectors: Any
) -> None:
    changed = with_head(classifier, Squared)
    evaluation = evaluate(
        {"linear": classifier, "squared": changed},
        id_dir,
        {"near": images("near")},
        tmp_path,
        page=ReportPage(peers=True),
    )
    assert evaluation.left_out["linear"] == {} and "ViM" in evaluation.left_out["squared"]
    assert "left out for squared" in (tmp_path / "report.html").read_text()
    with pytest.raises(GoodRtError, match="no row of model 'squared', score 'ViM'"):
        evaluation.row("squared", "ViM")
