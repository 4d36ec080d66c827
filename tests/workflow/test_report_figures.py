"""What the report shows of images, from a real detector: their order is that of detector.onnx, the
mistakes are mistakes, and no image that was trained with is shown as new."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from good_rt.classifier import Classifier, ClassifierConfig
from good_rt.config.settings import DetectorConfig, TrainConfig
from good_rt.data.generated_set import GeneratedSet, Row
from good_rt.data.id_data import IdData
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
from good_rt.detector.module import DetectorModule
from good_rt.detector.runtime import Detector
from good_rt.evaluation.picture_rows import PictureRows
from good_rt.evaluation.training_gain import TrainingRoles
from good_rt.method.augmentation import Augmentation
from good_rt.models import Models
from good_rt.workflow.evaluate import evaluate, evaluate_detectors
from good_rt.workflow.report_figures import (
    MISTAKES,
    EvaluatedSets,
    distance_figures,
    feature_discrepancy,
    mistake_pictures,
    ordered_pictures,
    p_text,
    score_generated,
    training_roles,
)
from good_rt.workflow.train import (
    TRAINING_RECORD,
    FinishedTraining,
    train,
    training_record,
)


@pytest.fixture(scope="module")
def ood() -> dict[str, NDArray[np.uint8]]:
    return {name: assets.load_images(name).images[:80] for name in ("near", "photos")}


@pytest.fixture(scope="module")
def evaluated(
    detector_module: DetectorModule, id_dir: Path, ood: dict[str, NDArray[np.uint8]]
) -> EvaluatedSets:
    detectors = {"before": detector_module}
    _, scores = evaluate_detectors(detectors, IdData(id_dir), ood)
    return EvaluatedSets(detectors, scores, "before", IdData(id_dir), ood)


def image_scores(detector: Detector, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(detector.score(images).score, np.float64)


def p_values(pictures: PictureRows) -> list[str]:
    return [label.lines[-1] for label in pictures.labels]


def training(generated: list[Path]) -> FinishedTraining:
    return FinishedTraining(
        {}, tuple(map(str, generated)), (), 1, 0.9, 0.9, Augmentation(False, False), ()
    )


def test_generated_images_are_ordered_by_the_detectors_score(
    evaluated: EvaluatedSets, generated_dirs: list[Path], detector_path: Path
) -> None:
    distance = feature_discrepancy(evaluated)
    scored = score_generated(evaluated, generated_dirs, None, distance)
    assert [one.title for one in scored] == ["image level", "feature level"]
    detector = Detector(detector_path)
    for folder, pictures in zip(generated_dirs, ordered_pictures(evaluated, scored), strict=True):
        shown = image_scores(detector, pictures.images)
        assert len(shown) == 20 and (np.diff(shown) >= -1e-4).all()
        every = {image.tobytes() for image in GeneratedSet(folder).images()}
        assert {image.tobytes() for image in pictures.images} == every
        of_file = detector.score(pictures.images[:: pictures.every])
        for label, score, p in zip(pictures.labels, of_file.score, of_file.p_value, strict=True):
            assert float(label.lines[0].replace("−", "-")) == pytest.approx(score, abs=0.06)
            assert label.lines[1] == p_text(float(p))
            assert label.refused == (p <= detector.info.alpha)


def test_long_sets_are_thinned_evenly(
    evaluated: EvaluatedSets, generated_dirs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("good_rt.workflow.report_figures.GENERATED_IMAGES", 10)
    monkeypatch.setattr("good_rt.workflow.report_figures.ORDERED_IMAGES", 5)
    monkeypatch.setattr("good_rt.workflow.peers.images.ARRAY_BATCH", 4)
    distance = feature_discrepancy(evaluated)
    (scored,) = score_generated(evaluated, generated_dirs[:1], None, distance)
    kept = GeneratedSet(generated_dirs[0]).images()[np.linspace(0, 19, 10).round().astype(int)]
    np.testing.assert_array_equal(scored.images, kept)
    scores = scored.scores["before"]
    (pictures,) = ordered_pictures(evaluated, [scored])
    assert len(pictures.images) == 5
    assert pictures.images[0].tobytes() == kept[scores.argmin()].tobytes()
    assert pictures.images[-1].tobytes() == kept[scores.argmax()].tobytes()


def test_of_a_set_that_trained_only_held_out_images_are_shown(
    evaluated: EvaluatedSets, generated_dirs: list[Path]
) -> None:
    distance = feature_discrepancy(evaluated)
    img, feat = score_generated(evaluated, generated_dirs, training(generated_dirs[:1]), distance)
    np.testing.assert_array_equal(img.images, GeneratedSet(generated_dirs[0]).images()[4::5])
    assert (img.held_out, feat.held_out, len(feat.images)) == (True, False, 20)
    figures = distance_figures(evaluated, [img, feat], distance)
    assert figures is not None and figures.held_out == ["image level"]


def test_distances_are_those_of_the_detector(
    evaluated: EvaluatedSets,
    generated_dirs: list[Path],
    detector_path: Path,
    ood: dict[str, NDArray[np.uint8]],
) -> None:
    distance = feature_discrepancy(evaluated)
    scored = score_generated(evaluated, generated_dirs[:1], None, distance)
    figures = distance_figures(evaluated, scored, distance)
    assert figures is not None and figures.axes == ("Energy", "k-NN distance")
    assert [one.group for one in figures.sets] == ["id", "generated", "ood", "ood"]
    detector = Detector(detector_path)
    images = {"image level": GeneratedSet(generated_dirs[0]).images(), **ood}
    for one in figures.sets[1:]:
        of_file = detector.score(images[one.title])
        plane = np.stack(
            [of_file.discrepancies[name] for name in ("energy", "knn_distance")], axis=1
        )
        np.testing.assert_allclose(one.plane, plane, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(one.scores["before"], of_file.score, rtol=1e-3, atol=1e-3)
        assert one.refused == pytest.approx(of_file.is_ood.mean(), abs=0.02)
        beyond = (one.scores["before"] > figures.thresholds["before"]).mean()
        assert one.refused == beyond


def test_mistakes_are_the_worst_of_each_set(
    evaluated: EvaluatedSets,
    id_dir: Path,
    detector_path: Path,
    ood: dict[str, NDArray[np.uint8]],
) -> None:
    refused, *accepted = mistake_pictures(evaluated)
    detector, known = Detector(detector_path), IdData(id_dir).part("test", 8, 1, 32)
    assert known.labels is not None
    result = detector.score(known.images)
    worst = np.argsort(-result.score)[: min(MISTAKES, int(result.is_ood.sum()))]
    assert len(worst) > 0
    assert {image.tobytes() for image in refused.images} == {
        image.tobytes() for image in known.images[worst]
    }
    assert refused.caption == f"{result.is_ood.sum()} of 160 images refused"
    assert all(label.refused for label in refused.labels)
    class_of = {known.images[row].tobytes(): known.labels[row] for row in worst}
    for image, label in zip(refused.images, refused.labels, strict=True):
        assert label.lines[0] == assets.CLASSES[class_of[image.tobytes()]]
        predicted = assets.CLASSES[int(detector.score(image[None]).label[0])]
        right = label.lines[0] == predicted
        assert label.lines[1:-1] == (() if right else (f"→ {predicted}",))
    for (name, images), pictures in zip(ood.items(), accepted, strict=True):
        result = detector.score(images)
        count = int((~result.is_ood).sum())
        assert pictures.title == name
        assert pictures.caption == f"{count} of 80 images accepted"
        assert len(pictures.images) == min(MISTAKES, count)
        shown = image_scores(detector, pictures.images)
        assert (np.diff(shown) >= -1e-4).all()
        assert shown.max(initial=-np.inf) <= np.sort(result.score)[len(shown) - 1] + 1e-4
        predicted = detector.score(pictures.images).label if count else []
        assert [label.lines[0] for label in pictures.labels] == [
            assets.CLASSES[int(label)] for label in predicted
        ]


def test_roles_are_read_from_the_training_records(tmp_path: Path) -> None:
    def trained(name: str, generated: list[Path]) -> Path:
        (tmp_path / name / "classifier").mkdir(parents=True)
        record = asdict(training(generated))
        TRAINING_RECORD.write(tmp_path / name / "training.json", record)
        return tmp_path / name / "classifier"

    control, with_images = trained("a", []), trained("b", [Path("ood")])
    paths = {"x": assets.CLASSIFIER, "y": control, "z": with_images}
    assert training_roles(paths) == TrainingRoles("x", "z", "y")
    assert training_roles({"x": paths["x"], "z": paths["z"]}) == TrainingRoles("x", "z")
    assert training_roles({"x": paths["x"], "y": control}) is None
    assert training_roles({"z": with_images, "other": object()}) is None


def test_a_moved_job_knows_what_it_was_trained_with(
    models: Models, id_dir: Path, generated_dirs: list[Path], tmp_path: Path
) -> None:
    job = tmp_path / "job"
    shutil.copytree(generated_dirs[0], job / "generated" / "img")
    config = TrainConfig(steps=1, evaluate_every=1, id_batch=8, ood_batch=8, max_accuracy_drop=1)
    train(models, id_dir, job / "trained", [job / "generated" / "img"], config=config)
    moved = job.rename(tmp_path / "moved")
    record = training_record(moved / "trained" / "classifier")
    assert record is not None and record.generated == (str(moved / "generated" / "img"),)


def test_without_generated_sets(id_dir: Path, classifier_dir: Path, tmp_path: Path) -> None:
    config = DetectorConfig(("energy",), combination="sum", alpha=0.1)
    near = assets.load_images("near").images[:30]
    evaluate({"before": classifier_dir}, id_dir, {"near": near}, tmp_path, config=config)
    html = (tmp_path / "report.html").read_text()
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert "How far from the training data" in headings and "Mistakes" in headings
    assert "What the generated images gave" not in headings and "From near to far" not in headings


def test_large_colour_images_and_one_class(tmp_path: Path) -> None:
    """224 pixels, RGB, a single class: thumbnails keep the page small."""
    side, rng = 224, np.random.default_rng(0)
    torch.manual_seed(0)
    network = SmallResNet(3, width=8, num_classes=1).eval()
    config = ClassifierConfig("small_resnet", ("photo",), 3, side)
    classifier = Classifier(network, config)
    base = rng.integers(0, 255, (1, side, side, 3))
    data = tmp_path / "data"
    data.mkdir()
    for part, count in {"train": 40, "held_out": 40, "test": 20}.items():
        images = (base + rng.normal(0, 40, (count, side, side, 3))).clip(0, 255).astype(np.uint8)
        np.savez(data / f"{part}.npz", images=images, labels=np.zeros(count, np.int64))
    folder = tmp_path / "ood"
    generated = GeneratedSet(folder)
    generated.begin({"kind": "img"})
    noise = rng.integers(0, 255, (40, side, side, 3), dtype=np.uint8)
    rows = [Row(i, f"images/{i}.png", i, 0, "img", 1.0, -1.0, 0.5, None, None) for i in range(40)]
    generated.append(noise, rows)
    out = tmp_path / "out"
    detector_config = DetectorConfig(("knn_distance",), combination="sum", alpha=0.1)
    arguments = (
        {"before": classifier},
        data,
        {"near": noise[:20]},
        out,
        [folder],
        detector_config,
    )
    evaluate(*arguments)
    html = (out / "report.html").read_bytes()
    # noise is the worst case of PNG: 160 images of 64 pixels
    assert len(html) < 160 * 64 * 64 * 3 * 4 / 3 + 300_000
    assert b"From near to far" in html and b"http-equiv" not in html
    evaluate(*arguments)
    assert (out / "report.html").read_bytes() == html
