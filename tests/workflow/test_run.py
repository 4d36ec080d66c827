"""`good-rt init`, `split` and `run`: two commands from a folder of images to a detector; killed, it
goes on."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import build, taesd
from elsewhere import second_device
from PIL import Image
from torch import nn

import good_rt
from good_rt.classifier import Classifier, IdFeatures
from good_rt.config.settings import BackendConfig
from good_rt.data.id_data import IdData
from good_rt.demo import assets
from good_rt.detector.runtime import Detector
from good_rt.diffusion import load_diffusion
from good_rt.errors import GoodRtError
from good_rt.models import ModelSpec
from good_rt.workflow import run as runner
from good_rt.workflow.generate import open_generator
from good_rt.workflow.job_file import Job
from good_rt.workflow.run import run_job

Run = Callable[..., Any]
PER_CLASS = 30
TINY = {
    "count = 128": "count = 10",
    "steps = 25": "steps = 2",
    "batch = 32": "batch = 5",
    'engine = "onnx"': 'engine = "torch"',
    "steps = 200": "steps = 4",
    "lr = 0.0015": "lr = 1e-5",
    "max_drop = 0.083": "max_drop = 1.0",
}
"""What `init` writes, and what a test has time for."""


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's test images as a folder per class of PNG files. Not to be changed."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    data = assets.load_images("test")
    assert data.labels is not None
    for label, name in enumerate(assets.CLASSES):
        (folder / name).mkdir(parents=True)
        for row in np.flatnonzero(data.labels == label)[:PER_CLASS]:
            Image.fromarray(data.images[row, ..., 0]).save(folder / name / f"{row:05}.png")
    return folder


def shortened(path: Path, changes: dict[str, str] = TINY) -> Path:
    text = path.read_text()
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text)
    return path


@pytest.fixture
def job(run: Run, photos: Path, model_dir: Path, classifier_dir: Path, tmp_path: Path) -> Path:
    """A job file as `good-rt init` writes it, made short."""
    path = tmp_path / "job.toml"
    made = run("init", photos, "--classifier", classifier_dir, "--model", model_dir, "-o", path)
    assert made.code == 0, made.err
    assert "240 in 8 classes (folder, 32x32 pixels, L)" in made.out
    return shortened(path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))
    }


def test_from_init_to_a_detector_and_again(run: Run, job: Path, photos: Path) -> None:
    before = files_of(photos)
    done = run("run", job, "--json").json
    out = job.parent / "job"
    assert {path.name for path in job.parent.iterdir()} == {
        "job.toml",
        "job",
    }  # nothing outside the job's folder
    assert files_of(photos) == before
    names = [
        "split",
        "generate img",
        "generate feat",
        "generate both",
        "generate test",
        "train trained",
        "detector",
        "evaluate",
    ]
    assert [step["name"] for step in done["steps"]] == names
    assert not any(step["skipped"] for step in done["steps"])
    assert Detector(out / "detector.onnx").info.training == "generated OOD images"
    assert (out / "report.html").read_text().count("generated") > 1
    counts = json.loads((out / "splits.json").read_text())["counts"]
    assert all(counts["train"][name] == 18 and counts["test"][name] == 6 for name in assets.CLASSES)
    written = (out / "detector.onnx").stat().st_mtime_ns

    again = run("run", job, "--json").json
    assert all(step["skipped"] for step in again["steps"])
    assert again["evaluation"] == done["evaluation"]
    assert (out / "detector.onnx").stat().st_mtime_ns == written

    # a setting of the detector concerns the detector and what comes after it, a damaged file its
    # own step
    shortened(
        job, {"alpha = 0.05": "alpha = 0.1", 'classifier = "trained"': 'classifier = "before"'}
    )
    changed = run_job(job)
    assert [step.name for step in changed.steps if not step.skipped] == ["detector", "evaluate"]
    assert (done["evaluation"]["shipped"], changed.evaluation.shipped) == ("trained", "before")
    # 24 calibration images say nothing of 0.01; the detector's own comes last, which the report's
    # headline takes
    assert [refusal.alpha for refusal in changed.evaluation.id_refusal] == [0.05, 0.1]
    (out / "trained" / "classifier" / "model.safetensors").write_bytes(b"damaged")
    redone = [step.name for step in run_job(job).steps if not step.skipped]
    assert redone == ["train trained"]

    # images cost hours, so they are not thrown away for a changed setting
    shortened(job, {"mu = 0.1\n": "mu = 0.2\n"})
    line = run("run", job).failed()
    for name in ("img", "feat", "both", "test"):
        assert str(out / "generated" / name) in line
    assert (
        "hold images of another job (different: config.mu); delete those folders to generate them "
        "again" in line
    )


@pytest.mark.filterwarnings("ignore:.*non-meta parameter in the checkpoint")  # here it is copied
def test_a_job_on_another_device_is_taken_home_whole(job: Path) -> None:
    shortened(job, {'kinds = ["img", "feat", "both"]': 'kinds = ["img"]'})
    with second_device() as device:
        assert not any(step.skipped for step in run_job(job, device=device).steps)
    made = json.loads((job.parent / "job" / "generated" / "img" / "job.json").read_text())
    assert made["device"] == device.type
    assert all(step.skipped for step in run_job(job).steps)
    # what is begun is not gone on with elsewhere
    manifest = job.parent / "job" / "generated" / "img" / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(GoodRtError, match=r"holds images of another job \(different: device\)"):
        run_job(job)


def test_tensorrt_and_half_precision_need_a_gpu(run: Run, job: Path) -> None:
    shortened(job, {'engine = "torch"': 'engine = "tensorrt"\nprecision = "fp16"'})
    backend = Job.read(job).config.generate.config.backend
    assert backend == BackendConfig("tensorrt", "fp16")
    assert str(replace(backend, precision=None)) == "tensorrt fp32"
    line = run("run", job).failed()
    assert f"TensorRT needs --device cuda (generate.engine in {job})" in line
    assert not (job.parent / "job").exists()
    shortened(job, {'engine = "tensorrt"': 'engine = "onnx"'})
    assert (
        "ONNX Runtime only computes in fp16 on a GPU: add --device cuda (generate.engine in "
        f"{job})" in run("run", job).failed()
    )
    shortened(job, {'engine = "onnx"': 'engine = "torch"'})
    assert "precision is for the engines onnx and tensorrt" in run("run", job).failed()


@pytest.mark.filterwarnings("ignore:.*non-meta parameter in the checkpoint")  # here it is copied
def test_a_job_asks_for_plans_of_its_largest_batch_and_what_they_made_is_taken_without_a_gpu(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened(
        job,
        {
            'kinds = ["img", "feat", "both"]': 'kinds = ["img"]\ncounts = {none = 20}',
            "batch = 5": "batch = 20",
            'engine = "torch"': 'engine = "tensorrt"\nprecision = "fp16"',
        },
    )
    asked: dict[str, Any] = {}

    def opened(models: Any, id_data: IdData, config: Any, engine_folder: Path, *rest: Any) -> Any:
        """PyTorch in TensorRT's place."""
        asked.update(folder=engine_folder, backend=config.backend, batch=config.batch)
        torch_instead = replace(config, backend=BackendConfig("torch"))
        return open_generator(models, id_data, torch_instead, engine_folder, *rest)

    def exported(models: Any, id_data: Any, out: Path, *rest: Any) -> None:
        out.mkdir(parents=True)
        (out / "manifest.json").write_text("{}")

    with second_device() as device, monkeypatch.context() as patch:
        patch.setattr(runner, "open_generator", opened)
        patch.setattr(runner, "export", exported)
        patch.setattr(
            runner, "check_backend", lambda backend, device: asked.update(on=(backend, device))
        )
        run_job(job, device=device)
    assert asked == {
        "folder": job.parent / "job" / "engines",
        "backend": BackendConfig("tensorrt", "fp16"),
        "batch": 20,
        "on": (BackendConfig("tensorrt", "fp16"), device),
    }
    assert (
        json.loads((job.parent / "job" / "generated" / "none" / "job.json").read_text())["engine"]
        == "tensorrt fp16"
    )
    assert all(step.skipped for step in run_job(job).steps)


