"""What older good-rts scored, kept beside their records."""

from pathlib import Path

import numpy as np

from good_rt.detector.runtime import Detector


def check_scores(detector: Detector, images: Path, expected_file: Path) -> None:
    """The detector scores the images (.npz) as it did when the other .npz file was written."""
    with np.load(images) as file:
        scores = detector.score(file["images"])
    with np.load(expected_file) as expected:
        for name in ("p_value", "is_ood", "label"):
            np.testing.assert_array_equal(getattr(scores, name), expected[name], name)
        columns = {"score": scores.score, "logits": scores.logits, **scores.discrepancies}
        assert set(columns) == {"score", "logits", "energy", "knn_distance"}
        for name, values in columns.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert 0 < scores.is_ood.sum() < len(scores.is_ood)
