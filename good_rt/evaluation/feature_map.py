"""How far from the training data the images of each set lie, as the detector's classifier sees
them.

The strip shows the score of every set in one picture. The map shows each set on a plane of two
discrepancies: the energy, which image-level guidance raises, and the distance of the features,
which feature-level guidance raises. A projection that is fitted on ID features, such as LDA or PCA,
would hide an image that is far off in the directions that ID images do not use, and show it among
them; a distance keeps all directions. The axes are of one kind: standard deviations of ID test
images, on an inverse hyperbolic sine scale, which is linear near the ID images and logarithmic far
from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from good_rt.errors import GoodRtError
from good_rt.evaluation.drawing import (
    GENERATED_COLOUR,
    ID_COLOUR,
    INK,
    LINE,
    MUTED,
    OOD_COLOUR,
    drawn_limits,
    hairline_figure,
    inline_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SetGroup = Literal["id", "generated", "ood"]
GROUP_COLOURS: Mapping[SetGroup, str] = {
    "id": ID_COLOUR,
    "generated": GENERATED_COLOUR,
    "ood": OOD_COLOUR,
}
MAP_POINTS = 6000
"""Points of all sets together, beside the ID points of every panel."""
SET_POINTS, ID_POINTS = 500, 600
"""Points of a set, and of the ID images behind it."""
TICKS = (-5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100, 1000)
MOST_BINS = 90


@dataclass(frozen=True)
class SetDistances:
    """How far the N images of a set lie from the training data.

    Attributes:
        title: Its name in the report.
        group: ID test images, generated images or OOD test images.
        scores: (N,) scores by model, higher = more OOD; the models are those of the strip.
        plane: (N, 2) energy and feature distance by the shipped classifier.
        refused: Share that the shipped detector refuses.
    """

    title: str
    group: SetGroup
    scores: Mapping[str, NDArray[np.floating[Any]]]
    plane: NDArray[np.floating[Any]]
    refused: float


@dataclass(frozen=True)
class DistanceFigures:
    """What strip and map show.

    Attributes:
        sets: The sets, ID first, in the order of the rows.
        thresholds: By model, the largest score that its detector accepts.
        axes: Names of the plane's two discrepancies.
        score: Name of the score.
        alpha: Share of ID inputs that the detector may refuse.
        held_out: Titles of the generated sets of which only held-out images are shown.
    """

    sets: Sequence[SetDistances]
    thresholds: Mapping[str, float]
    axes: tuple[str, str]
    score: str
    alpha: float
    held_out: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.sets or self.sets[0].group != "id":
            raise GoodRtError("the first set of a map of distances must be the ID test images")
        for one in self.sets:
            sizes = {len(one.plane), *(len(values) for values in one.scores.values())}
            if len(sizes) > 1 or sizes == {0}:
                raise GoodRtError(
                    f"the set {one.title!r} must have as many points as scores, at least one; it "
                    f"has {sorted(sizes)}"
                )


@dataclass(frozen=True)
class MapPanel:
    """A panel of the map, for the template."""

    title: str
    group: SetGroup
    shown: int
    n: int
    plot: Markup


def score_strips(figures: DistanceFigures) -> list[tuple[str, Markup]]:
    """Name and plot of each model: a row a set, the share of its images at each score.

    Args:
        figures: The sets.
    """
    return [(model, _strip(figures, model)) for model in figures.thresholds]


def _strip(figures: DistanceFigures, model: str) -> Markup:
    threshold, ids = figures.thresholds[model], figures.sets[0].scores[model]
    scale = _Scale.of(ids)
    values = [scale(one.scores[model]) for one in figures.sets]
    low, high = drawn_limits(*values)
    pitch, height = 1.0, 0.92
    figure, (axes,) = hairline_figure(5.2, 0.5 + 0.34 * len(figures.sets))
    for place, (one, scaled) in enumerate(zip(figures.sets, values, strict=True)):
        base = -pitch * place
        edges = np.linspace(low, high, 1 + min(MOST_BINS, 12 + int(np.sqrt(scaled.size))))
        counts = np.histogram(np.clip(scaled, low, high), edges)[0].astype(float)
        heights = base + height * counts / counts.max()
        colour = GROUP_COLOURS[one.group]
        axes.stairs(heights, edges, baseline=base, fill=True, color=colour, alpha=0.4)
        axes.stairs(heights, edges, baseline=base, color=colour, linewidth=0.9)
        axes.plot([low, high], [base, base], color=LINE, linewidth=0.7)
        axes.annotate(
            refused_text(float(np.mean(one.scores[model] > threshold))),
            (1.0, base + 0.16),
            xycoords=("axes fraction", "data"),
            xytext=(34, 0),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=MUTED,
        )
    axes.axvline(
        float(scale(np.float64(threshold))), color=INK, linewidth=0.9, linestyle=(0, (3, 2))
    )
    places = -pitch * np.arange(len(figures.sets)) + 0.2
    axes.set_yticks(places, [one.title for one in figures.sets], parse_math=False)
    for label in axes.get_yticklabels():
        label.set(color=INK, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(low, high)
    axes.set_ylim(-pitch * (len(figures.sets) - 1), 1.05)
    scale.label(axes, "x")
    axes.set_xlabel(
        f"{figures.score} score, in standard deviations of ID test images", parse_math=False
    )
    axes.set_title("refused", loc="right", fontsize=8, color=MUTED, x=1.1, pad=2)
    return inline_svg(figure, f"Histograms of the {figures.score} score of {model}, a row a set")


def map_panels(figures: DistanceFigures) -> list[MapPanel]:
    """A panel of the map for each generated and OOD set, all with the same axes.

    Args:
        figures: The sets.
    """
    known, *others = figures.sets
    scales = [_Scale.of(column) for column in known.plane.T]
    planes = [
        np.stack([scale(column) for scale, column in zip(scales, one.plane.T, strict=True)], axis=1)
        for one in figures.sets
    ]
    limits = [drawn_limits(*(plane[:, axis] for plane in planes)) for axis in (0, 1)]
    lower, upper = (np.array(ends) for ends in zip(*limits, strict=True))
    limit = min(SET_POINTS, MAP_POINTS // max(1, len(others)))
    background = _spread(planes[0].clip(lower, upper), ID_POINTS)
    panels = []
    for one, plane in zip(others, planes[1:], strict=True):
        points = _spread(plane.clip(lower, upper), limit)
        figure, (axes,) = hairline_figure(3.6, 2.9)
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
        axes.margins(0)
        _draw_points(axes, background, ID_COLOUR, 0.5, "id-points")
        _draw_points(axes, points, GROUP_COLOURS[one.group], 0.75, "set-points")
        scales[0].label(axes, "x")
        scales[1].label(axes, "y")
        axes.set_xlabel(figures.axes[0], parse_math=False)
        axes.set_ylabel(figures.axes[1], parse_math=False)
        axes.set_title(
            f"{refused_text(one.refused)} refused", loc="right", fontsize=8.5, color=MUTED
        )
        what = f"{one.group} set {one.title}"
        plot = inline_svg(figure, f"{figures.axes[0]} and {figures.axes[1]} of the {what}")
        panels.append(
            MapPanel(one.title, one.group, len(points), len(plane), _compact_points(plot))
        )
    return panels


def refused_text(share: float) -> str:
    """A share as a percentage: whole, with one decimal below 10 and above 99 %."""
    return f"{100 * share:.{0 if 0.1 <= share <= 0.99 or share in (0, 1) else 1}f} %"


@dataclass(frozen=True)
class _Scale:
    """asinh of standard deviations from the mean of ID images."""

    mean: float
    std: float

    @classmethod
    def of(cls, ids: NDArray[np.floating[Any]]) -> _Scale:
        return cls(float(ids.mean()), float(ids.std()) or 1.0)

    def __call__(self, values: Any) -> NDArray[np.float64]:
        return np.arcsinh((np.asarray(values, np.float64) - self.mean) / self.std)

    def label(self, axes: Axes, axis: Literal["x", "y"]) -> None:
        """Ticks at whole standard deviations, as far as the axis goes."""
        low, high = getattr(axes, f"get_{axis}lim")()
        inside = [tick for tick in TICKS if low <= np.arcsinh(tick) <= high]
        getattr(axes, f"set_{axis}ticks")(
            np.arcsinh(inside), [f"{tick:g}".replace("-", "−") for tick in inside]
        )


def _spread(points: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """At most ``limit`` points, evenly spaced along the set."""
    if len(points) <= limit:
        return points
    return points[np.linspace(0, len(points) - 1, limit).round().astype(int)]


def _draw_points(
    axes: Axes, points: NDArray[np.float64], colour: str, alpha: float, name: str
) -> None:
    """Points as one path of lines without length, whose round caps are dots: a tenth of the size of
    an element a point."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    path = Path(np.repeat(points, 2, axis=0), [Path.MOVETO, Path.LINETO] * len(points))
    path.should_simplify = False
    patch = PathPatch(
        path, facecolor="none", edgecolor=colour, linewidth=2.2, capstyle="round", alpha=alpha
    )
    patch.set(gid=name, clip_on=False, snap=False)
    axes.add_patch(patch)


def _compact_points(svg: Markup) -> Markup:
    """The plot with every "M x y L x y" as "Mx yh0", with one decimal."""

    def dot(match: re.Match[str]) -> str:
        x, y = (f"{float(value):.1f}" for value in match.group(1, 2))
        return f"M{x} {y}h0"

    return Markup(re.sub(r"M (-?[\d.]+) (-?[\d.]+) L \1 \2 ?", dot, svg))