def test_a_control_can_be_added_to_a_finished_job(job: Path) -> None:
    run_job(job)
    report = job.parent / "job" / "report.html"
    html = report.read_text()
    assert "Training with the generated images" in html and "control = true" in html
    # of three kinds, the job trained with one, whose held-out images are shown
    assert html.count("held-out images, scores") == 1
    shortened(job, {"control = false": "control = true"})
    added = [step.name for step in run_job(job).steps if not step.skipped]
    assert added == ["train control", "evaluate"]
    assert "Against the control, " in report.read_text()


def test_everything_is_loaded_and_computed_once(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run loads each model once, reconstructs the images of both trainings once, computes the
    ID features once for each classifier and size, and builds each of three detectors once."""
    shortened(
        job,
        {
            'kinds = ["img", "feat", "both"]': 'kinds = ["img", "feat"]',
            "control = false": "control = true",
        },
    )
    calls: Counter[str] = Counter()
    for module, name in (
        ("good_rt.diffusion", "load_diffusion"),
        ("good_rt.classifier", "load_classifier"),
        ("good_rt.workflow.run", "load_classifier"),
        ("good_rt.workflow.detector", "load_classifier"),
        ("good_rt.workflow.run", "training_images"),
        ("good_rt.workflow.run", "detector_for"),
    ):
        count_calls(monkeypatch, calls, f"{module}.{name}")
    real = IdFeatures.of
    computed: list[tuple[str, int]] = []

    def counted(classifier: Classifier, batches: Any) -> IdFeatures:
        features = real(classifier, batches)
        computed.append((classifier.fingerprint, len(features)))
        return features

    monkeypatch.setattr(IdFeatures, "of", counted)
    result = run_job(job)
    assert not any(step.skipped for step in result.steps)
    assert calls == {
        "good_rt.diffusion.load_diffusion": 1,
        "good_rt.classifier.load_classifier": 1,
        "good_rt.workflow.run.load_classifier": 2,  # control and trained
        "good_rt.workflow.run.training_images": 1,
        "good_rt.workflow.run.detector_for": 3,  # of before, control and trained
    }
    assert len(computed) == len(set(computed)) == 3  # guidance shares those of the original


def count_calls(monkeypatch: pytest.MonkeyPatch, calls: Counter[str], path: str) -> None:
    module, _, name = path.rpartition(".")
    real = getattr(importlib.import_module(module), name)

    def counted(*arguments: Any, **settings: Any) -> Any:
        calls[path] += 1
        return real(*arguments, **settings)

    monkeypatch.setattr(path, counted)


def start(job: Path) -> subprocess.Popen[bytes]:
    code = "from good_rt.cli.main import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", str(job)],
        cwd=job.parent,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def test_a_killed_run_goes_on_and_makes_the_same_images(job: Path, tmp_path: Path) -> None:
    shortened(
        job,
        {"count = 10": "count = 20", 'kinds = ["img", "feat", "both"]': 'kinds = ["img", "feat"]'},
    )
    whole = tmp_path / "whole" / "job.toml"
    whole.parent.mkdir()
    shutil.copy(job, whole)
    manifest = job.parent / "job" / "generated" / "feat" / "manifest.jsonl"
    process = start(job)
    try:
        limit = time.monotonic() + 240
        while not (manifest.exists() and manifest.read_text().count("\n") >= 5):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    made = manifest.read_text().count("\n")
    assert made < 20
    steps = run_job(job).steps
    assert [step.name for step in steps if step.skipped] == ["split", "generate img"]
    run_job(whole)
    for kind in ("img", "feat", "test"):
        ours, theirs = (
            path.parent / "job" / "generated" / kind / "images" for path in (job, whole)
        )
        assert files_of(ours) == files_of(theirs)
    assert len(files_of(manifest.parent / "images")) == 20


@pytest.mark.slow
def test_on_engines_with_test_sets_and_a_control(
    run: Run, job: Path, photos: Path, tmp_path: Path
) -> None:
    street = tmp_path / "street"
    street.mkdir()
    for i, image in enumerate(assets.load_images("photos").images[:12]):
        Image.fromarray(image[..., 0]).resize((40, 30)).convert("RGB").save(street / f"{i}.jpg")
    shortened(
        job,
        {
            'engine = "torch"': 'engine = "onnx"',
            "control = false": "control = true",
            'kinds = ["img", "feat", "both"]': (
                'kinds = ["img", "feat", "both"]\ncounts = {none = 12}'
            ),
            '# street = "street/"': 'street = "street"',
        },
    )
    done = run("run", job, "--json").json
    names = [step["name"] for step in done["steps"]]
    assert names[:2] == ["split", "export"] and "generate test" not in names
    assert names[names.index("generate none") :][:3] == [
        "generate none",
        "train control",
        "train trained",
    ]
    trained, control = (
        json.loads((job.parent / "job" / name / "training.json").read_text())["unguided"]
        for name in ("trained", "control")
    )
    assert [Path(folder).name for folder in trained] == ["none"] and control == []
    assert {row["ood_set"] for row in done["evaluation"]["rows"]} >= {"street"}
    assert {row["model"] for row in done["evaluation"]["rows"]} == {"before", "control", "trained"}


def test_split_records_what_every_command_takes(run: Run, photos: Path, tmp_path: Path) -> None:
    found = run("split", photos, "-o", tmp_path / "splits.json", "--json").json
    assert found["kind"] == "folder" and sum(found["counts"]["train"].values()) == 144
    data, direct = IdData(tmp_path / "splits.json"), IdData(photos)
    for part in ("train", "held_out", "test"):
        ours, theirs = (d.part(part, assets.CLASSES, 1, 32) for d in (data, direct))
        np.testing.assert_array_equal(ours.images, theirs.images)
    assert "144" in run("split", photos, "-o", tmp_path / "splits.json").out


def test_split_and_init_take_demo_for_the_demos_images(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("split", "demo", "-o", "splits.json", "--json").json
    assert found["kind"] == "npz"
    assert good_rt.split("demo", "again.json").counts() == found["counts"]
    assert IdData(tmp_path / "splits.json").source.path.samefile(assets.DATA)
    assert run("init", "demo").code == 0
    assert 'images = "demo"' in (tmp_path / "job.toml").read_text()
    assert Job.read(tmp_path / "job.toml").images == assets.DATA


def copied(photos: Path, tmp_path: Path, per_class: int = 3) -> Path:
    """A few images of every class."""
    for folder in photos.iterdir():
        (tmp_path / "few" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:per_class]:
            shutil.copy(path, tmp_path / "few" / folder.name)
    return tmp_path / "few"


def one_class(folder: Path) -> None:
    for path in list(folder.iterdir())[1:]:
        shutil.rmtree(path)


def empty_class(folder: Path) -> None:
    shutil.rmtree(folder / "coat")
    (folder / "coat").mkdir()


def other_classes(folder: Path) -> None:
    (folder / "coat").rename(folder / "cat")


def in_parts(folder: Path) -> None:
    for part in ("train", "val", "test"):
        for path in folder.iterdir():
            if path.name in assets.CLASSES:
                shutil.copytree(path, folder / part / path.name)
    for name in assets.CLASSES:
        shutil.rmtree(folder / name)


def in_two_classes(folder: Path) -> None:
    shutil.copy(next((folder / "coat").iterdir()), folder / "dress" / "same.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_class, "has 1 class (.*), the classifier 8 "),
        (empty_class, "class 'coat' has no images; add some, or remove its folder"),
        (other_classes, "classes cat are not among the classifier's, which also has coat"),
        (in_parts, r"same image in two parts of the data \(so are .*\); keep one"),
        (in_two_classes, r"coat/\d+.png and dress/same.png are the same image in two classes"),
        (
            lambda folder: None,
            "has 24 images, of which 4 would calibrate the detector, and alpha 0.05 needs 19",
        ),
        (lambda folder: shutil.rmtree(folder), "few does not exist; give a folder per class"),
    ],
)
def test_init_refuses_what_cannot_be(
    run: Run,
    photos: Path,
    classifier_dir: Path,
    model_dir: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    message: str,
) -> None:
    folder = copied(photos, tmp_path)
    change(folder)
    ended = run(
        "init",
        folder,
        "--classifier",
        classifier_dir,
        "--model",
        model_dir,
        "-o",
        tmp_path / "job.toml",
    )
    line = ended.failed()
    import re

    assert re.search(message, line), line
    assert not (tmp_path / "job.toml").exists()


def test_init_does_not_replace_a_job(
    run: Run, job: Path, photos: Path, classifier_dir: Path, model_dir: Path
) -> None:
    text = job.read_text()
    words = ["init", photos, "--classifier", classifier_dir, "--model", model_dir, "-o", job]
    assert "exists; choose another --out, or give --force" in run(*words).failed()
    assert job.read_text() == text
    assert run(*words, "--force").code == 0


def test_models_that_do_not_fit_are_refused_with_what_to_do(
    run: Run, photos: Path, classifier_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(model_dir, tmp_path / "m")
    config = json.loads((model / "unet" / "config.json").read_text())
    (model / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": 16}))
    words = [
        "init",
        photos,
        "--classifier",
        classifier_dir,
        "--model",
        model,
        "-o",
        tmp_path / "job.toml",
    ]
    line = run(*words).failed()
    assert (
        "the diffusion model makes images of 64x64 pixels, 1 channel; the classifier takes 32x32 "
        "pixels" in line
    )
    assert "choose a diffusion model that makes those" in line


def test_a_bad_file_is_named_or_left_out(run: Run, job: Path, photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    (data / "coat" / "00000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    text = job.read_text()
    job.write_text(text.replace(str(photos.resolve()), "photos"))
    line = run("run", job).failed()
    assert "photos/coat/00000.png is not an image that can be read" in line and "--skip-bad" in line
    assert not (tmp_path / "job" / "splits.json").exists()
    found = run("split", data, "--skip-bad", "-o", tmp_path / "s.json")
    assert found.code == 0 and "skipped: " in found.err and "coat/00000.png" in found.err


@pytest.mark.slow
def test_prompts_another_size_and_a_light_decoder_are_the_jobs_to_set(
    run: Run, photos: Path, classifier_dir: Path, tmp_path: Path
) -> None:
    taesd(tmp_path / "light")
    build("sd2", tmp_path / "sd")
    network = tmp_path / "sd" / "unet" / "config.json"
    network.write_text(
        json.dumps({**json.loads(network.read_text()), "sample_size": 16})
    )  # the job says 32 pixels
    (tmp_path / "job.toml").write_text(
        f'''
        [data]
        images = "{photos}"
        [models]
        classifier = "{classifier_dir}"
        diffusion = "sd"
        gradient_decoder = "light"
        image_size = 32
        [generate]
        count = 10
        kinds = ["img"]
        steps = 2
        batch = 5
        engine = "torch"
        prompts = ["a photo of a {{}}", "a drawing of a {{}}"]
        [train]
        steps = 2
        max_drop = 1.0
        '''
    )
    done = run("run", tmp_path / "job.toml", "--json").json
    assert Detector(Path(done["detector"])).info.training == "generated OOD images"
    drafted = tmp_path / "drafts" / "job.toml"
    words = [
        "init",
        photos,
        "--classifier",
        classifier_dir,
        "--model",
        tmp_path / "sd",
        "--image-size",
        32,
    ]
    assert (
        "conditioned on text"
        in run(*words, "--gradient-decoder", tmp_path / "light", "-o", drafted).out
    )
    assert (
        Job.read(drafted).config.generate.config.sampler.prompts == ("a photo of a {}",)
        and "prompts = [" in drafted.read_text()
    )
    assert (
        Job.read(drafted).models.gradient_decoder == tmp_path / "light"
        and Job.read(drafted).config.models.image_size == 32
    )
    out = tmp_path / "job"
    made = json.loads((out / "generated" / "img" / "job.json").read_text())
    assert made["prompts"] == ["a photo of a {}", "a drawing of a {}"]
    assert (
        made["model"]
        == load_diffusion(
            tmp_path / "sd", gradient_decoder=tmp_path / "light", image_size=32
        ).fingerprint
    )
    # by hand, the size has to be said again
    words = [
        "--classifier",
        classifier_dir,
        "--model",
        tmp_path / "sd",
        "--id",
        out / "splits.json",
        "--control",
    ]
    settings = ["--train-steps", "2", "--max-drop", "1", "-o", tmp_path / "control"]
    assert run("train", *words, *settings, "--image-size", "32").code == 0


def named(folder: Path) -> list[str | Path]:
    """The option that names the demo's classes, since an untrained network is as good as chance."""
    (folder / "names.txt").write_text("\n".join(assets.CLASSES))
    return ["--classes", folder / "names.txt"]


OWN_CODE = """
from torch import nn

class Net(nn.Sequential):
    image_size = 32

    def __init__(self):
        convolution = nn.Conv2d(1, 8, 3, 2, 1)
        super().__init__(
            convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8)
        )
"""


def test_a_classifier_of_the_users_own_code_goes_the_whole_way(
    run: Run, photos: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net_of_a_job.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    names = named(tmp_path)
    assert run("classifier", "save", "own_net_of_a_job:Net", *names, "-o", "named").code == 0
    words = [
        "init",
        photos,
        "--classifier",
        "own_net_of_a_job:Net@named",
        "--model",
        model_dir,
        "-o",
        "job.toml",
    ]
    assert run(*words).code == 0
    done = run("run", shortened(Path("job.toml")), "--json").json
    assert Detector(Path(done["detector"])).info.training == "generated OOD images"
    # by hand as well, from what `good-rt train` says
    words = [
        "--classifier",
        "own_net_of_a_job:Net@named",
        "--model",
        model_dir,
        "--id",
        "job/splits.json",
    ]
    settings = [
        "--generated",
        "job/generated/img",
        "--train-steps",
        "2",
        "--max-drop",
        "1",
        "-o",
        "by-hand",
    ]
    again = run("train", *words, *settings, "--json").json
    assert again["classifier"] == "own_net_of_a_job:Net@by-hand/classifier"
    assert run("classifier", "show", again["classifier"]).code == 0


def test_a_classifier_that_cannot_be_trained_is_found_out_first(
    run: Run, photos: Path, model_dir: Path, tmp_path: Path
) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8)
    )
    torch.jit.script(network.eval()).save(tmp_path / "network.pt")
    saved, path = tmp_path / "saved", tmp_path / "job.toml"
    words = ["classifier", "save", tmp_path / "network.pt", "--size", "32", *named(tmp_path)]
    assert run(*words, "-o", saved).code == 0
    made = run("init", photos, "--classifier", saved, "--model", model_dir, "-o", path)
    assert "its file cannot be trained" in made.out
    job = Job.read(path).config
    assert job.train.kinds == () and job.detector.classifier == "before"
    line = run("run", shortened(path, {"kinds = []": 'kinds = ["img"]'})).failed()
    assert "the classifier (torchscript) cannot be trained" in line
    assert (
        'or set train.kinds = [], train.control = false and detector.classifier = "before" in'
        in line
    )
    assert not (tmp_path / "job").exists()


