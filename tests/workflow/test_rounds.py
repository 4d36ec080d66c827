"""Jobs in rounds: each later round is guided by the classifier of the round before, and trains with
the images of all; killed anywhere, it resumes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import good_rt
from good_rt.classifier import Classifier, load_classifier, save_classifier
from good_rt.config.settings import BackendConfig, GenerationConfig
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.runtime import Detector
from good_rt.errors import GoodRtError
from good_rt.models import Models
from good_rt.workflow.generate import open_generator
from good_rt.workflow.job_file import Job
from good_rt.workflow.run import RunResult, run_job
from good_rt.workflow.train import training_record

JOB = """\
version = 3
[data]
images = "{images}"
[models]
classifier = "{classifier}"
diffusion = "{diffusion}"
[generate]
count = 10
kinds = ["img", "feat"]
counts = {{none = 5}}
mu = 0.3
steps = 2
k = 3
batch = 5
engine = "torch"
[train]
rounds = {rounds}
steps = 6
evaluate_every = 2
lr = 0.01
interpolation = 1.0
max_drop = 1.0
"""
WriteJob = Callable[[Path, int], Path]


@pytest.fixture(scope="session")
def write_job(id_dir: Path, model_dir: Path, classifier_dir: Path) -> WriteJob:
    """Writes the file of a tiny job with so many rounds into a folder."""

    def write_job(folder: Path, rounds: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"images": id_dir, "classifier": classifier_dir, "diffusion": model_dir}
        path = folder / "job.toml"
        path.write_text(JOB.format(rounds=rounds, **paths))
        return path

    return write_job


@pytest.fixture(scope="session")
def three_rounds(
    write_job: WriteJob, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult]:
    """The folder and the result of a job of three rounds. Not to be changed."""
    path = write_job(tmp_path_factory.mktemp("rounds"), 3)
    result = run_job(path)
    return path.parent / "job", result


@pytest.fixture(scope="session")
def two_rounds(write_job: WriteJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of two rounds. Not to be changed."""
    path = write_job(tmp_path_factory.mktemp("rounds"), 2)
    run_job(path)
    return path.parent / "job"


