"""Every record that good-rt 0.1.0 wrote is still read, and holds what it held then.

The records are in v1/. Newer versions, other types and damaged ones are refused by the functions
that users' files go through.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from recorded_scores import check_scores

from good_rt import __version__
from good_rt.classifier import load_classifier, save_classifier
from good_rt.classifier.folder import read_config
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.generated_split import generated_parts
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.data.splits import Splits
from good_rt.detector.runtime import METADATA_KEY, Detector
from good_rt.errors import GoodRtError
from good_rt.evaluation.results import Evaluation
from good_rt.export.manifest import MANIFEST, Manifest
from good_rt.models import Models
from good_rt.workflow.generator import generation_record
from good_rt.workflow.job_file import Job
from good_rt.workflow.resume import JobState
from good_rt.workflow.train import training_record

V1 = Path(__file__).parent / "v1"
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the records, to change."""
    shutil.copytree(V1, tmp_path / "records")
    return tmp_path / "records"


def test_a_detector_gives_the_same_scores() -> None:
    detector = Detector(V1 / "detector.onnx")
    info = detector.info
    assert info.classes == CLASSES and info.training == "generated OOD images"
    assert (info.channels, info.image_size) == (1, 32)
    assert info.score == {
        "combination": {"name": "gate"},
        "discrepancies": {"energy": {}, "knn_distance": {"k": 3}},
    }
    assert (info.alpha, info.calibration_size) == (0.1, 120)
    assert info.versions["good-rt"] == "0.1.0"
    check_scores(detector, V1 / "images.npz", V1 / "expected.npz")


def test_a_classifier_gives_the_same_logits() -> None:
    classifier = load_classifier(V1 / "trained" / "classifier")
    assert classifier.config.classes == CLASSES
    with np.load(V1 / "images.npz") as file, torch.no_grad():
        logits, _ = classifier(from_uint8(file["images"]))
    with np.load(V1 / "expected.npz") as expected:
        np.testing.assert_allclose(logits, expected["classifier_logits"], rtol=1e-4, atol=1e-5)


def test_a_generated_set_gives_training_images() -> None:
    generated = GeneratedSet(V1 / "generated" / "img")
    settings = generated.settings()
    assert (settings["guidance"], settings["seed"], settings["steps"]) == ("img", 0, 3)
    assert settings["config"]["mu_schedule"] == "increase"
    assert [row.index for row in generated.rows()] == list(range(12))
    assert generated.images().shape == (12, 32, 32, 1)
    train, held_out = generated_parts(
        [generated.folder], load_classifier(V1 / "trained" / "classifier")
    )
    assert len(train) + len(held_out) == 12 and train.shape[1:] == (1, 32, 32)


def test_a_generated_set_is_resumed_with_its_settings(folder: Path) -> None:
    generated = GeneratedSet(folder / "generated" / "img")
    settings = json.loads((generated.folder / "job.json").read_text())
    generated.begin(settings)
    assert generated.differences({**settings, "seed": 1}) == ["seed"]
    with pytest.raises(GoodRtError, match=r"images of another job \(different: seed\)"):
        generated.begin({**settings, "seed": 1})


def test_a_generated_set_has_the_settings_that_its_job_gives_today() -> None:
    settings = GeneratedSet(V1 / "generated" / "img").settings()
    config = Job.read(V1 / "job.toml").generation("img", 12)
    fingerprints = {name: settings.pop(name) for name in ("model", "classifier")}
    models = SimpleNamespace(
        fingerprints=fingerprints, device=torch.device("cpu"), diffusion=SimpleNamespace(text=False)
    )
    record = generation_record(cast("Models", models), config, "torch")
    del settings["data"]
    assert json.loads(json.dumps(record)) == {**settings, **fingerprints}


def test_splits_give_the_same_parts() -> None:
    splits = Splits.read(V1 / "splits.json")
    recorded = json.loads((V1 / "splits.json").read_text())
    assert splits.counts() == recorded["counts"]
    assert splits.fingerprint == recorded["source"]["fingerprint"]
    data = IdData(V1 / "splits.json")
    assert data.splits == splits
    assert [len(splits.rows(part)) for part in ("train", "held_out", "test")] == [24, 8, 8]


