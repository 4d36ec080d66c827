"""The report: self-contained, escaped, complete, small, and refusing to draw what it was not
given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from good_rt.errors import GoodRtError
from good_rt.evaluation.feature_map import DistanceFigures, SetDistances
from good_rt.evaluation.picture_rows import PictureLabel, PictureRows
from good_rt.evaluation.report import (
    ReportData,
    Sheet,
    TrainingCurve,
    render_report,
    write_report,
)
from good_rt.evaluation.results import MEAN, Refusal, ScoredSets, Share, evaluate_scores
from good_rt.evaluation.training_gain import TrainingRoles

HOSTILE = '<script>alert("1")</script> & $x_{1$ \' id="a"'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """All start tags with their attributes, the text, and whether every element is closed in
    order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def attributes(self, *names: str) -> Iterator[str]:
        return (
            str(value) for _, found in self.tags for name, value in found.items() if name in names
        )


def _data(names: tuple[str, str] = ("near", "far")) -> ReportData:
    rng = np.random.default_rng(0)
    scores = {
        model: {
            score: ScoredSets(
                rng.normal(size=400), {name: rng.normal(gap, 1, 150) for name in names}
            )
            for score in ("Energy", "Unified")
        }
        for model, gap in (("before", 0.8), ("control", 0.9), ("trained", 2.0))
    }
    evaluation = evaluate_scores(
        scores,
        id_accuracy={model: Share.counted(372, 400) for model in scores},
        id_refusal=[Refusal(0.05, Share.counted(21, 400)), Refusal(0.01, Share.counted(3, 400))],
        resamples=20,
    )
    noise = Image.fromarray(rng.integers(0, 255, (128, 256), dtype=np.uint8))
    return ReportData(
        "A demo",
        "What it is.",
        evaluation,
        "Unified",
        names[0],
        scores,
        sheets=[Sheet.of("Unguided", noise, "Left alone."), Sheet.of("Both", noise)],
        training=TrainingCurve(
            "squared hinge", [(step, 1 / (step + 1), 0.7) for step in range(0, 50, 5)]
        ),
        models={"control": "as many steps, no generated images"},
        settings={"seed": "0"},
        versions={"good-rt": "0.1.0"},
        files={"detector": "out/detector.onnx"},
        roles=TrainingRoles("before", "trained", "control"),
        distances=_distances(scores, names),
        ordered=[_pictures("image level", 8, 4)],
        mistakes=[_pictures("ID test images", 3, 1), _pictures(names[0], 0, 1)],
    )


def _distances(scores: dict[str, dict[str, ScoredSets]], names: tuple[str, ...]) -> DistanceFigures:
    unified = {model: scores[model]["Unified"] for model in ("before", "trained")}

    def plane(values: np.ndarray) -> np.ndarray:
        return np.stack([values, values**2], axis=1)

    of_id = {model: sets.id for model, sets in unified.items()}
    sets = [SetDistances("ID test images", "id", of_id, plane(of_id["trained"]), 0.05)]
    made = {model: sets.id[:90] + 1 for model, sets in unified.items()}
    # of the same name as an OOD set, which must not mix up their plots
    sets.append(SetDistances(names[0], "generated", made, plane(made["trained"]), 0.4))
    for name in names:
        oods = {model: sets.ood[name] for model, sets in unified.items()}
        sets.append(SetDistances(name, "ood", oods, plane(oods["trained"]), 0.6))
    thresholds = {"before": 1.6, "trained": 1.7}
    axes = ("Energy", "Mahalanobis distance")
    return DistanceFigures(sets, thresholds, axes, "Unified", 0.05, [names[0]])


def _pictures(title: str, count: int, every: int) -> PictureRows:
    images = np.random.default_rng(1).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
    labels = [PictureLabel((f"{title} {i}", "p 0.5"), False) for i in range(0, count, every)]
    return PictureRows(title, f"{count} images", images, labels, 4, every)


@pytest.fixture(scope="module")
def data() -> ReportData:
    return _data()


@pytest.fixture(scope="module")
def html(data: ReportData) -> str:
    return render_report(data)


def test_nothing_is_loaded_from_outside(html: str) -> None:
    page = Page(html)
    references = list(
        page.attributes("src", "href", "xlink:href", "srcset", "action", "data", "poster")
    )
    assert len(references) > 20
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in references)
    assert all(reference.startswith("#") for reference in re.findall(r"url\((.*?)\)", html))
    assert "@import" not in html
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}


def test_ids_are_unique_and_references_resolve(html: str) -> None:
    page = Page(html)
    ids = list(page.attributes("id"))
    assert len(ids) == len(set(ids))
    wanted = {name[1:] for name in page.attributes("xlink:href")} | set(
        re.findall(r"url\(#(.*?)\)", html)
    )
    assert wanted <= set(ids)
    assert page.open == []


def test_it_shows_everything(html: str, data: ReportData) -> None:
    text = " ".join("".join(Page(html).text).split())
    evaluation = data.evaluation
    for expected in (
        "A demo",
        "What it is.",
        "Left alone.",
        "as many steps",
        "0.1.0",
        "out/detector.onnx",
        "372 of",
    ):
        assert expected in text
    for row in evaluation.rows:
        assert f"{100 * row.metrics.auroc:.1f}" in text
    before, trained = (
        evaluation.row(model, "Unified", "near").metrics.fpr95 for model in ("before", "trained")
    )
    assert f"{100 * before:.1f} → {100 * trained:.1f}%" in text
    control = evaluation.row("control", "Unified", "near").metrics.fpr95
    assert f"before {100 * before:.1f}, control {100 * control:.1f}" in text
    for convention in ("FPR at 95 % ID recall", "FPR at 95 % OOD recall"):
        assert convention in text
    n_sets = len(evaluation.ood_sets)
    plots = 2 * n_sets + 2  # histograms and ROC, training
    plots += 2 + 2 + n_sets + 1  # what the images gave, strips, maps
    assert html.count('<svg class="plot"') == plots
    assert html.count("data:image/png") == 2 + 2 + 1  # sheets, and rows of 4 pictures


