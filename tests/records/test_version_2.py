"""A detector that good-rt 0.2.0 wrote is still read, and scores as it did then.

Its score always was the gate of energy and k-NN distance; only version 3 says so.
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
    assert json.loads(info.to_json())["version"] == 3
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
