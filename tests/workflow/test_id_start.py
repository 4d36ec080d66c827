"""Sampling from ID images: which image each sample starts from, and what a set records of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from good_rt.config.settings import GenerationConfig, SamplerConfig
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData
from good_rt.errors import GoodRtError
from good_rt.models import Models
from good_rt.workflow.generator import Generator

LEVELS = 2
"""How far (of 255 levels) a pixel may differ between batch sizes."""


@pytest.fixture
def config(make_config: Callable[..., GenerationConfig]) -> GenerationConfig:
    config = make_config(kind="img")
    return replace(config, sampler=replace(config.sampler, start="id", start_shares=(0.4, 0.7)))


def test_every_image_starts_from_a_training_image_of_its_class(
    generator: Generator, config: GenerationConfig, id_dir: Path
) -> None:
    indices = list(range(40))
    rows = generator.start_rows(config, indices)
    data = IdData(id_dir)
    assert set(rows) <= set(data.rows("train"))
    assert [data.source.entries[row].label for row in rows] == [index % 8 for index in indices]
    assert len(set(rows)) > 30  # of 50 images a class, chosen by chance
    assert rows != generator.start_rows(replace(config, seed=1), indices)
    assert generator.start_rows(config, [7, 3]) == [rows[7], rows[3]]


def test_an_image_does_not_depend_on_the_batch(
    generator: Generator, config: GenerationConfig
) -> None:
    whole = generator.images(config, list(range(6))).astype(int)
    np.testing.assert_array_equal(whole, generator.images(config, list(range(6))))
    alone = np.concatenate([generator.images(config, [index]) for index in (5, 2)]).astype(int)
    assert np.abs(whole[[5, 2]] - alone).max() <= LEVELS


def test_the_manifest_records_the_pairing_and_the_job_its_shares(
    fill_set: Callable[..., GeneratedSet],
    config: GenerationConfig,
    generator: Generator,
    tmp_path: Path,
) -> None:
    made = fill_set(replace(config, count=6), tmp_path / "set")
    assert [row.start_row for row in made.rows()] == generator.start_rows(config, list(range(6)))
    assert made.settings()["start_shares"] == [0.4, 0.7]
    other = replace(config.sampler, start_shares=(0.5,))
    with pytest.raises(GoodRtError, match="start_shares"):
        fill_set(replace(config, count=6, sampler=other), tmp_path / "set")


def test_images_without_classes_start_from_any(models: Models, tmp_path: Path) -> None:
    from PIL import Image

    from good_rt.workflow.id_start import IdStart

    for number in range(30):
        Image.fromarray(np.full((32, 32), 8 * number, np.uint8)).save(tmp_path / f"{number}.png")
    data = IdData(tmp_path)
    start = IdStart(data, models.classifier, lambda images: images)
    rows = start.rows(0, list(range(20)), [index % 8 for index in range(20)])
    assert set(rows) <= set(data.rows("train")) and len(set(rows)) > 5
    assert start.latents(rows).shape == (20, 1, 32, 32)


@pytest.mark.parametrize(("share", "step"), [(1.0, 0), (0.6, 5), (0.4, 7), (0.3, 8), (0.001, 11)])
def test_the_first_step_leaves_the_share(share: float, step: int) -> None:
    config = SamplerConfig(steps=12, start="id", start_shares=(share,))
    assert config.first_steps == (step,)
    assert replace(config, start="noise").first_steps == (0,)


def test_guidance_that_ends_before_sampling_begins_is_refused(
    config: GenerationConfig,
) -> None:
    sampler = SamplerConfig(steps=25, start="id", start_shares=(0.9, 0.3))
    guidance = replace(config.guidance, span=(0.0, 0.5))
    with pytest.raises(GoodRtError, match="none of the steps 17 to 24 that are sampled"):
        replace(config, sampler=sampler, guidance=guidance)


@pytest.mark.parametrize("shares", [(), (0.0,), (1.1,), (float("nan"),)])
def test_shares_outside_their_bounds_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(GoodRtError, match="start_shares"):
        SamplerConfig(start_shares=shares)
    with pytest.raises(GoodRtError, match="start"):
        SamplerConfig(start="image")  # type: ignore[arg-type]