def files_of(folder: Path) -> dict[str, bytes]:
    """What a job's steps have computed; not what names its folders."""
    wanted = ("*.png", "manifest.jsonl", "job.json", "model.safetensors")
    paths = [path for name in wanted for path in folder.rglob(name)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def fingerprint(folder: Path) -> str:
    return load_classifier(folder / "trained" / "classifier").fingerprint


def seeds(folder: Path) -> list[int]:
    return [row.seed for row in GeneratedSet(folder).rows()]


def test_the_steps_of_three_rounds(three_rounds: tuple[Path, RunResult]) -> None:
    out, result = three_rounds
    assert [step.name for step in result.steps] == [
        "split",
        *(f"generate {name}" for name in ("img", "feat", "none", "test")),
        "train trained",
        "generate img, round 2",
        "train trained, round 2",
        "generate img, round 3",
        "train trained, round 3",
        "detector",
        "evaluate",
    ]
    assert result.evaluation.models == ("before", "round 1", "round 2", "trained")
    report = (out / "report.html").read_text()
    assert "3; in each after the first 10 img again, guided by the classifier of the" in report
    assert "Image level, round 2" in report and "Image level, round 3" in report


def test_a_round_is_guided_by_the_classifier_of_the_round_before(
    three_rounds: tuple[Path, RunResult], classifier: Classifier
) -> None:
    out, _ = three_rounds
    folders = [out, out / "round-2", out / "round-3"]
    records = [GeneratedSet(folder / "generated" / "img").settings() for folder in folders]
    assert [record.get("round") for record in records] == [None, 2, 3]
    guides = [record["classifier"] for record in records]
    assert guides == [classifier.fingerprint, fingerprint(folders[0]), fingerprint(folders[1])]
    assert len({*guides, fingerprint(folders[2])}) == 4
    changing = {"round", "classifier", "seed"}
    rest = [{key: record[key] for key in record.keys() - changing} for record in records]
    assert rest[0] == rest[1] == rest[2]


def test_no_noise_repeats_in_another_round(three_rounds: tuple[Path, RunResult]) -> None:
    out, _ = three_rounds
    names = ("generated/img", "generated/test", "round-2/generated/img", "round-3/generated/img")
    for one, other in combinations(names, 2):
        assert not set(seeds(out / one)) & set(seeds(out / other)), (one, other)
        images = [
            {image.tobytes() for image in GeneratedSet(out / name).images()}
            for name in (one, other)
        ]
        assert not images[0] & images[1], (one, other)


def test_rounds_by_hand_give_the_same_images_and_weights(
    three_rounds: tuple[Path, RunResult], models: Models, tmp_path: Path
) -> None:
    """Bank, discrepancies and scales are those of the guiding classifier; every training begins
    with the original one."""
    out, _ = three_rounds
    job = Job.read(out.parent / "job.toml")
    guide = replace(models, classifier=load_classifier(out / "round-2" / "trained" / "classifier"))
    config = replace(job.sets["img"], seed=2_000_000)
    generated = good_rt.generate(guide, out / "splits.json", tmp_path / "ood", config)
    expected = GeneratedSet(out / "round-3" / "generated" / "img")
    np.testing.assert_array_equal(generated.images(), expected.images())
    assert generated.rows() == expected.rows()

    sets = [out / "generated" / "img", out / "round-2" / "generated" / "img", tmp_path / "ood"]
    unguided = [out / "generated" / "none"]
    good_rt.train(models, out / "splits.json", tmp_path / "trained", sets, unguided, job.training)
    assert fingerprint(tmp_path) == fingerprint(out / "round-3")
    record = training_record(out / "round-3" / "trained" / "classifier")
    assert record is not None
    assert [Path(of) for of in record.generated] == [*sets[:2], expected.folder]


def test_the_last_rounds_classifier_is_shipped(three_rounds: tuple[Path, RunResult]) -> None:
    out, result = three_rounds
    pixels = assets.load_images("near").images[:32]
    logits = Detector(result.detector).score(pixels).logits
    with torch.no_grad():
        shipped, earlier = (
            load_classifier(out / name / "trained" / "classifier")(from_uint8(pixels))[0].numpy()
            for name in ("round-3", "round-2")
        )
    np.testing.assert_allclose(logits, shipped, rtol=1e-3, atol=1e-3)
    assert np.abs(logits - earlier).max() > 0.01
    assert not list(out.glob("round-*/detector.onnx"))


def test_another_round_reuses_the_rounds_before(
    write_job: WriteJob, two_rounds: Path, tmp_path: Path
) -> None:
    path = write_job(tmp_path, 1)
    run_job(path)
    first = files_of(tmp_path / "job")
    assert not [name for name in first if "round" in name]
    assert '"round"' not in (tmp_path / "job" / "generated" / "img" / "job.json").read_text()
    detector = (tmp_path / "job" / "detector.onnx").read_bytes()

    write_job(tmp_path, 2)
    done = [step.name for step in run_job(path).steps if not step.skipped]
    assert done == ["generate img, round 2", "train trained, round 2", "detector", "evaluate"]
    both = files_of(tmp_path / "job")
    assert first.items() <= both.items()
    assert both == files_of(two_rounds)
    assert all(step.skipped for step in run_job(path).steps)

    # and back: the first round's detector ships again
    write_job(tmp_path, 1)
    done = [step.name for step in run_job(path).steps if not step.skipped]
    assert done == ["detector", "evaluate"]
    assert (tmp_path / "job" / "detector.onnx").read_bytes() == detector
    assert files_of(tmp_path / "job") == both


KILLED = {
    "between the rounds": ("good_rt.workflow.resume.JobState.finish", "'train trained'", 0),
    "in sampling": ("good_rt.data.generated_set.GeneratedSet.append", "round-2", 5),
    "in training": ("good_rt.method.training._Progress.save", "round-2", 10),
}
"""The method after whose first call the process is killed, of those whose folder or arguments hold
the text; and how many images round 2 has by then."""
KILLED_RUN = """
import os, pkgutil, signal, sys
import torch

torch.set_num_threads(1)
name, text, job = sys.argv[1:]
owner, _, method = name.rpartition(".")
owner = pkgutil.resolve_name(owner)
real = getattr(owner, method)

def then_killed(self, *arguments):
    real(self, *arguments)
    if text in f"{getattr(self, 'folder', None)} {arguments}":
        os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, method, then_killed)
from good_rt.workflow.run import run_job

run_job(job)
"""


@pytest.mark.parametrize("point", list(KILLED))
def test_a_killed_job_resumes_in_its_round(
    write_job: WriteJob, two_rounds: Path, tmp_path: Path, point: str
) -> None:
    path = write_job(tmp_path, 2)
    method, text, images = KILLED[point]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, method, text, str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    assert len(list((tmp_path / "job" / "round-2").rglob("images/*.png"))) == images
    first = ["split", *(f"generate {name}" for name in ("img", "feat", "none", "test"))]
    skipped = [*first, "train trained"]
    if point == "in training":
        skipped.append("generate img, round 2")
        assert not (tmp_path / "job" / "round-2" / "trained" / "training.json").exists()
    assert [step.name for step in run_job(path).steps if step.skipped] == skipped
    assert files_of(tmp_path / "job") == files_of(two_rounds)
    detectors = [
        (folder / "detector.onnx").read_bytes() for folder in (tmp_path / "job", two_rounds)
    ]
    assert detectors[0] == detectors[1]


def test_images_of_another_guide_are_not_removed(
    write_job: WriteJob, two_rounds: Path, tmp_path: Path
) -> None:
    path = write_job(tmp_path, 2)
    shutil.copytree(two_rounds, tmp_path / "job")
    text = path.read_text()
    path.write_text(text.replace("lr = 0.01", "lr = 0.02"))
    images = tmp_path / "job" / "round-2" / "generated" / "img"
    with pytest.raises(GoodRtError) as caught:
        run_job(path)
    assert str(caught.value) == (
        f"{images} holds images of another job (different: classifier); delete that folder to "
        f"generate them again, or set another `out` in {path}"
    )
    shutil.rmtree(images)
    done = [step.name for step in run_job(path).steps if not step.skipped]
    assert done == ["generate img, round 2", "train trained, round 2", "detector", "evaluate"]

    # other settings are found before anything is generated or trained
    path.write_text(path.read_text().replace("mu = 0.3", "mu = 0.2"))
    shutil.rmtree(tmp_path / "job" / "generated")
    with pytest.raises(GoodRtError, match=r"round-2/generated/img holds .* \(different: config.mu"):
        run_job(path)
    assert not (tmp_path / "job" / "generated").exists()


def test_rounds_that_cannot_be_are_refused(write_job: WriteJob, tmp_path: Path) -> None:
    path = write_job(tmp_path, 0)
    with pytest.raises(GoodRtError, match=r"line 17: train.rounds is 0, but must be at least 1"):
        Job.read(path)
    text = write_job(tmp_path, 2).read_text()
    path.write_text(
        text.replace("[train]", "[train]\nkinds = []") + '[detector]\nclassifier = "before"\n'
    )
    with pytest.raises(GoodRtError, match=r"train.rounds is 2, but train.kinds is empty"):
        Job.read(path)


@pytest.fixture(scope="session")
def guide(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The models of a second round: the classifier has other weights."""
    folder = tmp_path_factory.mktemp("guide")
    save_classifier(models.classifier, folder)
    changed = load_classifier(folder)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in changed.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(0.3 * weight.std(correction=0) * noise)
    save_classifier(changed, folder)
    return replace(models, classifier=load_classifier(folder))


def test_a_later_round_uses_the_first_ones_engines(
    models: Models,
    guide: Models,
    id_dir: Path,
    gradient_engines_dir: Path,
    make_config: Callable[..., GenerationConfig],
    tmp_path: Path,
) -> None:
    """Their network and decoder; the classifier that guides is the round's own."""
    folder = tmp_path / "engines"
    shutil.copytree(gradient_engines_dir, folder)
    manifest = (folder / "manifest.json").stat().st_mtime_ns
    config: Any = replace(make_config(), backend=BackendConfig("onnx"))
    shared = open_generator(guide, IdData(id_dir), config, folder, exported=models)
    assert (folder / "manifest.json").stat().st_mtime_ns == manifest  # nothing exported again
    assert shared.gradients == "torch" and shared.classifier is guide.classifier
    torch_config = replace(config, backend=BackendConfig("torch"))
    expected = open_generator(guide, IdData(id_dir), torch_config, folder)
    other = open_generator(models, IdData(id_dir), torch_config, folder)
    ours, reference, original = (
        generator.images(config, list(range(8))).astype(float)
        for generator in (shared, expected, other)
    )
    assert np.abs(ours - original).mean() > 0.2
    assert np.abs(ours - reference).mean() < 0.1 * np.abs(ours - original).mean()