def test_other_shares_divide_anew(run: Run, photos: Path, tmp_path: Path) -> None:
    again, fresh = tmp_path / "again.json", tmp_path / "fresh.json"
    assert run("split", photos, "-o", again).code == 0
    before = json.loads(again.read_text())["files"]
    for out in (again, fresh):
        assert run("split", photos, "--held-out", "0.4", "-o", out).code == 0
    assert (
        again.read_text() == fresh.read_text() and json.loads(again.read_text())["files"] != before
    )


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("images", "data.images"), ("near", "test_sets.near"), ("classifier", "models.classifier"),
        ("diffusion", "models.diffusion"),
    ],
)  # fmt: skip
def test_a_path_that_is_not_there_is_named_with_its_key(
    run: Run, job: Path, key: str, line: str
) -> None:
    (job.parent / "near").mkdir()
    text = job.read_text() + 'near = "near"\n'
    job.write_text(re.sub(f"^{key} = .*", f'{key} = "gone"', text, count=1, flags=re.MULTILINE))
    said = run("run", job).failed()
    assert "gone" in said and f"({line} in {job})" in said


def test_too_few_to_calibrate_are_found_before_anything_is_made(run: Run, job: Path) -> None:
    shortened(job, {"alpha = 0.05": "alpha = 0.01"})
    line = run("run", job).failed()
    assert (
        "alpha 0.01 needs at least 99 calibration images, there are 24" in line
        and "data.held_out" in line
    )
    assert not (job.parent / "job" / "generated").exists()


def test_the_demos_models_have_a_name(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    made = run("init", assets.DATA, "-o", path, "--json").json
    assert made["kind"] == "npz"
    job = Job.read(path)
    assert 'classifier = "demo"' in path.read_text()
    assert job.images == assets.DATA
    assert job.models == ModelSpec(assets.CLASSIFIER, assets.MODEL)


def test_a_folder_called_demo_does_not_hide_the_demos_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = ModelSpec()
    assert (spec.classifier_path, spec.diffusion_path) == (assets.CLASSIFIER, assets.MODEL)
    spec.check_paths()