def test_engines_are_named_by_the_network() -> None:
    manifest = Manifest.read(V1 / "engines")
    assert sorted(manifest.graphs) == ["classifier", "network", "vae_decoder", "vae_encoder"]
    assert manifest.graphs["network"].file == "unet.onnx"
    assert {row.graph for row in manifest.parity} == set(manifest.graphs)
    recorded = json.loads((V1 / "engines" / MANIFEST).read_text())
    assert manifest.source == recorded["source"] and manifest.opset == 20
    assert manifest.tolerance == {"relative": 0.001, "absolute": 0.0001}


def test_a_run_state_knows_what_is_done(folder: Path) -> None:
    state = JobState(folder)
    recorded = json.loads((folder / "state.json").read_text())["steps"]
    assert state.is_done("detector", recorded["detector"]["key"])
    assert not state.is_done("detector", "another key")
    (folder / "detector.onnx").write_bytes(b"")
    assert not state.is_done("detector", recorded["detector"]["key"])


def test_a_training_says_what_it_was_trained_with() -> None:
    record = training_record(V1 / "trained" / "classifier")
    assert record is not None
    assert record.generated == (str(Path("job/generated/img").resolve()),)
    assert record.config["lr"] == 1e-5
    assert [step.step for step in record.history] == [1, 2, 3]
    assert record.history[0].regulariser == 1.5287519693374634
    assert record.config["objective"] == "logistic" and str(record.augmentation) == "flip and shift"


def test_an_evaluation_has_its_figures() -> None:
    recorded = json.loads((V1 / "evaluation.json").read_text())
    evaluation = Evaluation.from_json(recorded)
    assert evaluation.shipped == "trained" and evaluation.ood_sets == ("generated",)
    again = Evaluation.from_json(json.loads(json.dumps(evaluation.to_json())))
    assert again == evaluation


def test_a_job_has_its_settings() -> None:
    job = Job.read(V1 / "job.toml")
    assert job.config.test_sets == {} and job.config.train.kinds == ("img",)
    assert job.config.generate.sets == {"img": 12, "none": 12}
    config = job.generation("img", 12)
    assert config.guidance.mu_schedule == config.guidance.rho_schedule == "increase"
    assert (config.backend.gradients, config.bank.k, config.sampler.steps) == ("torch", 3, 3)


def edit_file(name: str) -> Callable[[Path, Callable[[str], str]], None]:
    """What changes the text of a record's file."""

    def edit(folder: Path, change: Callable[[str], str]) -> None:
        (folder / name).write_text(change((folder / name).read_text()))

    return edit


def edit_detector(folder: Path, change: Callable[[str], str]) -> None:
    """Changes the text of a detector's metadata."""
    model = onnx.load(folder / "detector.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata[METADATA_KEY] = change(metadata[METADATA_KEY])
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, folder / "detector.onnx")


VERSIONS = {"detector": 4, "training": 3, "evaluation": 3}
"""Those that are not 2."""
RECORDS: dict[
    str, tuple[Callable[[Path, Callable[[str], str]], None], Callable[[Path], object], str]
] = {
    "detector": (edit_detector, lambda f: Detector(f / "detector.onnx"), "detector.onnx"),
    "engines": (
        edit_file("engines/manifest.json"),
        lambda f: Manifest.read(f / "engines"),
        "manifest.json",
    ),
    "classifier": (
        edit_file("trained/classifier/classifier.json"),
        lambda f: read_config(f / "trained" / "classifier"),
        "classifier.json",
    ),
    "generated-set": (
        edit_file("generated/img/job.json"),
        lambda f: GeneratedSet(f / "generated" / "img").begin({}),
        "job.json",
    ),
    "splits": (edit_file("splits.json"), lambda f: Splits.read(f / "splits.json"), "splits.json"),
    "run-state": (
        edit_file("state.json"),
        lambda f: JobState(f).is_done("export", "key"),
        "state.json",
    ),
    "training": (
        edit_file("trained/training.json"),
        lambda f: training_record(f / "trained" / "classifier"),
        "training.json",
    ),
}


def with_header(**header: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**header, **json.loads(text)})


@pytest.mark.parametrize("name", RECORDS)
def test_a_newer_version_is_refused(folder: Path, name: str) -> None:
    edit, read, file = RECORDS[name]
    newest = VERSIONS.get(name, 2)
    edit(folder, with_header(type=name, version=newest + 1, written_by="good-rt 9.4.0"))
    with pytest.raises(GoodRtError) as caught:
        read(folder)
    assert str(caught.value).endswith(
        f"{file} was written by good-rt 9.4.0 ({name} version {newest + 1}); this good-rt "
        f"{__version__} reads up to version {newest}: upgrade good-rt"
    )


