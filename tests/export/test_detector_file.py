"""detector.onnx against PyTorch on real images, every label included; and that a wrong file is
never kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import good_rt
import good_rt.export.detector as under_test
from good_rt.classifier import Classifier
from good_rt.config.settings import DetectorConfig
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule
from good_rt.detector.runtime import Detector
from good_rt.errors import GoodRtError, ParityError
from good_rt.export.detector import detector_parity, export_detector
from good_rt.export.to_onnx import export_onnx
from good_rt.method.combination import COMBINATIONS
from good_rt.method.discrepancy import DISCREPANCIES
from good_rt.workflow.detector import detector_for

TOLERANCE = 1e-4
"""Of a well-trained classifier's outputs, relative to their mean magnitude; the export itself bears
with 1e-3."""


def unit(name: str, count: int) -> Tensor:
    """Images of a shipped set in [0, 1]."""
    return (from_uint8(assets.load_images(name).images[:count]) + 1) / 2


def test_every_output_and_label_on_real_images(
    detector_module: DetectorModule, detector_path: Path
) -> None:
    detector = Detector(detector_path)
    for name in ("test", "near", "mnist", "photos"):
        images = assets.load_images(name).images[:150]
        found = detector.score(images)
        with torch.no_grad():
            outputs = detector_module(unit(name, 150))
            expected = dict(zip(detector_module.outputs, outputs, strict=True))
        columns = {"logits": found.logits, **found.discrepancies, "score": found.score}
        assert tuple(columns) == detector_module.outputs[:-2]
        for output, values in columns.items():
            reference = expected[output].numpy()
            difference = np.abs(values - reference).max() / np.abs(reference).mean()
            assert difference <= TOLERANCE, (name, output)
        np.testing.assert_array_equal(found.label, expected["logits"].argmax(1))
        assert (found.is_ood != expected["is_ood"].numpy()).sum() == 0, name


def test_parity_counts_what_differs(detector_module: DetectorModule, detector_path: Path) -> None:
    parity = detector_parity(detector_module, detector_path, unit("test", 70), batch=32)
    assert parity.images == 70
    assert (parity.class_disagreements, parity.ood_disagreements) == (0, 0)
    assert max(parity.max_relative.values()) <= TOLERANCE


@pytest.mark.parametrize(("ahead", "disagree"), [(1e-6, 0), (1.0, 70)])
def test_a_class_that_is_ahead_by_no_more_than_rounding_does_not_disagree(
    detector_module: DetectorModule, detector_path: Path, ahead: float, disagree: int
) -> None:
    class Ahead(nn.Module):
        """The detector with each image's second class that much ahead of its first."""

        calibration = detector_module.calibration
        unified, outputs = detector_module.unified, detector_module.outputs

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            logits, *others = detector_module(images)
            largest, places = logits.topk(2)
            return logits.scatter(1, places[:, 1:], largest[:, :1] + ahead), *others

    module: Any = Ahead()
    parity = detector_parity(module, detector_path, unit("test", 70), batch=32)
    assert (parity.class_disagreements, parity.ood_disagreements) == (disagree, 0)


def test_the_file_says_what_it_is(detector_module: DetectorModule, detector_path: Path) -> None:
    info = Detector(detector_path).info
    assert info.versions["good-rt"] == good_rt.__version__
    assert info.versions["torch"] == torch.__version__
    assert (info.channels, info.image_size) == (1, 32)
    assert info.calibration_size == len(detector_module.calibration)
    assert info.discrepancies == ("energy", "knn_distance", "mahalanobis")
    unified, described = detector_module.unified, info.score["discrepancies"]
    medians, spreads = np.array(unified.scales.medians), np.array(unified.scales.spreads)
    for j, name in enumerate(unified.names):
        of_name = described[name]
        np.testing.assert_array_equal(of_name["medians"], medians[:, j])
        np.testing.assert_array_equal(of_name["spreads"], spreads[:, j])
        assert of_name["weight"] == unified.combination.weights[j]
    assert described["energy"]["temperature"] == 1.0
    assert (described["knn_distance"]["k"], described["knn_distance"]["bank_size"]) == (3, 400)
    gate: Any = unified.combination
    assert info.score["combination"] == {"name": "gate", "weights": list(gate.weights), "c": gate.c}


