"""What the generated images gave: the classifier that was trained with them against one that was
not, on every OOD set.

The reference is the control, which was trained for as many steps without generated images; where
there is none, it is the original classifier. Both score the same test images, so a change has an
interval of its own, from a bootstrap that resamples both alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from markupsafe import Markup

from good_rt.errors import GoodRtError
from good_rt.evaluation.drawing import (
    BACKGROUND,
    INK,
    LINE,
    MUTED,
    hairline_figure,
    inline_svg,
    percent,
)
from good_rt.evaluation.metrics import LOWER_IS_BETTER, METRICS, bootstrap_draws, detection_metrics
from good_rt.evaluation.results import MEAN, Evaluation, ScoredSets

GAIN_METRICS = {"fpr95": "FPR at 95 % ID recall", "auroc": "AUROC"}
"""The figures that are compared, and their titles."""
VERDICT_METRIC = "fpr95"


@dataclass(frozen=True)
class TrainingRoles:
    """Which model of an evaluation is which.

    Attributes:
        original: The classifier before any training.
        trained: The classifier trained with generated images.
        control: The classifier trained without them, if there is one.
    """

    original: str
    trained: str
    control: str | None = None

    @property
    def reference(self) -> str:
        """The model that the trained one is compared with."""
        return self.control or self.original

    @property
    def models(self) -> tuple[str, ...]:
        """All models, the trained one last."""
        control = [] if self.control is None else [self.control]
        return (self.original, *control, self.trained)


@dataclass(frozen=True)
class MetricChange:
    """A figure of the reference and of the trained classifier on one OOD set.

    Attributes:
        metric: A name of `METRICS`.
        ood_set: The OOD set, or `MEAN`.
        before: The reference's value.
        after: The trained classifier's value.
        low: Lower end of the 95 % interval of after − before.
        high: Upper end.
    """

    metric: str
    ood_set: str
    before: float
    after: float
    low: float
    high: float

    @property
    def relative(self) -> float | None:
        """(after − before) / before; None where before is 0."""
        return (self.after - self.before) / self.before if self.before else None

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the interval excludes 0, else "unclear"."""
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        if min(sign * self.low, sign * self.high) > 0:
            return "better"
        return "worse" if max(sign * self.low, sign * self.high) < 0 else "unclear"


def metric_changes(
    reference: ScoredSets, trained: ScoredSets, *, resamples: int = 200, seed: int = 0
) -> list[MetricChange]:
    """The change of every figure of `GAIN_METRICS` on every OOD set, and of its mean over sets.

    Args:
        reference: Scores of the reference.
        trained: Scores of the trained classifier, of the same images in the same order.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        GoodRtError: the images differ in number.
    """
    draws, values = {}, {}
    for ood_set, oods in reference.ood.items():
        pairs = [(reference.id, oods), (trained.id, trained.ood[ood_set])]
        sizes = sorted({(ids.size, of_set.size) for ids, of_set in pairs})
        if len(sizes) > 1:
            raise GoodRtError(
                f"OOD set {ood_set!r}: both classifiers must score the same images, but the "
                f"numbers of ID and OOD images differ: {sizes[0]} and {sizes[1]}"
            )
        before, after = (bootstrap_draws(*pair, resamples=resamples, seed=seed) for pair in pairs)
        draws[ood_set] = after - before
        values[ood_set] = np.array([astuple(detection_metrics(*pair)) for pair in pairs])
    draws[MEAN] = np.mean(list(draws.values()), axis=0)
    values[MEAN] = np.mean(list(values.values()), axis=0)
    changes = []
    for metric in GAIN_METRICS:
        column = METRICS.index(metric)
        for ood_set, difference in draws.items():
            ends = np.quantile(difference[:, column], [0.025, 0.975])
            changes.append(
                MetricChange(metric, ood_set, *map(float, (*values[ood_set][:, column], *ends)))
            )
    return changes


def gain_verdict(changes: Sequence[MetricChange], roles: TrainingRoles) -> str:
    """One or two sentences: where the generated images helped, where they hurt, where neither.

    Args:
        changes: What `metric_changes` returned.
        roles: Which model is which.
    """
    of_sets = [c for c in changes if c.metric == VERDICT_METRIC and c.ood_set != MEAN]
    names = {
        verdict: [change.ood_set for change in of_sets if change.verdict == verdict]
        for verdict in ("better", "worse", "unclear")
    }
    subject = "The generated images" if roles.control else "Training with the generated images"
    parts = []
    if names["better"]:
        parts.append(f"helped on {_listed(names['better'], len(of_sets))}")
    if names["worse"]:
        parts.append(f"hurt on {_listed(names['worse'], len(of_sets))}")
    if names["unclear"]:
        where = _listed(names["unclear"], len(of_sets))
        parts.append(f"made no clear difference on {where}")
    mean = next(c for c in changes if (c.metric, c.ood_set) == (VERDICT_METRIC, MEAN))
    moves = "falls" if mean.after < mean.before else "rises"
    relative = "" if mean.relative is None else f", {signed_percent(mean.relative)}"
    change = f"{moves} from {percent(mean.before)} to {percent(mean.after)} %{relative}"
    if mean.after == mean.before:
        change = f"stays {percent(mean.after)} %"
    against = "the control" if roles.control else "the original classifier"
    return (
        f"{subject} {', and '.join(parts)}. Against {against}, the mean share of OOD images that "
        f"are accepted {change}."
    )


