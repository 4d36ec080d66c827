"""What the generated images gave: the interval of a change, and the sentence that judges it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from good_rt.errors import GoodRtError
from good_rt.evaluation.metrics import METRICS, bootstrap_draws, detection_metrics
from good_rt.evaluation.results import MEAN, ScoredSets, evaluate_scores
from good_rt.evaluation.training_gain import (
    MetricChange,
    TrainingRoles,
    gain_section,
    gain_verdict,
    metric_changes,
)

ROLES = TrainingRoles("before", "trained", "control")


def scored(gaps: dict[str, float], seed: int = 0) -> ScoredSets:
    rng = np.random.default_rng(seed)
    ids = rng.normal(size=600)
    return ScoredSets(ids, {name: rng.normal(gap, 1, 400) for name, gap in gaps.items()})


def changes_of(**verdicts: tuple[float, float, float, float]) -> list[MetricChange]:
    changes = [MetricChange("fpr95", name, *values) for name, values in verdicts.items()]
    before, after, low, high = np.mean(list(verdicts.values()), axis=0)
    return [*changes, MetricChange("fpr95", MEAN, before, after, low, high)]


def test_changes_are_those_of_the_figures() -> None:
    reference, trained = scored({"a": 1.0, "b": 2.0}), scored({"a": 2.5, "b": 2.0})
    changes = {(c.metric, c.ood_set): c for c in metric_changes(reference, trained)}
    assert set(changes) == {(m, s) for m in ("fpr95", "auroc") for s in ("a", "b", MEAN)}
    for (metric, ood_set), change in changes.items():
        if ood_set == MEAN:
            continue
        for value, sets in ((change.before, reference), (change.after, trained)):
            figures = detection_metrics(sets.id, sets.ood[ood_set])
            assert value == getattr(figures, metric)
    for metric in ("fpr95", "auroc"):
        means = changes[metric, MEAN]
        assert means.before == pytest.approx(
            np.mean([changes[metric, s].before for s in ("a", "b")])
        )
    better = changes["fpr95", "a"]
    assert better.verdict == "better" and better.low < better.after - better.before < better.high
    assert changes["auroc", "a"].verdict == "better"
    assert changes["fpr95", "b"].verdict == "unclear"
    assert (changes["fpr95", "b"].low, changes["fpr95", "b"].high) == (0, 0)


def test_the_interval_pairs_the_images() -> None:
    """Against a naive bootstrap, which draws images and computes both figures of each draw."""
    reference, noise = scored({"a": 1.0}), np.random.default_rng(5)
    trained = ScoredSets(
        reference.id + 0.1 * noise.normal(size=600),
        {"a": reference.ood["a"] + 0.3 + 0.1 * noise.normal(size=400)},
    )
    id_rng, ood_rng = (np.random.default_rng((0, stream)) for stream in (0, 1))
    id_rows = id_rng.integers(600, size=(60, 600), dtype=np.uint32)
    ood_rows = ood_rng.integers(400, size=(60, 400), dtype=np.uint32)
    differences = [
        detection_metrics(trained.id[i], trained.ood["a"][o]).auroc
        - detection_metrics(reference.id[i], reference.ood["a"][o]).auroc
        for i, o in zip(id_rows, ood_rows, strict=True)
    ]
    changes = metric_changes(reference, trained, resamples=60)
    (change,) = (c for c in changes if c.metric == "auroc" and c.ood_set == "a")
    assert (change.low, change.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]))
    # far narrower than if both were resampled by themselves
    column = METRICS.index("auroc")
    apart = bootstrap_draws(trained.id, trained.ood["a"], seed=1)[:, column]
    apart = apart - bootstrap_draws(reference.id, reference.ood["a"], seed=2)[:, column]
    assert change.high - change.low < 0.5 * np.ptp(np.quantile(apart, [0.025, 0.975]))


def test_changes_need_the_same_images() -> None:
    reference = scored({"a": 1.0})
    fewer = replace(reference, ood={"a": reference.ood["a"][:9]})
    with pytest.raises(GoodRtError, match=r"'a': both .* same images.*\(600, 9\) and \(600, 400\)"):
        metric_changes(reference, fewer)


HELPED, HURT, UNCLEAR = (0.4, 0.2, -0.3, -0.1), (0.1, 0.2, 0.05, 0.15), (0.1, 0.1, -0.01, 0.01)


@pytest.mark.parametrize(
    ("changes", "roles", "sentence"),
    [
        (
            changes_of(near=HELPED, far=HELPED),
            ROLES,
            "The generated images helped on every OOD set. Against the control, the mean share of "
            "OOD images that are accepted falls from 40.0 to 20.0 %, −50 %.",
        ),
        (
            changes_of(near=HELPED, far=HURT, fog=UNCLEAR, snow=UNCLEAR),
            ROLES,
            "The generated images helped on near, and hurt on far, and made no clear difference on "
            "fog and snow. Against",
        ),
        (
            changes_of(near=HURT, far=HURT),
            ROLES,
            "The generated images hurt on every OOD set. Against the control, the mean share of "
            "OOD images that are accepted rises from 10.0 to 20.0 %, +100 %.",
        ),
        (
            changes_of(near=UNCLEAR),
            TrainingRoles("before", "trained"),
            "Training with the generated images made no clear difference on the OOD set near. "
            "Against the original classifier, the mean share of OOD images that are accepted stays "
            "10.0 %.",
        ),
        (changes_of(near=(0, 0.1, 0.05, 0.15)), ROLES, "rises from 0.0 to 10.0 %."),
    ],
)
def test_the_verdict(changes: list[MetricChange], roles: TrainingRoles, sentence: str) -> None:
    assert sentence in gain_verdict(changes, roles)


def test_the_section_compares_the_models_of_the_roles() -> None:
    scores = {
        model: {"Unified": scored({"near": gap}, seed)}
        for seed, (model, gap) in enumerate({"before": 1.0, "control": 1.2, "trained": 3.0}.items())
    }
    evaluation = evaluate_scores(scores, resamples=5)
    of_score = {model: sets["Unified"] for model, sets in scores.items()}
    colours = dict.fromkeys(scores, "#0000b0")
    section = gain_section(evaluation, ROLES, of_score, "Unified", colours)
    assert [name for name, _ in section.rows] == ["near", MEAN]
    cells = [cell.value for cell in section.rows[0][1]]
    for place, model in enumerate(("before", "control", "trained")):
        figures = evaluation.row(model, "Unified", "near").metrics
        assert cells[place] == f"{100 * figures.fpr95:.1f}"
        assert cells[4 + place] == f"{100 * figures.auroc:.1f}"
    assert re.fullmatch(r"−\d+ %", cells[3]) and section.rows[0][1][3].css == "change better"
    without = gain_section(
        evaluation, TrainingRoles("before", "trained"), of_score, "Unified", colours
    )
    assert len(without.rows[0][1]) == 6
    with pytest.raises(GoodRtError, match="'fog', which was not evaluated"):
        gain_section(evaluation, TrainingRoles("before", "fog"), of_score, "Unified", colours)
