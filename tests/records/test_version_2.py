"""The records that good-rt 0.2.0 wrote are still read.

A detector scores as it did then: its score always was the gate of energy and k-NN distance; only
version 3 says so. A training always had the objective logistic, and flipped and shifted images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from recorded_scores import check_scores

from good_rt.detector.runtime import METADATA_KEY, Detector, DetectorInfo
from good_rt.errors import GoodRtError
from good_rt.method.augmentation import Augmentation
from good_rt.workflow.train import TRAINING_FILE, TRAINING_RECORD, FinishedTraining

V2 = Path(__file__).parent / "v2" / "detector.onnx"
IMAGES = Path(__file__).parent / "v1" / "images.npz"


def test_a_detector_gives_the_same_scores() -> None:
    detector = Detector(V2)
    assert detector.info.score == {
        "combination": {"name": "gate"},
        "discrepancies": {"energy": {}, "knn_distance": {"k": 3}},
    }
    assert (detector.info.alpha, detector.info.calibration_size) == (0.1, 60)
    assert detector.info.versions["good-rt"] == "0.2.0"
    check_scores(detector, IMAGES, V2.with_name("expected.npz"))


def test_its_metadata_migrate_to_the_current_version() -> None:
    info = Detector(V2).info
    assert json.loads(info.to_json())["version"] == 4
    assert DetectorInfo.from_json(info.to_json()) == info


@pytest.mark.parametrize(
    "score",
    [
        None,
        [],
        {},
        {"discrepancies": {}},
        {"discrepancies": ["energy", "knn_distance"]},
        {"discrepancies": {"knn_distance": {}, "energy": {}}},
        {"discrepancies": {"energy": {}}},
        {"discrepancies": {"energy": {}, "knn_distance": {}, "mahalanobis": {}}},
    ],
    ids=str,
)
def test_a_score_that_is_not_the_files_is_refused(tmp_path: Path, score: Any) -> None:
    model = onnx.load(V2)
    values = json.loads(Detector(V2).info.to_json())
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps({**values, "score": score})})
    onnx.save(model, tmp_path / "detector.onnx")
    with pytest.raises(GoodRtError, match=r"detector\.onnx is damaged \(.*\); build it again"):
        Detector(tmp_path / "detector.onnx")


def test_a_training_names_its_objective_and_augmentation() -> None:
    recorded = json.loads(V2.with_name(TRAINING_FILE).read_text())
    assert recorded["version"] == 2
    training = TRAINING_RECORD.read_as(FinishedTraining, V2.with_name(TRAINING_FILE))
    assert training.config["objective"] == "logistic" and training.config["lr"] == 1e-5
    assert training.augmentation == Augmentation(flip=True, shift=True)
    assert training.regulariser == "logistic loss of the energy"
    assert [step.regulariser for step in training.history] == [
        step["bce"] for step in recorded["history"]
    ]
    assert [step.ce for step in training.history] == [step["ce"] for step in recorded["history"]]