class Off(nn.Module):
    """The detector with one thing wrong."""

    def __init__(self, module: DetectorModule, wrong: str) -> None:
        super().__init__()
        self.module, self.wrong = module, wrong
        self.outputs = module.outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, energy, *others, score, p_value, is_ood = self.module(images)
        if self.wrong == "score":
            score = score * 1.01 + 0.01
        elif self.wrong == "decision":
            is_ood = ~is_ood
        elif self.wrong == "class":
            logits = logits.flip(1)
        else:
            energy = energy * torch.nan
        return logits, energy, *others, score, p_value, is_ood


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("score", "score differs by .* relative"),
        ("class", r"[1-9]\d* classes and 0 decisions of 16 differ"),
        ("decision", "0 classes and 16 decisions of 16 differ"),
        ("nan", "energy differs by nan"),
    ],
)
def test_a_wrong_file_is_not_kept(
    detector_module: DetectorModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
    message: str,
) -> None:
    exported = under_test.export_onnx

    def perturbed(module: DetectorModule, *arguments: Any, **settings: Any) -> None:
        exported(Off(module, wrong), *arguments, **settings)

    monkeypatch.setattr(under_test, "export_onnx", perturbed)
    path = tmp_path / "detector.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(
        ParityError,
        match=rf"detector\.onnx is not what PyTorch computes: .*{message}.*; nothing was",
    ):
        export_detector(detector_module, path, unit("test", 16), training="nothing")
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_one_file_cannot_hold_are_refused(
    detector_module: DetectorModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "LARGEST_FILE", 1000)
    with pytest.raises(GoodRtError, match=r"detector\.onnx would hold .* GiB of weights, but an"):
        export_detector(detector_module, tmp_path / "detector.onnx", unit("test", 2), "nothing")
    assert list(tmp_path.iterdir()) == []


def test_the_default_score_adds_few_operations(
    detector_module: DetectorModule, classifier: Classifier, id_dir: Path, tmp_path: Path
) -> None:
    """At batch 1 each costs about a microsecond, whatever it computes."""

    class OnlyLogits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, images: Tensor) -> Tensor:
            return self.classifier(images * 2 - 1)[0]

    module = detector_for(classifier, IdData(id_dir), features=detector_module.id_features)
    images, paths = unit("test", 4), [tmp_path / "plain.onnx", tmp_path / "detector.onnx"]
    export_onnx(OnlyLogits().eval(), {"images": images}, ("logits",), paths[0])
    export_detector(module, paths[1], images, training="nothing")
    plain, detector = (len(onnx.load(path).graph.node) for path in paths)
    assert detector - plain <= 37 + 10  # the score, and the guard


SCORES: dict[str, DetectorConfig] = {
    "default": DetectorConfig(),
    "energy": DetectorConfig(("energy",), "max", temperature=2.0),
    "knn_distance": DetectorConfig(("knn_distance",), "sum", k=5),
    "two, max": DetectorConfig(("mahalanobis", "energy"), "max"),
    "two, logistic": DetectorConfig(("energy", "relative_mahalanobis"), "logistic"),
    "two, fisher": DetectorConfig(("knn_distance", "mahalanobis"), "fisher", k=2),
    "three, min_p": DetectorConfig(("energy", "knn_distance", "mahalanobis"), "min_p"),
    "two, kl": DetectorConfig(("energy", "knn_distance"), "kl"),
    "all, kl": DetectorConfig(tuple(DISCREPANCIES), "kl"),
    "all, gate": DetectorConfig(tuple(DISCREPANCIES), "gate"),
    "all, reversed, sum": DetectorConfig(tuple(DISCREPANCIES)[::-1], "sum"),
}


def test_every_discrepancy_and_combination_is_exported_below() -> None:
    configs = SCORES.values()
    assert {name for config in configs for name in config.discrepancies} == set(DISCREPANCIES)
    assert {config.combination for config in configs} == set(COMBINATIONS)


@pytest.mark.parametrize("name", list(SCORES))
def test_every_score_is_pytorchs(
    classifier: Classifier,
    id_dir: Path,
    generated_dirs: list[Path],
    detector_module: DetectorModule,
    tmp_path: Path,
    name: str,
) -> None:
    config, path = SCORES[name], tmp_path / "detector.onnx"
    features = detector_module.id_features
    module = detector_for(classifier, IdData(id_dir), generated_dirs, config, features)
    export_detector(module, path, unit("test", 32), training="nothing")
    detector = Detector(path)
    assert detector.info.discrepancies == config.discrepancies
    assert detector.info.score["combination"]["name"] == config.combination
    scores = detector.score(assets.load_images("near").images[:64])
    with torch.no_grad():
        outputs = dict(zip(module.outputs, module(unit("near", 64)), strict=True))
    for output, values in {**scores.discrepancies, "score": scores.score}.items():
        reference = outputs[output].numpy()
        difference = np.abs(values - reference).max() / np.abs(reference).mean()
        assert difference <= TOLERANCE, output
    np.testing.assert_allclose(scores.p_value, outputs["p_value"], atol=1 / 120)
