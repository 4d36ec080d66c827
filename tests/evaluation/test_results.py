"""The evaluation's rows, means, look-ups and its way through JSON, on plain score arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from good_rt.errors import GoodRtError
from good_rt.evaluation.metrics import METRICS, bootstrap, detection_metrics
from good_rt.evaluation.results import MEAN, Evaluation, Refusal, ScoredSets, Share, evaluate_scores

Scores = dict[str, dict[str, ScoredSets]]


@pytest.fixture(scope="module")
def scores() -> Scores:
    rng = np.random.default_rng(0)
    return {
        model: {
            score: ScoredSets(
                rng.normal(size=200),
                {"near": rng.normal(gap, 1, 90), "far": rng.normal(2 * gap, 1, 60)},
            )
            for score, gap in (("Energy", 0.5 + better), ("Unified", 1 + better))
        }
        for model, better in (("before", 0.0), ("trained", 0.7))
    }


@pytest.fixture(scope="module")
def evaluation(scores: Scores) -> Evaluation:
    return evaluate_scores(
        scores,
        id_accuracy={"before": Share.counted(187, 200), "trained": Share.counted(186, 200)},
        id_refusal=[Refusal.at(0.05, np.linspace(0, 1, 201))],
        resamples=50,
        seed=3,
    )


def test_rows_are_the_metrics_of_their_arrays(evaluation: Evaluation, scores: Scores) -> None:
    assert [(row.model, row.score, row.ood_set) for row in evaluation.rows] == [
        (model, score, ood_set)
        for model in ("before", "trained")
        for score in ("Energy", "Unified")
        for ood_set in ("near", "far", MEAN)
    ]
    sets = scores["trained"]["Unified"]
    row = evaluation.row("trained", "Unified", "far")
    assert row.metrics == detection_metrics(sets.id, sets.ood["far"])
    assert row.intervals == bootstrap(sets.id, sets.ood["far"], resamples=50, seed=3)
    for name, (low, high) in row.intervals.items():
        assert low <= getattr(row.metrics, name) <= high, name


def test_mean_rows(evaluation: Evaluation) -> None:
    near, far, mean = (evaluation.row("before", "Energy", name) for name in ("near", "far", MEAN))
    for name in METRICS:
        expected = (getattr(near.metrics, name) + getattr(far.metrics, name)) / 2
        assert getattr(mean.metrics, name) == pytest.approx(expected, abs=1e-15)
    assert mean.intervals == {}


def test_names_and_best(evaluation: Evaluation) -> None:
    assert (evaluation.models, evaluation.scores) == (("before", "trained"), ("Energy", "Unified"))
    assert evaluation.ood_sets == ("near", "far")
    for metric in METRICS:
        best = evaluation.best(metric, "near")
        values = [getattr(row.metrics, metric) for row in evaluation.rows if row.ood_set == "near"]
        assert getattr(best.metrics, metric) == (
            min(values) if metric.startswith("fpr") else max(values)
        )
    assert (evaluation.best("auroc").model, evaluation.best("auroc").score) == (
        "trained",
        "Unified",
    )


def test_through_json_text(evaluation: Evaluation) -> None:
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation


def test_same_input_same_figures(evaluation: Evaluation, scores: Scores) -> None:
    again = evaluate_scores(scores, resamples=50, seed=3)
    assert again.rows == evaluation.rows


def test_shares_and_refusal(evaluation: Evaluation) -> None:
    share = Share.of([True, True, False, True])
    assert (share.count, share.n, share.rate) == (3, 4, 0.75)
    assert share.low < 0.75 < share.high
    (refusal,) = evaluation.id_refusal
    assert (refusal.share.count, refusal.share.n) == (11, 201)  # p = 0, 0.005, ..., 0.05
    assert refusal.share.low <= 0.05 <= refusal.share.high


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"rows": 1, "id_accuracy": {}, "id_refusal": []},
        {"rows": [{"model": "a"}], "id_accuracy": {}, "id_refusal": []},
        {"rows": [], "shipped": "a", "id_accuracy": {"a": {"count": 1}}, "id_refusal": []},
        {"rows": [], "id_accuracy": {}, "id_refusal": []},
        [],
    ],
)
def test_foreign_json_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(GoodRtError, match=r"the evaluation is damaged \(.*\); run it again"):
        Evaluation.from_json(value)


def test_bad_metrics_in_json_are_refused(evaluation: Evaluation) -> None:
    value = evaluation.to_json()
    value["rows"][0]["metrics"].pop("auroc")
    with pytest.raises(GoodRtError, match=r"rows\.0\.metrics\.auroc is missing"):
        Evaluation.from_json(value)


def test_missing_rows_and_figures_are_named(evaluation: Evaluation) -> None:
    with pytest.raises(GoodRtError, match="no row of model 'trained', score 'MSP'"):
        evaluation.row("trained", "MSP")
    with pytest.raises(GoodRtError, match="no figure 'accuracy'"):
        evaluation.best("accuracy")
    with pytest.raises(GoodRtError, match="OOD set 'fog'"):
        evaluation.best("auroc", "fog")


def test_a_bad_value_is_named_with_its_row() -> None:
    bad = {"before": {"Energy": ScoredSets(np.zeros(3), {"near": np.array([1.0, np.nan])})}}
    with pytest.raises(
        GoodRtError, match="model 'before', score 'Energy', OOD set 'near': 1 of 2 OOD scores"
    ):
        evaluate_scores(bad)


@pytest.mark.parametrize(
    "empty", [{}, {"before": {}}, {"before": {"Energy": ScoredSets(np.zeros(3), {})}}]
)
def test_nothing_to_measure(empty: Scores) -> None:
    with pytest.raises(GoodRtError, match="at least one model"):
        evaluate_scores(empty)


def test_different_sets_are_refused() -> None:
    one, two = (ScoredSets(np.zeros(3), {name: np.ones(2)}) for name in ("near", "far"))
    with pytest.raises(GoodRtError, match="same OOD sets"):
        evaluate_scores({"before": {"Energy": one, "k-NN": two}})
