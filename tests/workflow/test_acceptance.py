"""Which generated images are kept: each criterion, the budget, and sets that are interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from good_rt.classifier import outputs
from good_rt.config.settings import AcceptConfig, GenerationConfig
from good_rt.data.batches import half_rows, id_batches
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData
from good_rt.errors import GoodRtError
from good_rt.method.acceptance import CRITERIA, Candidate, Kept, rejection
from good_rt.method.discrepancy.energy import image_level
from good_rt.workflow.generator import Generator

Fill = Callable[..., GeneratedSet]
SETTINGS = {
    "accept_p_value": {"p_value": (0.01, 0.05)},
    "accept_energy": {"energy": (-1.0, 1.0)},
    "accept_distance": {"distance": (0.1, 0.3)},
    "accept_gap": {"gap": 0.5},
    "balance": {"balance": True},
}


def candidate(**values: Any) -> Candidate:
    feature = np.array([1.0, 0.0], np.float32)
    return Candidate(**{"label": 0, "energy": 0.0, "knn_distance": 0.2, "p_value": 0.03, **values,
                        "feature": values.get("feature", feature)})  # fmt: skip


def kept_of(*features: tuple[float, float]) -> Kept:
    kept = Kept(count=2, classes=2)
    for feature in features:
        kept.add(0, np.array(feature, np.float32))
    return kept


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("accept_p_value", {"p_value": 0.06}),
        ("accept_p_value", {"p_value": 0.009}),
        ("accept_energy", {"energy": 1.01}),
        ("accept_distance", {"knn_distance": 0.09}),
        ("accept_gap", {"feature": np.array([0.0, 1.0], np.float32)}),
        ("balance", {}),
    ],
)
def test_a_criterion_rejects_what_it_is_for(name: str, refused: dict[str, Any]) -> None:
    config, kept = AcceptConfig(**SETTINGS[name]), kept_of((0.0, 1.0))
    assert rejection(config, candidate(**refused), kept) == name
    assert rejection(AcceptConfig(), candidate(**refused), kept) is None
    other = {} if name != "balance" else {"label": 1}
    assert rejection(config, candidate(**other), kept) is None


def test_every_criterion_is_a_setting() -> None:
    assert set(SETTINGS) == set(CRITERIA)
    assert not AcceptConfig().active
    assert all(AcceptConfig(**settings).active for settings in SETTINGS.values())


@given(st.integers(1, 40), st.integers(1, 9), st.randoms())
def test_a_balanced_set_can_always_be_filled(count: int, classes: int, random: Any) -> None:
    kept = Kept(count, classes)
    for label in random.choices(range(classes), k=count) + list(range(classes)) * count:
        if (
            not kept.is_full
            and rejection(AcceptConfig(balance=True), candidate(label=label), kept) is None
        ):
            kept.add(label, np.zeros(2, np.float32))
    counts = np.array([kept.per_class[label] for label in range(classes)])
    assert kept.is_full and counts.max() - counts.min() <= 1


def test_the_p_value_is_the_share_of_held_out_id_images(
    generator: Generator, make_config: Callable[..., GenerationConfig], id_dir: Path
) -> None:
    config, data = make_config(kind="img"), IdData(id_dir)
    images = generator.images(config, list(range(8)))
    fitted, _ = half_rows(data, "held_out")
    logits, _ = outputs(
        generator.classifier,
        id_batches(data, "held_out", generator.classifier, rows=fitted),
    )
    known = image_level(logits).numpy()
    found = generator.measure(images, config)
    expected = [(1 + (known >= energy).sum()) / (1 + len(known)) for energy in found.energy]
    np.testing.assert_allclose(found.p_value, expected, rtol=1e-6)


def median_band(made: GeneratedSet) -> tuple[float, float]:
    return -1e9, float(np.median([row.energy for row in made.rows()]))


def test_a_set_holds_what_is_accepted_and_says_why_the_rest_is_not(
    fill_set: Fill, make_config: Callable[..., GenerationConfig], tmp_path: Path
) -> None:
    config = make_config(20, kind="img", batch=5, twins=False)
    plain = fill_set(config, tmp_path / "plain")
    band = median_band(plain)
    some = replace(config, count=8, accept=AcceptConfig(energy=band))
    made = fill_set(some, tmp_path / "some")
    expected = [row for row in plain.rows() if row.energy <= band[1]][:8]
    assert [row.index for row in made.rows()] == [row.index for row in expected]
    np.testing.assert_array_equal(made.images(), plain.images(expected))
    rejected = made.rejections()
    assert set(rejected.values()) == {"accept_energy"}
    assert set(rejected) == set(range(expected[-1].index)) - {row.index for row in expected}
    assert made.settings()["accept"]["energy"] == list(band)


def test_an_interrupted_set_ends_as_an_uninterrupted_one(
    fill_set: Fill, make_config: Callable[..., GenerationConfig], tmp_path: Path
) -> None:
    config = make_config(20, kind="img", batch=5, twins=False)
    band = median_band(fill_set(config, tmp_path / "plain"))
    accept = AcceptConfig(energy=band, gap=0.05)
    whole = fill_set(replace(config, count=6, accept=accept), tmp_path / "whole")

    fill_set(replace(config, count=3, accept=accept), tmp_path / "parts")
    rejections = tmp_path / "parts" / "rejected.jsonl"
    rejections.write_text(rejections.read_text()[:-4])  # a line cut short
    parts = fill_set(replace(config, count=6, accept=accept), tmp_path / "parts")
    assert {row.index for row in parts.rows()} == {row.index for row in whole.rows()}


def test_a_budget_that_is_spent_says_what_was_rejected(
    fill_set: Fill, make_config: Callable[..., GenerationConfig], tmp_path: Path
) -> None:
    accept = AcceptConfig(energy=(1e8, 1e9), budget=2)
    config = replace(make_config(4, kind="img", batch=4, twins=False), accept=accept)
    with pytest.raises(
        GoodRtError, match=r"only 0 of 4 images were kept of 8 samples \(rejected: 8 by accept_e"
    ):
        fill_set(config, tmp_path / "set")
    lines = (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(8))
    with pytest.raises(GoodRtError, match=r"of 12 samples \(rejected: 12 by accept_energy"):
        fill_set(replace(config, accept=replace(accept, budget=3)), tmp_path / "set")


def test_a_p_value_that_no_image_can_have_is_refused_at_once(
    fill_set: Fill, make_config: Callable[..., GenerationConfig], tmp_path: Path
) -> None:
    config = replace(make_config(4), accept=AcceptConfig(p_value=(0.0, 0.001)))
    with pytest.raises(GoodRtError, match=r"below 0\.00826, the smallest p-value by 120 held-out"):
        fill_set(config, tmp_path / "set")


@pytest.mark.parametrize("settings", [{"p_value": (0.5, 0.1)}, {"gap": -1.0}, {"budget": 0.5}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(GoodRtError):
        AcceptConfig(**settings)
