"""Strip and map: every point is where its image lies, thinned evenly, and in a small space."""

from __future__ import annotations

import re

import numpy as np
import pytest

from good_rt.errors import GoodRtError
from good_rt.evaluation.feature_map import (
    ID_POINTS,
    MAP_POINTS,
    SET_POINTS,
    DistanceFigures,
    SetDistances,
    SetGroup,
    map_panels,
    refused_text,
    score_strips,
)


def one_set(title: str, group: SetGroup, gap: float, n: int = 900) -> SetDistances:
    rng = np.random.default_rng(len(title))
    scores = {"before": rng.normal(gap, 1, n), "trained": rng.normal(2 * gap, 1, n)}
    return SetDistances(title, group, scores, rng.normal(gap, 1, (n, 2)), 0.05)


def figures_of(*sets: SetDistances) -> DistanceFigures:
    return DistanceFigures(
        sets, {"before": 1.6, "trained": 1.7}, ("Energy", "k-NN distance"), "Unified", 0.05
    )


ID = one_set("ID test images", "id", 0.0)
GENERATED = one_set("image level", "generated", 1.0, 180)
NEAR = one_set("near", "ood", 2.0)
FIGURES = figures_of(ID, GENERATED, NEAR)


def points(svg: str, name: str) -> np.ndarray:
    """The dots of one path, (N, 2) in the SVG's points."""
    (path,) = re.findall(rf'<g id="p[0-9a-f]+-{name}"> <path d="([^"]*)"', svg)
    return np.array([tuple(map(float, dot)) for dot in re.findall(r"M(\S+) (\S+)h0", path)])


def test_every_image_is_a_point_until_the_limit() -> None:
    panels = map_panels(FIGURES)
    assert [(p.title, p.group, p.shown, p.n) for p in panels] == [
        ("image level", "generated", 180, 180),
        ("near", "ood", SET_POINTS, 900),
    ]
    for panel in panels:
        assert len(points(panel.plot, "set-points")) == panel.shown
        assert len(points(panel.plot, "id-points")) == ID_POINTS


def test_points_lie_where_their_images_do() -> None:
    """The map is linear in asinh of standard deviations: a line fits the drawn places."""
    panel = map_panels(FIGURES)[0]
    drawn = points(panel.plot, "set-points")
    for axis, sign in ((0, 1), (1, -1)):  # SVG counts down
        ids = ID.plane[:, axis]
        scaled = np.arcsinh((GENERATED.plane[:, axis] - ids.mean()) / ids.std())
        inside = (drawn[:, axis] > drawn[:, axis].min()) & (drawn[:, axis] < drawn[:, axis].max())
        slope, offset = np.polyfit(scaled[inside], drawn[inside, axis], 1)
        assert sign * slope > 0
        np.testing.assert_allclose(slope * scaled[inside] + offset, drawn[inside, axis], atol=0.15)


def test_the_id_points_are_the_same_in_every_panel() -> None:
    first, second = (points(panel.plot, "id-points") for panel in map_panels(FIGURES))
    np.testing.assert_array_equal(first, second)


def test_many_large_sets_stay_small() -> None:
    sets = [one_set(f"set {i:02}", "ood", i / 4, 5000) for i in range(24)]
    panels = map_panels(figures_of(ID, *sets))
    assert sum(panel.shown for panel in panels) <= MAP_POINTS
    assert len({panel.shown for panel in panels}) == 1  # each the same share
    assert sum(len(panel.plot) for panel in panels) < 24 * 25_000


def test_the_strip_has_a_row_a_set_and_says_what_is_refused() -> None:
    strips = dict(score_strips(FIGURES))
    assert list(strips) == ["before", "trained"]
    for model, strip in strips.items():
        shares = re.findall(r">([\d.]+ %)<", strip)
        threshold = FIGURES.thresholds[model]
        assert shares == [
            refused_text(float(np.mean(one.scores[model] > threshold))) for one in FIGURES.sets
        ]
        for one in FIGURES.sets:
            assert f">{one.title}<" in strip


def test_constant_and_infinite_values_are_drawn() -> None:
    flat = SetDistances("ID test images", "id", {"m": np.ones(5)}, np.ones((5, 2)), 0.0)
    figures = DistanceFigures(
        [flat, SetDistances("near", "ood", {"m": np.ones(1)}, np.ones((1, 2)), 1.0)],
        {"m": -np.inf},
        ("Energy", "k-NN distance"),
        "Unified",
        0.5,
    )
    assert len(points(map_panels(figures)[0].plot, "set-points")) == 1
    assert "<svg" in score_strips(figures)[0][1]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.0484, "4.8 %"), (0.994, "99.4 %"), (0.69, "69 %")],
)
def test_shares_have_a_decimal_where_it_matters(share: float, text: str) -> None:
    assert refused_text(share) == text


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(GoodRtError, match=r"first set .* must be the ID test images"):
        figures_of(NEAR)
    short = SetDistances("near", "ood", {"before": np.ones(3)}, np.ones((2, 2)), 0.0)
    with pytest.raises(GoodRtError, match=r"'near' must have as many points as scores.*\[2, 3\]"):
        figures_of(ID, short)
