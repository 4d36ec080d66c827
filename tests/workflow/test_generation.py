"""Generating: the same image whatever the batch, the same bytes whatever interrupts, and rows that
say what is true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from good_rt.classifier import Classifier, load_classifier, predict, save_classifier
from good_rt.config.settings import BankConfig, GenerationConfig
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo.assets import CLASSES
from good_rt.demo.network import SmallResNet
from good_rt.diffusion import load_diffusion
from good_rt.environment import CPU
from good_rt.errors import GoodRtError
from good_rt.export.manifest import load_engines
from good_rt.method.sampler import sample_seeds
from good_rt.models import Models, check_fit
from good_rt.progress import Progress
from good_rt.workflow.generate import fill
from good_rt.workflow.generator import Generator, generation_record, make_generator, pick_batch

Configs = Callable[..., GenerationConfig]
Fill = Callable[..., GeneratedSet]
LEVELS = 2
"""How far (of 255 levels) a pixel may differ between batch sizes: matrix products round
differently."""


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its relative path."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def pixels(made: GeneratedSet) -> NDArray[np.int64]:
    return made.images().astype(np.int64)


@pytest.mark.parametrize("guidance", ["img", "feat", "both", "none"])
def test_an_image_does_not_depend_on_the_batch(
    generator: Generator, make_config: Configs, guidance: Any
) -> None:
    config = make_config(kind=guidance)
    whole = generator.images(config, [0, 1, 2, 3, 4, 5]).astype(int)
    np.testing.assert_array_equal(
        whole, generator.images(config, [0, 1, 2, 3, 4, 5])
    )  # bytes, for the same batch
    alone = np.concatenate([generator.images(config, [i]) for i in (5, 2)]).astype(int)
    assert np.abs(whole[[5, 2]] - alone).max() <= LEVELS
    assert len({image.tobytes() for image in whole}) == 6


def test_batch_sizes_give_the_same_set(
    fill_set: Fill, make_config: Configs, tmp_path: Path
) -> None:
    sets = [fill_set(make_config(7, batch=batch), tmp_path / str(batch)) for batch in (7, 3)]
    assert np.abs(pixels(sets[0]) - pixels(sets[1])).max() <= LEVELS
    for one, other in zip(sets[0].rows(), sets[1].rows(), strict=True):
        assert (one.index, one.seed, one.label, one.strength) == (
            other.index,
            other.seed,
            other.label,
            other.strength,
        )
        assert one.energy == pytest.approx(other.energy, rel=0.01)


def test_the_same_job_gives_the_same_bytes(
    fill_set: Fill, make_config: Configs, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        fill_set(make_config(7, batch=3), tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_another_seed_gives_other_images(generator: Generator, make_config: Configs) -> None:
    one, other = (generator.images(make_config(seed=seed), [0, 1]) for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_rows_say_what_is_true_of_the_images(
    fill_set: Fill, make_config: Configs, classifier: Classifier, id_dir: Path, tmp_path: Path
) -> None:
    config = make_config(10, batch=4)
    made = fill_set(config, tmp_path / "guided")
    twins = fill_set(replace(config, kind="none"), tmp_path / "none")
    train = from_uint8(IdData(id_dir).part("train", 8, 1, 32).images)
    bank = F.normalize(predict(classifier, train)[1].double(), dim=1)
    for out_set, name in (
        (made, ""),
        (twins, "_before"),
    ):  # the unguided set is what "before" speaks of
        logits, features = (v.double() for v in predict(classifier, from_uint8(out_set.images())))
        features = F.normalize(features, dim=1)
        rows = made.rows()
        energies = [getattr(row, f"energy{name}") for row in rows]
        np.testing.assert_allclose(energies, -logsumexp(logits, axis=1), rtol=1e-4)
        distances = [getattr(row, f"knn_distance{name}") for row in rows]
        np.testing.assert_allclose(
            distances, np.sort(cdist(features, bank), axis=1)[:, 2], rtol=1e-3, atol=1e-5
        )
    assert [row.seed for row in made.rows()] == sample_seeds(config.seed, range(10))
    assert [row.label for row in made.rows()] == [i % 8 for i in range(10)]
    assert [row.strength for row in made.rows()] == [(0.5, 1.0, 2.0)[i % 3] for i in range(10)]
    assert {row.guidance for row in made.rows()} == {"both"}
    for row in made.rows():
        with Image.open(tmp_path / "guided" / row.file) as image:
            assert (image.mode, image.size) == ("L", (32, 32))


def test_the_record_names_a_feature_other_than_the_default(
    models: Models, make_config: Configs
) -> None:
    config = make_config()
    other = replace(config, bank=replace(config.bank, feature="mahalanobis"))
    record, of_other = (generation_record(models, one, "torch") for one in (config, other))
    assert "feature" not in record  # as sets of 0.2.0, which are resumed
    assert of_other == {**record, "feature": "mahalanobis"}


def test_guidance_does_what_it_is_for(fill_set: Fill, make_config: Configs, tmp_path: Path) -> None:
    for kind, column in (("img", "energy"), ("feat", "knn_distance")):
        rows = fill_set(make_config(36, kind, batch=36, strengths=(1.0,)), tmp_path / kind).rows()
        gains = [getattr(row, column) - getattr(row, f"{column}_before") for row in rows]
        assert np.mean(gains) > 0 and sum(gain > 0 for gain in gains) > 20, kind


def test_without_twins_there_is_no_before(
    fill_set: Fill, make_config: Configs, tmp_path: Path
) -> None:
    rows = fill_set(make_config(3, batch=3, twins=False), tmp_path).rows()
    assert {(row.energy_before, row.knn_distance_before) for row in rows} == {(None, None)}


def test_what_is_not_finite_is_an_error_that_names_the_image_and_leaves_the_folder_to_another_try(
    generator: Generator, fill_set: Fill, make_config: Configs, tmp_path: Path
) -> None:
    class Broken:
        """A decoder or denoiser whose second sample is damaged."""

        def __init__(self, whole: Any) -> None:
            self.whole = whole

        def __call__(self, *arguments: Any) -> Any:
            found = self.whole(*arguments).clone()
            found[1] = torch.nan
            return found

    config = make_config(6, kind="none", batch=3)
    config = replace(config, sampler=replace(config.sampler, start="noise"))
    for part, message in (
        ("decode", "the decoder .* for image 4; its weights"),
        ("denoiser", r"at step 0 for sample 4;"),
    ):
        broken = replace(generator, **{part: Broken(getattr(generator, part))})
        with pytest.raises(GoodRtError, match=message):
            broken.images(config, [3, 4, 5])
        with pytest.raises(GoodRtError, match="not finite"):
            fill_set(config, tmp_path, broken)
    assert not GeneratedSet(tmp_path).rows()
    assert len(fill_set(make_config(3, batch=3, seed=1), tmp_path).rows()) == 3


def test_a_finished_set_is_extended_and_left_alone(
    fill_set: Fill, make_config: Configs, tmp_path: Path
) -> None:
    heard: list[int] = []

    class Heard(Progress):
        @contextmanager
        def task(self, text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
            yield heard.append

    fill_set(make_config(5, batch=4), tmp_path / "a")
    before = content(tmp_path / "a")
    fill_set(make_config(5, batch=4), tmp_path / "a", progress=Heard())
    assert content(tmp_path / "a") == before and heard == [5]
    fill_set(make_config(9, batch=4), tmp_path / "a")
    fill_set(make_config(9, batch=4), tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_another_job_is_refused(
    generator: Generator, models: Models, fill_set: Fill, make_config: Configs, tmp_path: Path
) -> None:
    config = make_config(3, batch=3)
    fill_set(config, tmp_path)
    for other in (make_config(3, batch=3, seed=1), make_config(3, batch=2)):
        with pytest.raises(GoodRtError, match="holds images of another job"):
            fill_set(other, tmp_path)
    of_another_model = replace(models.diffusion, fingerprint="x")
    record = generation_record(replace(models, diffusion=of_another_model), config, "torch")
    with pytest.raises(GoodRtError, match=r"another job \(different: model\)"):
        fill(generator, config, tmp_path, record)


def test_onnx_engines_give_the_images_of_pytorch(
    generator: Generator, models: Models, make_config: Configs, id_dir: Path, engines_dir: Path
) -> None:
    engines = load_engines(engines_dir, models.fingerprints)
    config = make_config()
    fast = make_generator(models, IdData(id_dir), config, engines)
    found, expected = (g.images(config, [0, 1, 2, 3]).astype(int) for g in (fast, generator))
    assert np.abs(found - expected).max() <= LEVELS
    # gradients go through PyTorch either way
    variance = replace(config, guidance=replace(config.guidance, rho=0.2))
    found, expected = (g.images(variance, [0]).astype(int) for g in (fast, generator))
    assert np.abs(found - expected).max() <= LEVELS


def test_a_pixel_model_works_as_well(
    pixel_dir: Path,
    classifier: Classifier,
    id_dir: Path,
    fill_set: Fill,
    make_config: Configs,
    tmp_path: Path,
) -> None:
    models, config = (
        Models(load_diffusion(pixel_dir), classifier, CPU),
        make_config(4, batch=2, steps=2),
    )
    generator = make_generator(models, IdData(id_dir), config)
    assert generator.conditioning is None
    generated = fill_set(config, tmp_path, generator)
    assert generated.images().shape == (4, 32, 32, 1)
    latents_are_images = generator.images(config, [0, 1])
    assert np.abs(latents_are_images.astype(int) - generated.images()[:2]).max() <= LEVELS


def test_models_that_do_not_fit_together_are_refused(
    models: Models, id_dir: Path, make_config: Configs
) -> None:
    classifier = models.classifier
    colour = Classifier(SmallResNet(3, 8), replace(classifier.config, channels=3))
    with pytest.raises(
        GoodRtError, match=r"images of 32x32 pixels, 1 channel; the classifier takes 32x32 .*3 chan"
    ):
        check_fit(models.diffusion, colour)
    wide = Classifier(SmallResNet(1, 8), replace(classifier.config, image_size=64))
    with pytest.raises(GoodRtError, match="the classifier takes 64x64 pixels, 1 channel: choose"):
        check_fit(models.diffusion, wide)
    oblong = replace(models.diffusion, image_shape=(1, 32, 48))
    with pytest.raises(GoodRtError, match="makes images of 48x32 pixels"):
        check_fit(oblong, classifier)
    many = Classifier(
        SmallResNet(1, 8, 10), replace(classifier.config, classes=(*CLASSES, "bag", "boot"))
    )
    with pytest.raises(GoodRtError, match="the diffusion model knows 9 classes, the classifier 10"):
        check_fit(models.diffusion, many)
    far = replace(make_config(), bank=BankConfig(k=401))
    with pytest.raises(GoodRtError, match="k must be between 1 and 400"):
        make_generator(models, IdData(id_dir), far)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count is 0, but must be at least 1"),
        ({"count": 1, "batch": 0}, "batch is 0, but must be at least 1"),
        ({"count": 1, "strengths": ()}, "strengths must be one or more numbers"),
        ({"count": 1, "strengths": (1.0, -1.0)}, "strengths must be one or more numbers"),
        ({"count": 1, "strengths": (float("nan"),)}, "strengths is nan, but must be a number"),
        ({"count": 1, "strengths": (1.0, float("inf"))}, "strengths must be one or more numbers"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GoodRtError, match=message):
        GenerationConfig(**settings)


def test_a_picked_batch_is_one_of_the_sizes_tried(generator: Generator) -> None:
    assert pick_batch(generator, 1) == 1
    assert pick_batch(generator, 40, largest=16) in {8, 16}


def test_a_killed_command_goes_on_to_the_same_bytes(
    model_dir: Path, classifier_dir: Path, id_dir: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    """A process is killed without a warning in the middle; going on gives, file by file, what one
    run gives."""
    options = [
        "generate",
        "--engine",
        "torch",
        "--model",
        model_dir,
        "--classifier",
        classifier_dir,
        "--id",
        id_dir,
        "--batch",
        "2",
        "-n",
        "24",
        "--sampler-steps",
        "8",
        "--json",
    ]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [Path(sys.executable).parent / "good-rt", *options, "-o", killed]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while len(GeneratedSet(killed).rows()) < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    done = GeneratedSet(killed).rows()
    assert 4 <= len(done) < 24
    kept = {row.file: (killed / row.file).stat().st_mtime_ns for row in done}
    assert run(*options, "-o", killed).json["images"] == 24
    assert {
        file: (killed / file).stat().st_mtime_ns for file in kept
    } == kept  # what was done was not done again
    assert run(*options, "-o", whole).code == 0
    assert content(killed) == content(whole)


def test_a_saved_classifier_gives_the_same_generator(
    models: Models, id_dir: Path, generator: Generator, make_config: Configs, tmp_path: Path
) -> None:
    save_classifier(models.classifier, tmp_path)
    saved = replace(models, classifier=load_classifier(tmp_path))
    config = make_config()
    again = make_generator(saved, IdData(id_dir), config)
    np.testing.assert_array_equal(again.images(config, [0, 1]), generator.images(config, [0, 1]))