def test_new_sections_stand_in_order(html: str) -> None:
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert headings == [
        "What the generated images gave",
        "The pictures",
        "How far from the training data",
        "From near to far",
        "Mistakes",
        "How the score tells them apart",
        "ROC curves",
        "All figures",
        "What it costs on known images",
        "Training",
        "How it was made",
    ]


def test_labels_stand_below_their_pictures(html: str) -> None:
    rows = re.findall(r'<div class="row" style="--filled: (\d+)">.*?<ol>(.*?)</ol>', html, re.S)
    assert [(int(filled), len(re.findall("<li", text))) for filled, text in rows] == [
        (4, 1),
        (4, 1),
        (3, 3),
    ]
    spans = [list(map(int, re.findall(r"span (\d+)", text))) for _, text in rows]
    assert spans == [[4], [4], [1, 1, 1]]


def test_without_a_control_it_says_what_is_missing(data: ReportData) -> None:
    html = render_report(replace(data, roles=TrainingRoles("before", "trained")))
    assert "control = true" in html and "Training with the generated images" in html
    assert "control = true" not in render_report(data)


def test_the_best_of_each_column_is_bold(html: str, data: ReportData) -> None:
    best = re.findall(r'<td class="best(?: mean)?">([\d.]+)', html)
    for metric in ("fpr95", "auroc", "aupr_out", "aupr_in", "fpr95_ood"):
        for ood_set in (*data.evaluation.ood_sets, MEAN):
            assert (
                f"{100 * getattr(data.evaluation.best(metric, ood_set).metrics, metric):.1f}"
                in best
            )


def test_colours_follow_the_readers_setting(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert "var(--ood)" in html
    assert "#0000" not in html  # the stand-ins that the plots were drawn with
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= set(re.findall(r"(--[\w-]+):", html))


def test_texts_are_escaped() -> None:
    hostile = replace(
        _data((HOSTILE, "far")),
        title=HOSTILE,
        summary=HOSTILE,
        sheets=[Sheet.of(HOSTILE, Image.new("L", (4, 4)), HOSTILE)],
        ordered=[_pictures(HOSTILE, 3, 1)],
        models={HOSTILE: HOSTILE},
        settings={HOSTILE: HOSTILE},
    )
    html = render_report(hostile)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    assert page.open == []
    assert HOSTILE in "".join(page.text)
    assert HOSTILE in page.attributes("alt")


def test_hostile_model_and_score_names_are_drawn_as_text() -> None:
    data = _data()
    sets = data.scores["trained"]["Unified"]
    scores = {HOSTILE: {HOSTILE: sets}}
    html = render_report(
        replace(
            data,
            evaluation=evaluate_scores(scores, resamples=2),
            scores=scores,
            score=HOSTILE,
            roles=TrainingRoles(HOSTILE, HOSTILE),
        )
    )
    assert "<script" not in html
    assert Page(html).open == []


def test_it_is_the_same_each_time(html: str, data: ReportData) -> None:
    assert render_report(data) == html


def test_written_whole_and_small(tmp_path: Path, data: ReportData, html: str) -> None:
    path = tmp_path / "report.html"
    write_report(path, data)
    assert path.read_text(encoding="utf-8") == html
    assert path.stat().st_size < 1_000_000
    assert list(tmp_path.iterdir()) == [path]


def test_the_headline_is_of_the_shipped_model(data: ReportData) -> None:
    shipped = replace(data, evaluation=replace(data.evaluation, shipped="before"))
    text = " ".join("".join(Page(render_report(shipped)).text).split())
    before, control, trained = (
        f"{100 * shipped.evaluation.row(model, 'Unified', 'near').metrics.fpr95:.1f}"
        for model in shipped.evaluation.models
    )
    assert f"FPR at 95 % ID recall {before}% near" in text
    assert f"control {control}, trained {trained}" in text
    assert "→" not in text


def test_one_model_without_extras(data: ReportData) -> None:
    scores = {"trained": {"Unified": data.scores["trained"]["Unified"]}}
    plain = ReportData("T", "S.", evaluate_scores(scores, resamples=5), "Unified", "near", scores)
    html = render_report(plain)
    assert "→" not in html
    for heading in ("The pictures", "What the generated images gave", "Mistakes", "How far"):
        assert heading not in html
    assert "How it was made" not in html


def test_scores_of_one_value_are_drawn() -> None:
    scores = {"before": {"Energy": ScoredSets(np.ones(5), {"near": np.ones(3)})}}
    data = ReportData("T", "S.", evaluate_scores(scores, resamples=2), "Energy", "near", scores)
    assert "<svg" in render_report(data)


def test_missing_data_is_named(data: ReportData) -> None:
    with pytest.raises(GoodRtError, match="score 'MSP' of model 'before'"):
        render_report(replace(data, score="MSP"))
    with pytest.raises(GoodRtError, match=r"no row of .*'fog'"):
        render_report(replace(data, near="fog"))
    with pytest.raises(GoodRtError, match="'Unguided' is not a PNG"):
        render_report(replace(data, sheets=[Sheet("Unguided", b"GIF89a")]))
    less = {
        model: {"Unified": ScoredSets(one["Unified"].id, {})} for model, one in data.scores.items()
    }
    with pytest.raises(GoodRtError, match="lacks the scores 'Unified' of model 'before'"):
        render_report(replace(data, scores=less))