def signed_percent(share: float) -> str:
    """A change as a whole percentage with its sign."""
    return f"{100 * share:+.0f} %".replace("-", "−")


def _listed(names: Sequence[str], of: int) -> str:
    if len(names) == of:
        return "every OOD set" if of > 1 else f"the OOD set {names[0]}"
    return _joined(names)


def _joined(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


@dataclass(frozen=True)
class GainCell:
    """A cell of the section's table: a figure, what stands below it, and a CSS class."""

    value: str
    below: str = ""
    css: str = ""


@dataclass(frozen=True)
class GainSection:
    """What the template shows of the comparison.

    Attributes:
        verdict: Whether the generated images helped.
        roles: Which model is which.
        titles: Titles of the figures.
        rows: For each OOD set and the mean, its name and its cells: for each figure the models',
            then the change.
        plots: A plot a figure.
    """

    verdict: str
    roles: TrainingRoles
    titles: Sequence[str]
    rows: Sequence[tuple[str, Sequence[GainCell]]]
    plots: Sequence[Markup]


def gain_section(
    evaluation: Evaluation,
    roles: TrainingRoles,
    scores: Mapping[str, ScoredSets],
    score: str,
    colours: Mapping[str, str],
) -> GainSection:
    """The comparison, for the template.

    Args:
        evaluation: Holds the figures and their intervals.
        roles: Which model is which.
        scores: The score's values by model.
        score: Name of the score.
        colours: Colour of each model, as other plots have it.

    Raises:
        GoodRtError: a model of ``roles`` is not in the evaluation.
    """
    for model in roles.models:
        if model not in scores:
            raise GoodRtError(
                f"the report is to compare the model {model!r}, which was not evaluated"
            )
    changes = metric_changes(scores[roles.reference], scores[roles.trained])
    by_place = {(change.metric, change.ood_set): change for change in changes}
    rows = []
    for ood_set in (*evaluation.ood_sets, MEAN):
        cells = []
        for metric in GAIN_METRICS:
            for model in roles.models:
                row = evaluation.row(model, score, ood_set)
                interval = row.intervals.get(metric)
                below = "" if interval is None else "–".join(map(percent, interval))
                cells.append(GainCell(percent(getattr(row.metrics, metric)), below))
            cells.append(_change_cell(by_place[metric, ood_set]))
        rows.append((ood_set, cells))
    return GainSection(
        gain_verdict(changes, roles),
        roles,
        list(GAIN_METRICS.values()),
        rows,
        [_gain_plot(evaluation, roles, score, metric, colours) for metric in GAIN_METRICS],
    )


def _change_cell(change: MetricChange) -> GainCell:
    """The relative change, and below it the interval of the difference in points."""
    value = "–" if change.relative is None else signed_percent(change.relative)
    if change.metric != VERDICT_METRIC:  # of a share near 1, points say more
        value = _points(change.after - change.before)
    below = f"{_points(change.low)} to {_points(change.high)}"
    is_shown = _points(change.after - change.before) != "0.0"  # else a colour would puzzle
    return GainCell(value, below, f"change {change.verdict if is_shown else 'unclear'}")


def _points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "−")


def _gain_plot(
    evaluation: Evaluation,
    roles: TrainingRoles,
    score: str,
    metric: str,
    colours: Mapping[str, str],
) -> Markup:
    """A row an OOD set: a mark for each model, and the interval of the trained one."""
    ood_sets = (*evaluation.ood_sets, MEAN)
    figure, (axes,) = hairline_figure(5.0, 0.55 + 0.3 * len(ood_sets))
    for place, ood_set in enumerate(ood_sets):
        rows = [evaluation.row(model, score, ood_set) for model in roles.models]
        values = [100 * float(getattr(row.metrics, metric)) for row in rows]
        axes.plot([min(values), max(values)], [place, place], color=LINE, linewidth=2.5, zorder=1)
        interval = rows[-1].intervals.get(metric)
        if interval is not None:
            ends = [100 * end for end in interval]
            axes.plot(ends, [place, place], color=colours[roles.trained], linewidth=1.2, zorder=2)
        for model, value in zip(roles.models, values, strict=True):
            filled, colour = model == roles.trained, colours[model]
            axes.plot(
                [value],
                [place],
                marker="D" if model == roles.control else "o",
                markersize=4.6 if model == roles.control else 5.8,
                markerfacecolor=colour if filled else BACKGROUND,
                markeredgecolor=colour,
                markeredgewidth=1.3,
                linestyle="none",
                zorder=4 if filled else 3,
                clip_on=False,
            )
    axes.set_yticks(range(len(ood_sets)), ood_sets, parse_math=False)
    for label in axes.get_yticklabels():
        label.set(color=INK, fontsize=8.5)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(ood_sets) - 0.5, -0.5)
    axes.axhline(len(ood_sets) - 1.5, color=LINE, linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, 0) if metric == "auroc" else 0, min(high, 100.5))
    title = GAIN_METRICS[metric]
    direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    axes.set_xlabel(f"{title}, % ({direction} is better)", color=MUTED)
    return inline_svg(figure, f"{title} of each classifier on each OOD set")
