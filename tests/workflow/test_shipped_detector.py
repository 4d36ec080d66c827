"""The figures are of the detector that ships: its α, k and bank, and its p-values."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from good_rt.classifier import Classifier
from good_rt.config.settings import DetectorConfig
from good_rt.data.id_data import IdData
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule
from good_rt.detector.runtime import Detector
from good_rt.errors import GoodRtError
from good_rt.workflow.detector import check_same_detector, config_of, detector_for
from good_rt.workflow.evaluate import ReportPage, evaluate

Run = Callable[..., Any]
IMAGES = assets.load_images("test").images[:40]


def test_the_settings_of_a_file_are_those_it_was_built_with(
    detector_module: DetectorModule, detector_path: Path
) -> None:
    built = detector_module.config
    assert config_of(Detector(detector_path).info) == replace(built, bank_size=400)  # all there are
    assert built.bank_size > 400


def test_a_file_is_its_modules(detector_module: DetectorModule, detector_path: Path) -> None:
    check_same_detector(Detector(detector_path), detector_module, IMAGES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.05}, r"has alpha 0\.1, but 0\.05 would be measured"),
        ({"combination": "sum"}, "has combination gate, but sum would be measured"),
        ({"discrepancies": ("energy",)}, "has discrepancies .* but .* would be measured"),
        ({"k": 40}, "gives other p-values than what would be measured"),
        ({"temperature": 9.0}, "gives other p-values than what would be measured"),
        ({"bank_size": 30}, "gives other p-values than what would be measured"),
    ],
    ids=str,
)
def test_another_detector_is_refused(
    classifier: Classifier,
    id_dir: Path,
    generated_dirs: list[Path],
    detector_module: DetectorModule,
    detector_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    config = replace(detector_module.config, **change)
    other = detector_for(classifier, IdData(id_dir), generated_dirs, config)
    with pytest.raises(GoodRtError, match=message):
        check_same_detector(Detector(detector_path), other, IMAGES)


def test_another_calibration_is_refused(
    detector_module: DetectorModule, detector_path: Path
) -> None:
    other = copy.deepcopy(detector_module)
    other.calibration += 1
    with pytest.raises(GoodRtError, match="gives other p-values"):
        check_same_detector(Detector(detector_path), other, IMAGES)


def test_evaluate_measures_with_the_settings_of_the_file(
    run: Run, classifier_dir: Path, id_dir: Path, generated_dirs: list[Path], detector_path: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    np.savez(tmp_path / "far.npz", images=assets.load_images("textures").images[:20])
    words = ["evaluate", "--id", id_dir, "--test-set", f"far={tmp_path / 'far.npz'}"]
    words += ["--classifier", f"it={classifier_dir}", "-o", tmp_path / "evaluation"]
    words += [word for folder in generated_dirs for word in ("--generated", folder)]
    conflict = run(*words, "--detector", detector_path, "--alpha", 0.2).failed()
    assert "--detector brings its own settings; leave out" in conflict
    assert run(*words, "--detector", detector_path, "--json").code == 0
    written = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert written["id_refusal"][-1]["alpha"] == 0.1
    report = (tmp_path / "evaluation" / "report.html").read_text()
    assert "gate of energy, knn_distance, mahalanobis" in report

    missing = run(*words, "--detector", tmp_path / "gone.onnx").failed()
    assert "gone.onnx does not exist; give a detector.onnx" in missing


def test_the_report_lists_the_settings_of_the_detector_that_was_built(
    detector_module: DetectorModule, id_dir: Path, generated_dirs: list[Path], tmp_path: Path
) -> None:
    """Not those that are given for detectors that are not yet built."""
    far = {"far": assets.load_images("textures").images[:20]}
    given = DetectorConfig(alpha=0.3)
    evaluate({"it": detector_module}, id_dir, far, tmp_path, generated_dirs, given)
    report = (tmp_path / "report.html").read_text()
    assert "gate of energy, knn_distance, mahalanobis" in report
    assert "sum of mahalanobis" not in report

    other = copy.deepcopy(detector_module)
    other.calibration += 1
    page = ReportPage(detector=tmp_path / "gone.onnx")
    with pytest.raises(GoodRtError, match=r"gone\.onnx does not exist"):
        evaluate({"it": other}, id_dir, far, tmp_path, generated_dirs, given, page)
