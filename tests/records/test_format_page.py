"""docs/format.md says what the files are: its Python runs without good-rt, and its tables are
complete."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx

from good_rt.classifier.base import ClassifierConfig
from good_rt.classifier.folder import CLASSIFIER_RECORD
from good_rt.data.generated_set import SET_RECORD, Row
from good_rt.data.splits import SPLITS_RECORD
from good_rt.detector.runtime import (
    DETECTOR_RECORD,
    METADATA_KEY,
    Detector,
    DetectorInfo,
    output_names,
)
from good_rt.evaluation.results import EVALUATION_RECORD
from good_rt.export.manifest import ENGINES_RECORD
from good_rt.method.discrepancy import DISCREPANCIES
from good_rt.workflow.job_file import JOB_VERSION
from good_rt.workflow.resume import STATE_RECORD
from good_rt.workflow.train import TRAINING_RECORD

ROOT = Path(__file__).parents[2]
V1 = Path(__file__).parent / "v1"
PAGE = (ROOT / "docs" / "format.md").read_text()
RECORDS = (
    DETECTOR_RECORD,
    ENGINES_RECORD,
    CLASSIFIER_RECORD,
    SET_RECORD,
    SPLITS_RECORD,
    STATE_RECORD,
    TRAINING_RECORD,
    EVALUATION_RECORD,
)
HEADER = ["type", "version", "written_by"]
ALONE = """
import sys
for module in ("good_rt", "torch", "onnx"):
    sys.modules[module] = None
"""


def section(title: str) -> str:
    """A section's text, without those below it."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def run(folder: Path) -> str:
    """What the page's Python prints in a folder with detector.onnx and images.npz."""
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code) == 1
    command = [sys.executable, "-c", ALONE + code[0]]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    return ran.stdout


def test_the_page_reads_a_detector_without_good_rt(tmp_path: Path) -> None:
    for name in ("detector.onnx", "images.npz"):
        shutil.copy(V1 / name, tmp_path)
    detector = Detector(V1 / "detector.onnx")
    with np.load(V1 / "images.npz") as file:
        scores = detector.score(file["images"])
    classes = [detector.info.classes[label] for label in scores.label]
    expected = f"{scores.p_value} {scores.is_ood} {classes}\n"
    assert run(tmp_path) == expected
    model = onnx.load(tmp_path / "detector.onnx")
    onnx.helper.set_model_props(model, {METADATA_KEY: detector.info.to_json()})
    onnx.save(model, tmp_path / "detector.onnx")
    assert run(tmp_path) == expected


def test_every_output_and_key_of_a_detector_is_described() -> None:
    described = [name for row in rows("Outputs") for name in names(row[0])]
    assert described == list(output_names(DISCREPANCIES))
    keys = [names(row[0])[0] for row in rows("Metadata")]
    assert keys == [*HEADER, *(field.name for field in fields(DetectorInfo))]
    assert keys == list(json.loads(Detector(V1 / "detector.onnx").info.to_json()))


def test_opset_ir_version_and_shapes_are_as_described() -> None:
    model = onnx.load(V1 / "detector.onnx")
    assert "with opset 20 and IR version 10" in section("detector.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.ir_version == 10
    kinds = {1: "float32", 9: "bool"}
    described = {name: (row[1], row[2]) for row in rows("Outputs") for name in names(row[0])}
    for value in model.graph.output:
        dtype, shape = described[value.name]
        assert kinds[value.type.tensor_type.elem_type] == dtype
        assert len(value.type.tensor_type.shape.dim) == (2 if "K" in shape else 1)


def test_every_record_is_listed_with_its_version() -> None:
    listed = {tuple(names(row[1])): int(row[2]) for row in rows("Records and versions")}
    job = listed.pop(())
    assert job == JOB_VERSION
    assert listed == {(record.name,): record.version for record in RECORDS}


def test_every_key_of_classifiers_and_generated_images_is_described() -> None:
    described = [name for row in rows("Classifier folder") for name in names(row[0])]
    assert described == [field.name for field in fields(ClassifierConfig)]
    described = [name for row in rows("Generated set") for name in names(row[0])]
    assert sorted(described) == sorted(field.name for field in fields(Row))


def test_every_key_of_a_manifest_is_described() -> None:
    described = {name for row in rows("Engine folder") for name in names(row[0])}
    recorded = json.loads((V1 / "engines" / "manifest.json").read_text())
    assert described >= recorded.keys() - {"format"}