@pytest.mark.parametrize("name", RECORDS)
def test_another_type_is_refused(folder: Path, name: str) -> None:
    edit, read, file = RECORDS[name]
    edit(folder, with_header(type="weights", version=2, written_by="good-rt 9.4.0"))
    with pytest.raises(GoodRtError, match=rf"{file} is a record of type 'weights', not '{name}'"):
        read(folder)


@pytest.mark.parametrize("name", RECORDS)
def test_damaged_json_is_refused(folder: Path, name: str) -> None:
    edit, read, file = RECORDS[name]
    edit(folder, lambda text: text[:-5])
    with pytest.raises(GoodRtError, match=rf"{file} is not valid JSON \(.*\); "):
        read(folder)


def test_a_newer_job_is_refused(folder: Path) -> None:
    job = folder / "job.toml"
    job.write_text("version = 99\n" + job.read_text())
    message = r"job\.toml, line 1: the job file was written by a newer good-rt \(job version 99\)"
    with pytest.raises(GoodRtError, match=message):
        Job.read(job)


def test_a_newer_evaluation_is_refused() -> None:
    with pytest.raises(GoodRtError, match=r"written by good-rt 9\.4\.0 \(evaluation version 4\)"):
        Evaluation.from_json(
            {"type": "evaluation", "version": 4, "written_by": "good-rt 9.4.0", "rows": []}
        )


def test_what_is_written_has_a_header_and_is_the_same_when_read(tmp_path: Path) -> None:
    def check(path: Path, name: str) -> None:
        record = json.loads(path.read_text())
        assert list(record)[:3] == ["type", "version", "written_by"]
        assert (record["type"], record["version"]) == (name, VERSIONS.get(name, 2))
        assert record["written_by"] == f"good-rt {__version__}" and "format" not in record

    splits = Splits.read(V1 / "splits.json")
    splits.write(tmp_path / "splits.json")
    check(tmp_path / "splits.json", "splits")
    assert Splits.read(tmp_path / "splits.json").fingerprint == splits.fingerprint

    classifier = load_classifier(V1 / "trained" / "classifier")
    save_classifier(classifier, tmp_path / "classifier")
    check(tmp_path / "classifier" / "classifier.json", "classifier")
    assert read_config(tmp_path / "classifier") == classifier.config

    (tmp_path / "engines").mkdir()
    manifest = Manifest.read(V1 / "engines")
    manifest.write(tmp_path / "engines")
    check(tmp_path / "engines" / MANIFEST, "engines")
    assert Manifest.read(tmp_path / "engines") == manifest

    settings = GeneratedSet(V1 / "generated" / "img").settings()
    generated = GeneratedSet(tmp_path / "generated")
    generated.begin(settings)
    check(tmp_path / "generated" / "job.json", "generated-set")
    assert generated.settings() == settings

    state = JobState(tmp_path)
    state.finish("split", "key", [tmp_path / "splits.json"])
    check(tmp_path / "state.json", "run-state")
    assert state.is_done("split", "key")

    info = Detector(V1 / "detector.onnx").info
    (tmp_path / "info.json").write_text(info.to_json())
    check(tmp_path / "info.json", "detector")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("calibration_size", -1),
        ("calibration_size", True),
        ("image_size", 0),
        ("image_size", 64),
        ("channels", 3),
        ("channels", "3"),
        ("alpha", "0.05"),
        ("alpha", 0.0),
        ("alpha", float("nan")),
        ("classes", []),
        ("classes", [1, 2]),
        ("classes", 3),
        ("threshold", 0.5),
    ],
)
def test_a_detector_of_impossible_values_is_refused(folder: Path, name: str, value: object) -> None:
    edit_detector(folder, lambda text: json.dumps({**json.loads(text), name: value}))
    with pytest.raises(GoodRtError, match=r"detector\.onnx is damaged \(.*\); build it again"):
        Detector(folder / "detector.onnx")


def without_k(text: str) -> str:
    values = json.loads(text)
    del values["k"]
    return json.dumps(values)


def test_a_detector_without_its_k_is_refused(folder: Path) -> None:
    edit_detector(folder, without_k)
    with pytest.raises(GoodRtError, match=r"detector\.onnx is damaged \(KeyError: 'k'\); build it"):
        Detector(folder / "detector.onnx")
