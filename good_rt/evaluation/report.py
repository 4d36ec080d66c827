"""The report: one self-contained HTML file that shows a run's pictures, its figures and how they
came about.

It stands at the very end of the data's way and only draws what it is given. Plots are inline SVG
whose colours are CSS variables, so that they follow the reader's light or dark setting; nothing is
loaded from anywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

from good_rt.errors import GoodRtError
from good_rt.evaluation.drawing import (
    ID_COLOUR,
    INK,
    LINE,
    MODEL_COLOURS,
    MUTED,
    OOD_COLOUR,
    VARIABLES,
    drawn_limits,
    hairline_figure,
    inline_svg,
    percent,
)
from good_rt.evaluation.feature_map import DistanceFigures, map_panels, score_strips
from good_rt.evaluation.metrics import LOWER_IS_BETTER, recall_threshold, roc_points
from good_rt.evaluation.picture_rows import PictureRows, draw_rows
from good_rt.evaluation.results import MEAN, Evaluation, ScoredSets
from good_rt.evaluation.training_gain import TrainingRoles, gain_section
from good_rt.files import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image

_DASHES: tuple[tuple[float, ...], ...] = ((), (3, 1.5), (1, 1.2), (5, 1.5, 1, 1.5), (6, 3))

_TABLES = {
    "fpr95": ("FPR at 95 % ID recall", "Share of OOD images accepted when 95 % of ID images are."),
    "auroc": ("AUROC", "How often an OOD image scores higher than an ID image; 50 is chance."),
    "aupr_out": ("AUPR-out", "Area under precision and recall, with OOD as the positive class."),
    "aupr_in": ("AUPR-in", "Area under precision and recall, with ID as the positive class."),
    "fpr95_ood": (
        "FPR at 95 % OOD recall",
        "The other convention: share of ID images refused when 95 % of OOD images are detected.",
    ),
}


@dataclass(frozen=True)
class Sheet:
    """A contact sheet.

    Attributes:
        title: Short title.
        png: The image's PNG bytes.
        caption: A sentence about what it shows.
    """

    title: str
    png: bytes
    caption: str = ""

    @classmethod
    def of(cls, title: str, image: Image, caption: str = "") -> Sheet:
        """The sheet of an image.

        Args:
            title: Short title.
            image: The contact sheet.
            caption: A sentence about what it shows.
        """
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        return cls(title, buffer.getvalue(), caption)


@dataclass(frozen=True)
class TrainingCurve:
    """Losses of a fine-tuning.

    Attributes:
        regulariser: What the regulariser is.
        losses: (step, cross-entropy of ID images, regulariser).
    """

    regulariser: str
    losses: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class ReportData:
    """What the report shows. Texts are plain: they are escaped.

    Attributes:
        title: Title of the page.
        summary: Sentence below the title.
        evaluation: The figures. The headline is the shipped model's, beside all others; the
            histograms show it beside the first, which stands for "before".
        score: Name of the score that plots and headline are about.
        near: Name of the OOD set that the headline is about.
        scores: Model -> score -> `ScoredSets`, as `evaluate_scores` takes it; only ``score`` is
            needed.
        sheets: Contact sheets.
        training: Losses of the fine-tuning; None where there was none.
        models: What each model is, by its name; may lack some.
        settings: Settings to list, by name.
        versions: Packages to list, by name.
        files: Files to list, by what they are.
        roles: Which models show what the generated images gave; None for no such section.
        distances: How far each set lies from the training data.
        ordered: Generated images in the order of the score.
        mistakes: ID images that are refused, OOD images that are accepted.
    """

    title: str
    summary: str
    evaluation: Evaluation
    score: str
    near: str
    scores: Mapping[str, Mapping[str, ScoredSets]]
    sheets: Sequence[Sheet] = ()
    training: TrainingCurve | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    roles: TrainingRoles | None = None
    distances: DistanceFigures | None = None
    ordered: Sequence[PictureRows] = ()
    mistakes: Sequence[PictureRows] = ()


def write_report(path: Path, data: ReportData) -> None:
    """Writes the report as one HTML file.

    Args:
        path: The file.
        data: What the report shows.

    Raises:
        GoodRtError: see `render_report`, or the file cannot be written.
    """
    html = render_report(data)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")


def render_report(data: ReportData) -> str:
    """The report's HTML.

    Args:
        data: What the report shows.

    Raises:
        GoodRtError: the score or OOD set to plot is not in the evaluation or the scores.
    """
    evaluation = data.evaluation
    for model in evaluation.models:
        if data.score not in data.scores.get(model, {}):
            raise GoodRtError(
                f"the report is to draw the score {data.score!r} of model {model!r}, but lacks it"
            )
        if missing := set(evaluation.ood_sets) - set(data.scores[model][data.score].ood):
            raise GoodRtError(
                f"the report lacks the scores {data.score!r} of model {model!r} on "
                f"{sorted(missing)}"
            )
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    models = evaluation.models
    colours = {name: MODEL_COLOURS[_style(i, len(models))] for i, name in enumerate(models)}
    of_score = {model: data.scores[model][data.score] for model in models}
    roles, distances = data.roles, data.distances
    return environment.get_template("report").render(
        data=data,
        headline=_headline(data),
        gain=gain_section(evaluation, roles, of_score, data.score, colours) if roles else None,
        model_colours={name: VARIABLES[colour] for name, colour in colours.items()},
        sheets=[_picture(sheet) for sheet in data.sheets],
        strips=score_strips(distances) if distances else [],
        maps=map_panels(distances) if distances else [],
        ordered=[draw_rows(pictures) for pictures in data.ordered],
        mistakes=[draw_rows(pictures) for pictures in data.mistakes],
        legend=_legend(models),
        plots=[_set_plots(data, ood_set) for ood_set in evaluation.ood_sets],
        tables=[_table(evaluation, metric) for metric in _TABLES],
        curves=[] if data.training is None else _training_plots(data.training),
        n_id=of_score[evaluation.shipped].id.size,
    )


def _template(name: str) -> str:
    """A template of this folder."""
    file = resources.files("good_rt.evaluation").joinpath(f"{name}.html.j2")
    return file.read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Card:
    """A headline figure of the shipped model: its label, the value, the first model's (or nothing),
    explanations."""

    label: str
    value: str
    before: str
    notes: tuple[str, ...]


def _headline(data: ReportData) -> list[_Card]:
    evaluation, shipped = data.evaluation, data.evaluation.shipped
    first, others = evaluation.models[0], [model for model in evaluation.models if model != shipped]

    def card(label: str, values: Mapping[str, float], notes: Sequence[str]) -> _Card:
        compared = [f"{model} {percent(values[model])}" for model in others if model in values]
        before = percent(values[first]) if first in others and first in values else ""
        beside = [", ".join(compared)] if compared and compared != [f"{first} {before}"] else []
        return _Card(label, percent(values[shipped]), before, (*notes, *beside))

    cards = []
    for metric, ood_set in (("fpr95", data.near), ("auroc", data.near), ("auroc", MEAN)):
        rows = {model: evaluation.row(model, data.score, ood_set) for model in evaluation.models}
        interval = rows[shipped].intervals.get(metric)
        notes = [ood_set, _interval(*interval)] if interval else [ood_set]
        values = {model: float(getattr(row.metrics, metric)) for model, row in rows.items()}
        cards.append(card(_TABLES[metric][0], values, notes))
    if shipped in evaluation.id_accuracy:
        share = evaluation.id_accuracy[shipped]
        rates = {model: share.rate for model, share in evaluation.id_accuracy.items()}
        notes = [f"{share.n:,} ID images", _interval(share.low, share.high)]
        cards.append(card("ID accuracy", rates, notes))
    if evaluation.id_refusal:
        refusal = evaluation.id_refusal[-1]
        promised = f"promised at α = {refusal.alpha:g}: at most {100 * refusal.alpha:g}"
        interval_text = _interval(refusal.share.low, refusal.share.high)
        cards.append(
            _Card("ID images refused", percent(refusal.share.rate), "", (promised, interval_text))
        )
    return cards


def _interval(low: float, high: float) -> str:
    return f"95 % interval {percent(low)}–{percent(high)}"


def _picture(sheet: Sheet) -> dict[str, Any]:
    if sheet.png[:8] != b"\x89PNG\r\n\x1a\n":
        raise GoodRtError(f"the report's sheet {sheet.title!r} is not a PNG")
    width, height = (int.from_bytes(sheet.png[start : start + 4], "big") for start in (16, 20))
    uri = "data:image/png;base64," + base64.b64encode(sheet.png).decode("ascii")
    return {
        "title": sheet.title,
        "caption": sheet.caption,
        "uri": uri,
        "width": width,
        "height": height,
    }


@dataclass(frozen=True)
class _Cell:
    value: str
    interval: str
    best: bool


def _table(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    """One figure of all rows: a column an OOD set and one for the mean, a row a score and model,
    grouped by score."""
    columns = [*evaluation.ood_sets, MEAN]
    best = {
        column: percent(getattr(evaluation.best(metric, column).metrics, metric))
        for column in columns
    }

    def cell(model: str, score: str, column: str) -> _Cell:
        row = evaluation.row(model, score, column)
        value = percent(getattr(row.metrics, metric))
        low, high = row.intervals.get(metric, (None, None))
        interval = "" if low is None or high is None else f"{percent(low)}–{percent(high)}"
        return _Cell(value, interval, value == best[column])

    pairs = dict.fromkeys((row.score, row.model) for row in evaluation.rows)
    groups = [
        (
            score,
            [
                (model, [cell(model, score, column) for column in columns])
                for s, model in pairs
                if s == score
            ],
        )
        for score in evaluation.scores
    ]
    title, note = _TABLES[metric]
    direction = "Lower is better." if metric in LOWER_IS_BETTER else "Higher is better."
    return {"title": title, "note": f"{note} {direction}", "columns": columns, "groups": groups}


def _set_plots(data: ReportData, ood_set: str) -> dict[str, Any]:
    models = data.evaluation.models
    ends = list(dict.fromkeys((models[0], data.evaluation.shipped)))
    scored = {model: data.scores[model][data.score] for model in models}
    return {
        "name": ood_set,
        "n": scored[models[0]].ood[ood_set].size,
        "histogram": _histograms({model: scored[model] for model in ends}, ood_set, data.score),
        "roc": _roc(scored, ood_set),
    }


def _histograms(scored: Mapping[str, ScoredSets], ood_set: str, score: str) -> Markup:
    """One panel a model: ID against one OOD set, with the threshold at 95 % ID recall and what it
    lets through."""
    figure, panels = hairline_figure(3.6, 1.45 * len(scored), rows=len(scored))
    for axes, (model, sets) in zip(panels, scored.items(), strict=True):
        ids, oods = sets.id, sets.ood[ood_set]
        limits = drawn_limits(ids, oods)
        edges = np.linspace(*limits, 49)
        for values, colour in ((ids, ID_COLOUR), (oods, OOD_COLOUR)):
            heights = np.histogram(np.clip(values, *limits), edges)[0] / values.size
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(heights, edges, color=colour, linewidth=1.1)
        threshold = recall_threshold(ids)
        axes.axvline(threshold, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        accepted = percent(float(np.mean(oods <= threshold)))
        axes.set_title(
            model, loc="left", fontsize=9, color=INK, fontweight="bold", parse_math=False
        )
        axes.set_title(f"{accepted} % of OOD accepted", loc="right", fontsize=9, color=MUTED)
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
        axes.set_xlim(*limits)
        axes.spines["left"].set_visible(False)
    panels[-1].set_xlabel(f"{score} (higher = more OOD)", parse_math=False)
    return inline_svg(figure, f"Histograms of the {score} score, ID images against {ood_set}")


def _roc(scored: Mapping[str, ScoredSets], ood_set: str) -> Markup:
    figure, (axes,) = hairline_figure(3.6, 2.9)
    axes.plot([0, 100], [0, 100], color=LINE, linewidth=0.8)
    axes.axhline(95, color=LINE, linewidth=0.8)
    for index, sets in enumerate(scored.values()):
        ood_accepted, id_accepted = roc_points(sets.id, sets.ood[ood_set])
        # A step for every score is more than a screen shows: the points nearest to 400 even steps
        # along the curve.
        along = np.linspace(0, 2, 401)
        keep = np.unique(
            np.searchsorted(ood_accepted + id_accepted, along).clip(max=ood_accepted.size - 1)
        )
        style = _style(index, len(scored))
        line = axes.plot(
            100 * ood_accepted[keep],
            100 * id_accepted[keep],
            color=MODEL_COLOURS[style],
            linewidth=1.5,
        )[0]
        line.set_dashes(_DASHES[style])
    axes.set(xlim=(0, 100), ylim=(0, 101), xlabel="OOD accepted, %", ylabel="ID accepted, %")
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_yticks([0, 25, 50, 75, 95])
    return inline_svg(figure, f"ROC curves on {ood_set}")


def _style(index: int, models: int) -> int:
    """Which colour and dashes a model's line has: the last model's are the first, strongest
    ones."""
    return (models - 1 - index) % len(MODEL_COLOURS)


def _legend(models: Sequence[str]) -> list[tuple[str, str, str]]:
    """(name, colour, SVG dash array) of each model, for the plots' common key."""
    styles = {model: _style(index, len(models)) for index, model in enumerate(models)}
    dashes = [" ".join(f"{2 * length:g}" for length in pattern) for pattern in _DASHES]
    return [
        (model, VARIABLES[MODEL_COLOURS[style]], dashes[style]) for model, style in styles.items()
    ]


def _training_plots(training: TrainingCurve) -> list[Markup]:
    steps, *losses = np.asarray(training.losses, np.float64).T
    plots = []
    names = "Cross-entropy of ID images", f"Regulariser: {training.regulariser}"
    for values, name in zip(losses, names, strict=True):
        figure, (axes,) = hairline_figure(3.6, 2.1)
        axes.plot(steps, values, color=MODEL_COLOURS[0], linewidth=1.3)
        axes.set_title(name, loc="left", fontsize=9, color=INK)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        plots.append(inline_svg(figure, f"{name} by step"))
    return plots
