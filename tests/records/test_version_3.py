"""The detectors of version 3, which have no guard and a hash of other weights, score as before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from good_rt.detector.runtime import Detector, DetectorInfo
from good_rt.workflow.detector import config_of

V3 = Path(__file__).parent / "v3" / "detector.onnx"
IMAGES = Path(__file__).parent / "v1" / "images.npz"


def test_a_detector_gives_the_same_scores() -> None:
    with np.load(IMAGES) as file:
        scores = Detector(V3).score(file["images"])
    with np.load(V3.with_name("expected.npz")) as expected:
        for name in ("p_value", "is_ood", "label"):
            np.testing.assert_array_equal(getattr(scores, name), expected[name], name)
        columns = {"score": scores.score, "logits": scores.logits, **scores.discrepancies}
        for name, values in columns.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_its_metadata_migrate_to_the_current_version() -> None:
    info = Detector(V3).info
    assert json.loads(info.to_json())["version"] == 4
    assert DetectorInfo.from_json(info.to_json()) == info


def test_its_settings_are_known() -> None:
    config = config_of(Detector(V3).info)
    assert config.discrepancies == ("mahalanobis", "relative_mahalanobis")
    assert (config.combination, config.alpha, config.k) == ("sum", 0.1, 1)
