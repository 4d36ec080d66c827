"""From folders to results: every part of the data has one use, so that no step judges itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from good_rt.classifier import Classifier, IdFeatures, predict
from good_rt.config.settings import CombinationName, DetectorConfig, GenerationConfig
from good_rt.data.batches import half_rows, id_batches
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.generated_split import HELD_OUT_EVERY, generated_parts
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8, to_uint8
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
from good_rt.detector.module import DetectorModule, build_module
from good_rt.diffusion import load_diffusion
from good_rt.errors import GoodRtError
from good_rt.method.class_scales import ClassScales
from good_rt.method.combination.linear import Linear
from good_rt.method.scores import LOGIT_SCORES, OTHER_ROWS
from good_rt.models import Models
from good_rt.workflow.detector import detector_for
from good_rt.workflow.evaluate import ReportPage, evaluate, evaluate_detectors, measure_images
from good_rt.workflow.train import decoded_images, training_images, with_generated


def images_of(tensor: torch.Tensor) -> set[bytes]:
    return {image.tobytes() for image in to_uint8(tensor)}


def part(id_dir: Path, name: str) -> set[bytes]:
    return {image.tobytes() for image in IdData(id_dir).part(name, 8, 1, 32).images}


def test_generated_images_are_trained_with_or_held_out(
    classifier: Classifier, generated_dirs: list[Path]
) -> None:
    train, held_out = generated_parts(generated_dirs, classifier)
    assert (len(train), len(held_out)) == (32, 8)
    assert not images_of(train) & images_of(held_out)
    every = {
        image.tobytes() for folder in generated_dirs for image in GeneratedSet(folder).images()
    }
    assert images_of(train) | images_of(held_out) == every
    # each strength is in both parts
    rows = GeneratedSet(generated_dirs[0]).rows()
    assert {row.strength for row in rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]} == {0.5, 1.0, 2.0}


def test_training_and_calibration_share_nothing(
    models: Models,
    id_dir: Path,
    generated_dirs: list[Path],
    detector_module: DetectorModule,
) -> None:
    data = training_images(models, IdData(id_dir), generated_dirs)
    assert data.ood is not None and data.val_ood is not None
    assert images_of(data.images) == part(id_dir, "train")
    held_out, test = part(id_dir, "held_out"), part(id_dir, "test")
    seen = (
        images_of(data.images)
        | images_of(data.val_images)
        | images_of(data.ood)
        | images_of(data.val_ood)
    )
    calibrating = held_out - images_of(data.val_images)
    assert len(calibrating) == 120 == len(detector_module.calibration)
    assert not seen & calibrating and not seen & test and not held_out & test
    assert not images_of(data.images) & images_of(data.val_images)


def test_few_validation_images_calibrate_nothing_either(
    models: Models, id_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 50
    monkeypatch.setattr("good_rt.workflow.train.TRAINING_BYTES", 4 * 32 * 32 * limit)
    data = training_images(models, IdData(id_dir))
    held_out = from_uint8(IdData(id_dir).part("held_out", 8, 1, 32).images)
    assert (len(data.images), len(data.val_images)) == (limit, limit)
    assert images_of(data.val_images) <= images_of(held_out[::2]) - images_of(held_out[1::2])


@pytest.mark.parametrize("combination", ["sum", "gate"])
def test_a_generated_set_without_images_is_refused(
    classifier: Classifier, id_dir: Path, tmp_path: Path, combination: CombinationName
) -> None:
    config = DetectorConfig(combination=combination)
    with pytest.raises(GoodRtError, match="holds no generated images"):
        detector_for(classifier, IdData(id_dir), [tmp_path / "missing"], config)


def test_unguided_samples_have_the_label_that_the_classifier_gives_them(
    models: Models,
    fill_set: Callable[..., GeneratedSet],
    make_config: Callable[..., GenerationConfig],
    id_dir: Path,
    generated_dirs: list[Path],
    tmp_path: Path,
) -> None:
    plain = fill_set(make_config(kind="none"), tmp_path / "plain")
    data = training_images(models, IdData(id_dir), generated_dirs, unguided=[plain.folder])
    assert data.unguided is not None and data.unguided_labels is not None
    expected = from_uint8(plain.images())
    assert torch.equal(data.unguided, expected)
    assert torch.equal(data.unguided_labels, models.classifier(expected)[0].argmax(dim=1))
    with pytest.raises(
        GoodRtError,
        match=r"images/000000\.png was generated with guidance 'img'; create unguided images",
    ):
        training_images(models, IdData(id_dir), generated_dirs, unguided=generated_dirs)
    with pytest.raises(
        GoodRtError, match="was generated with guidance 'none'; OOD images must be guided"
    ):
        training_images(models, IdData(id_dir), [plain.folder])


def test_training_images_with_other_sets_are_what_they_would_be_read_anew(
    models: Models, id_dir: Path, generated_dirs: list[Path]
) -> None:
    """Of the rounds of a job, which share the reconstructions."""
    first, both = (
        training_images(models, IdData(id_dir), folders)
        for folders in (generated_dirs[:1], generated_dirs)
    )
    found = with_generated(first, generated_dirs, models.classifier)
    for name, tensor in vars(both).items():
        other = vars(found)[name]
        assert other is tensor is None or torch.equal(other, tensor), name


def test_the_control_of_training_images_is_what_it_would_read_itself(
    models: Models,
    fill_set: Callable[..., GeneratedSet],
    make_config: Callable[..., GenerationConfig],
    id_dir: Path,
    generated_dirs: list[Path],
    tmp_path: Path,
) -> None:
    plain = fill_set(make_config(kind="none"), tmp_path / "plain")
    data = training_images(models, IdData(id_dir), generated_dirs, [plain.folder])
    assert all(tensor is not None for tensor in vars(data).values())
    control, alone = vars(data.control), vars(training_images(models, IdData(id_dir)))
    generated = {"ood", "val_ood", "unguided", "unguided_labels"}
    assert {name for name, tensor in control.items() if tensor is None} == generated
    assert {name for name, tensor in alone.items() if tensor is None} == generated
    assert all(torch.equal(control[name], alone[name]) for name in set(alone) - generated)


def test_the_detector_is_built_of_those_parts(
    classifier: Classifier,
    id_dir: Path,
    generated_dirs: list[Path],
    detector_module: DetectorModule,
) -> None:
    train, held_out = (
        from_uint8(assets.load_images(n).images[:c]) for n, c in (("train", 400), ("held_out", 240))
    )
    labels = assets.load_images("train").labels[:400]
    ood = [from_uint8(GeneratedSet(folder).images()[4::5]) for folder in generated_dirs]
    expected = build_module(
        classifier,
        IdFeatures.of(classifier, [(train, torch.from_numpy(labels))]),
        held_out[::2],
        held_out[1::2],
        ood,
        detector_module.config,
    )
    found, fitted = detector_module.id_features, expected.id_features
    torch.testing.assert_close(fitted.features, found.features)
    assert torch.equal(fitted.labels, found.labels)
    ours, theirs = detector_module.unified, expected.unified
    assert ours.names == theirs.names == detector_module.config.discrepancies
    for name in ("medians", "spreads"):
        fitted_scales = np.array(getattr(ours.scales, name))
        np.testing.assert_allclose(fitted_scales, getattr(theirs.scales, name), rtol=1e-3)
    assert ours.combination.weights == pytest.approx(theirs.combination.weights, rel=1e-3)
    torch.testing.assert_close(
        expected.calibration, detector_module.calibration, rtol=1e-3, atol=1e-3
    )
    small = detector_for(classifier, IdData(id_dir), generated_dirs, DetectorConfig(bank_size=50))
    assert len(small.id_features) == 50


def test_decoded_images_are_the_vaes(model_dir: Path, pixel_dir: Path, id_dir: Path) -> None:
    model = load_diffusion(model_dir)
    images = from_uint8(assets.load_images("train").images[:5])
    assert model.encoder is not None and model.decoder is not None
    with torch.no_grad():
        expected = to_uint8(model.decoder(model.encoder(images)))
    found = decoded_images(model, images, batch=2)
    assert found is not None
    assert np.abs(to_uint8(found).astype(int) - expected).max() <= 1
    torch.testing.assert_close(found, from_uint8(to_uint8(found)))  # eight bits a pixel
    assert decoded_images(load_diffusion(pixel_dir), images) is None


def test_sets_that_cannot_be_used_are_named(
    classifier: Classifier, id_dir: Path, generated_dirs: list[Path], tmp_path: Path
) -> None:
    colour = Classifier(SmallResNet(3, 8), replace(classifier.config, channels=3))
    with pytest.raises(
        GoodRtError, match=r"img: images are \(32, 32, 1\), the classifier takes \(32, 32, 3\)"
    ):
        generated_parts(generated_dirs, colour)
    few = GeneratedSet(tmp_path / "few")
    few.begin({})
    source = GeneratedSet(generated_dirs[0])
    few.append(source.images()[:4], source.rows()[:4])
    with pytest.raises(GoodRtError, match="few holds 4 images; generate at least 5"):
        generated_parts([tmp_path / "few"], classifier)
    with pytest.raises(GoodRtError, match="holds no generated images"):
        generated_parts([tmp_path / "none"], classifier)


def test_the_evaluation_is_of_the_test_part(detector_module: DetectorModule, id_dir: Path) -> None:
    ood = {name: assets.load_images(name).images[:60] for name in ("near", "emoji")}
    evaluation, scores = evaluate_detectors({"tiny": detector_module}, IdData(id_dir), ood)
    test = IdData(id_dir).part("test", 8, 1, 32)
    with torch.no_grad():
        outputs = detector_module((from_uint8(test.images) + 1) / 2)
    accuracy = float((outputs[0].argmax(1).numpy() == test.labels).mean())
    assert evaluation.id_accuracy["tiny"].rate == pytest.approx(accuracy)
    assert set(scores["tiny"]) == {*LOGIT_SCORES, *OTHER_ROWS}
    assert set(OTHER_ROWS) == {"k-NN", "Mahalanobis", "Relative Mahalanobis", "Unified"}
    of = dict(zip(detector_module.outputs, outputs, strict=True))
    np.testing.assert_allclose(scores["tiny"]["Unified"].id, of["score"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scores["tiny"]["k-NN"].id, of["knn_distance"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        scores["tiny"]["Mahalanobis"].id, of["mahalanobis"], rtol=1e-3, atol=1e-3
    )
    with torch.no_grad():
        logits = detector_module.classifier(from_uint8(ood["near"]))[0].double().numpy()
    np.testing.assert_allclose(
        scores["tiny"]["MSP"].ood["near"], 1 - softmax(logits, axis=1).max(1), rtol=1e-4
    )
    refused = {refusal.alpha: refusal.share.rate for refusal in evaluation.id_refusal}
    assert refused[0.05] == pytest.approx(float((of["p_value"] <= 0.05).float().mean()), abs=1e-6)
    for classifiers, test_sets in (({}, ood), ({"tiny": detector_module}, {})):
        with pytest.raises(GoodRtError, match="at least one classifier and one OOD test set"):
            evaluate(classifiers, id_dir, test_sets, id_dir / "evaluation")


def test_the_refusals_are_the_shipped_detectors(
    detector_module: DetectorModule, id_dir: Path
) -> None:
    strict = copy.deepcopy(detector_module)
    strict.calibration.sub_(1000)  # calibrated with images that look far less strange than any
    detectors, ood = (
        {"before": detector_module, "trained": strict},
        {"near": assets.load_images("near").images[:20]},
    )
    for shipped, refuses_all in ((None, True), ("trained", True), ("before", False)):
        evaluation, _ = evaluate_detectors(detectors, IdData(id_dir), ood, shipped)
        assert evaluation.shipped == (shipped or "trained")
        assert (evaluation.id_refusal[-1].share.rate == 1) is refuses_all


def test_a_detector_without_generated_images_and_classes(models: Models, tmp_path: Path) -> None:
    classifier = models.classifier
    pixels = assets.load_images("test").images[:200, ..., 0]
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    made = detector_for(classifier, IdData(tmp_path), [])
    assert made.unified.names == ("mahalanobis", "relative_mahalanobis")
    assert made.unified.combination == Linear((0.5, 0.5))
    fitted, _ = half_rows(IdData(tmp_path), "held_out")
    found = measure_images(
        made,
        made.discrepancies,
        id_batches(IdData(tmp_path), "held_out", classifier, rows=fitted),
    )
    values = torch.from_numpy(found.values(made.unified.names))
    scales = ClassScales.fit(made.unified.names, found)
    standardised = scales.standardise(values, torch.from_numpy(found.logits)).numpy()
    np.testing.assert_allclose(made.scores(found), standardised.mean(axis=1), rtol=1e-6, atol=1e-6)
    # without labels, the classes are those that the classifier predicts
    train = torch.cat(list(id_batches(IdData(tmp_path), "train", classifier)))
    assert torch.equal(made.id_features.labels, predict(classifier, train)[0].argmax(1))
    with pytest.raises(GoodRtError, match="gate is fitted on generated images; give some, or"):
        detector_for(classifier, IdData(tmp_path), [], DetectorConfig(combination="gate"))
    with pytest.raises(GoodRtError, match="has no labels"):
        training_images(models, IdData(tmp_path))


def test_a_plug_ins_score_is_measured_where_it_is_named(
    detector_module: DetectorModule, id_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site"
    (package / "peer-1.0.dist-info").mkdir(parents=True)
    (package / "peer_scores.py").write_text(
        "def spread(logits):\n    return -(logits.max(axis=1) - logits.min(axis=1))\n"
    )
    (package / "peer-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: peer\nVersion: 1.0\n"
    )
    (package / "peer-1.0.dist-info" / "entry_points.txt").write_text(
        "[good_rt.scores]\nSpread = peer_scores:spread\n"
    )
    monkeypatch.syspath_prepend(package)
    test_sets = {"near": assets.load_images("near").images[:20]}
    page = ReportPage(scores=("Spread",))
    evaluation = evaluate({"tiny": detector_module}, id_dir, test_sets, tmp_path, page=page)
    assert "Spread" in evaluation.scores
    unknown = ReportPage(scores=("Sprad",))
    with pytest.raises(GoodRtError, match="Sprad"):
        evaluate({"tiny": detector_module}, id_dir, test_sets, tmp_path, page=unknown)
