"""Models elsewhere than on the CPU: nothing is mixed up on the way, and the numbers are the CPU's.

No GPU is needed: `elsewhere.second_device` stands for one as far as places go. What a GPU computes
is tested on GPUs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import load
from elsewhere import ELSEWHERE, second_device
from torch import nn

from good_rt.classifier import Classifier, load_classifier, predict
from good_rt.classifier.sources.graph import graph_network
from good_rt.config.settings import (
    DetectorConfig,
    FeatureDiscrepancyName,
    GenerationConfig,
    GuidanceConfig,
    ObjectiveName,
    SamplerConfig,
    TrainConfig,
)
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule
from good_rt.diffusion import load_diffusion
from good_rt.environment import CPU, use_device
from good_rt.errors import GoodRtError
from good_rt.files import read_json
from good_rt.method.bank import FeatureBank
from good_rt.method.objective import OBJECTIVES
from good_rt.method.training import finetune
from good_rt.method.training_data import TrainingImages
from good_rt.models import Models
from good_rt.workflow.detector import build_detector, detector_for, open_classifier
from good_rt.workflow.evaluate import evaluate
from good_rt.workflow.generate import fill, generate
from good_rt.workflow.generator import Generator, generation_record, make_generator, pick_batch
from good_rt.workflow.train import decoded_images, train, training_images

MakeConfig = Callable[..., GenerationConfig]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*non-meta parameter in the checkpoint"
)  # here it is copied
LEVELS = 1
"""How far (of 255) a pixel may differ: inner products and faiss round differently."""


def models_on(device: torch.device, model_dir: Path, classifier_dir: Path) -> Models:
    """Models of their own, since a generator moves them to its device."""
    return Models(load_diffusion(model_dir), load_classifier(classifier_dir), device)


@pytest.mark.parametrize(
    "guidance",
    [
        GuidanceConfig(mu=0.3, sigma=0.05, n_mc=2, n_iter=2),
        GuidanceConfig(rho=0.2, mu=0.1, n_recur=2, band=(-1e3, 1e3)),
        GuidanceConfig(mu=0.3, step="raw", clip=0.5),
    ],
)
def test_guided_images(
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    generator: Generator,
    make_config: MakeConfig,
    guidance: GuidanceConfig,
) -> None:
    config = replace(make_config(6), guidance=guidance)
    expected = generator.images(config, [0, 1, 2]).astype(int)
    with second_device() as device:
        models = models_on(device, model_dir, classifier_dir)
        there = make_generator(models, IdData(id_dir), make_config())
        assert next(models.diffusion.network.parameters()).device == device
        assert models.classifier.device == device
        assert there.scales == generator.scales
        images = there.images(config, [0, 1, 2]).astype(int)
    assert np.abs(images - expected).max() <= LEVELS


def test_a_set_of_images(
    model_dir: Path, classifier_dir: Path, id_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = replace(make_config(4, batch=2), sampler=SamplerConfig(3, cfg=2.0))
    with second_device() as device:
        models = models_on(device, model_dir, classifier_dir)
        there = make_generator(models, IdData(id_dir), config)
        assert pick_batch(there, 16) in (8, 16)
        record = generation_record(models, config, there.gradients)
        generated = fill(there, config, tmp_path, record)
        assert len(generated.rows()) == 4
        images = from_uint8(generated.images())
        decoded = decoded_images(models.diffusion, images)
        assert decoded is not None
        assert decoded.device.type == "cpu" and decoded.shape == images.shape


@pytest.mark.parametrize("feature", ["mahalanobis", "relative_mahalanobis"])
def test_every_feature_discrepancy_guides(
    feature: FeatureDiscrepancyName,
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    make_config: MakeConfig,
) -> None:
    config = make_config(2, kind="feat", steps=2)
    config = replace(config, bank=replace(config.bank, feature=feature))
    here = make_generator(models_on(CPU, model_dir, classifier_dir), IdData(id_dir), config)
    with second_device() as device:
        models = models_on(device, model_dir, classifier_dir)
        there = make_generator(models, IdData(id_dir), config)
        found = there.images(config, [0, 1]).astype(int)
    expected, unguided = (
        here.images(config, [0, 1], guided=guided).astype(int) for guided in (True, False)
    )
    assert np.abs(found - expected).max() <= LEVELS < np.abs(expected - unguided).max()


@pytest.mark.parametrize("name", ["ldm", "dit", "sd1", "sdxl", "sd3", "flux"])
def test_every_kind_of_condition(
    name: str,
    folders: Callable[[str], Path],
    classifier_dir: Path,
    id_dir: Path,
    make_config: MakeConfig,
) -> None:
    config = replace(make_config(2, steps=2), guidance=GuidanceConfig(mu=0.0, rho=0.1))
    with second_device() as device:
        models = Models(load(folders, name), load_classifier(classifier_dir), device)
        there = make_generator(models, IdData(id_dir), config)
        assert len(there.images(config, [0, 1])) == 2


def test_neighbours_are_the_same_everywhere() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(500, 16, generator=draw), dim=1)
    features[100:110] = features[7]  # duplicates
    queries = torch.nn.functional.normalize(torch.randn(20, 16, generator=draw), dim=1)
    queries[3] = features[7]
    bank = FeatureBank(features)
    expected = bank.search(queries, 12)
    with second_device() as device:
        distances, rows = bank.search(queries.to(device), 12)
        assert distances.device == rows.device == device
        assert torch.equal(rows.cpu(), expected[1])
        torch.testing.assert_close(distances.cpu(), expected[0], rtol=1e-6, atol=1e-6)
        with pytest.raises(RuntimeError, match="two devices"):
            bank.features + queries.to(device)[:1]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training(classifier: Classifier, tmp_path: Path, objective: ObjectiveName) -> None:
    train, val = assets.load_images("train"), assets.load_images("held_out")
    assert train.labels is not None and val.labels is not None
    ood = from_uint8(assets.load_images("validation").images[:60])
    data = TrainingImages(
        from_uint8(train.images[:100]),
        torch.from_numpy(train.labels[:100]),
        from_uint8(val.images[:40]),
        torch.from_numpy(val.labels[:40]),
        ood=ood[:40],
        val_ood=ood[40:],
    )
    config = TrainConfig(
        steps=4, id_batch=8, ood_batch=4, objective=objective, evaluate_every=2,
        max_accuracy_drop=1.0,
    )  # fmt: skip
    expected = finetune(classifier, data, config)
    with second_device() as device:
        there = copy.deepcopy(classifier).to(device)
        found = finetune(there, data, config, tmp_path)
        assert found.classifier.device == device
        again = finetune(there, data, config, tmp_path)  # of the checkpoint
        assert again.history == found.history
        home = found.classifier.cpu().state_dict()
    for name, value in expected.classifier.state_dict().items():
        torch.testing.assert_close(home[name], value, rtol=1e-4, atol=1e-5)
    assert [step.val_accuracy for step in found.history] == [
        step.val_accuracy for step in expected.history
    ]


def test_a_detector(
    classifier: Classifier,
    id_dir: Path,
    generated_dirs: list[Path],
    detector_module: DetectorModule,
) -> None:
    with second_device() as device:
        there = copy.deepcopy(classifier).to(device)
        logits, features = predict(there, from_uint8(assets.load_images("test").images[:8]))
        assert logits.device.type == features.device.type == "cpu"
        found: Any = detector_for(there, IdData(id_dir), generated_dirs, detector_module.config)
        weights = detector_module.unified.combination.weights
        assert found.unified.combination.weights == pytest.approx(weights, abs=1e-3)
        images = torch.rand(4, 1, 32, 32)
        measured = zip(found(images.to(device))[1:5], detector_module(images)[1:5], strict=True)
        for values, expected in measured:  # every discrepancy and the score
            torch.testing.assert_close(values.cpu(), expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(
            found.p_values(np.zeros(2)), detector_module.p_values(np.zeros(2))
        )
        assert all(value.device.type == "cpu" for value in found.cpu().state_dict().values())


def test_the_steps_of_the_commands(
    model_dir: Path, classifier_dir: Path, id_dir: Path, generated_dirs: list[Path], tmp_path: Path,
    make_config: MakeConfig,
) -> None:  # fmt: skip
    """Generating, training, the detector and the evaluation, from files to files."""
    training = TrainConfig(
        steps=2, id_batch=8, ood_batch=4, evaluate_every=2, max_accuracy_drop=1.0
    )
    near = {"near": assets.load_images("near").images[:20]}
    detection = {}
    for device in (CPU, ELSEWHERE):
        out = tmp_path / device.type
        with second_device():
            models = models_on(device, model_dir, classifier_dir)
            config = make_config(2, batch=2, steps=2)
            written = generate(models, id_dir, out / "generated", config)
            assert models.classifier.device == device
            record = read_json(written.folder / "job.json")
            assert record.get("device") == {CPU: None, ELSEWHERE: "meta"}[device]

            train(models, id_dir, out / "trained", generated_dirs, config=training)
            images = training_images(models, IdData(id_dir), generated_dirs)
            with pytest.raises(
                GoodRtError, match="not those of the generated and unguided folders"
            ):
                train(models, id_dir, out / "trained", config=training, images=images)

            detector = DetectorConfig(k=3, alpha=0.1)
            trained, before = (
                open_classifier(path, generated_dirs, device)
                for path in (out / "trained" / "classifier", classifier_dir)
            )
            built = build_detector(trained, id_dir, out / "detector.onnx", generated_dirs, detector)
            assert built.module.classifier.device == device

            evaluation = evaluate(
                {"before": before, "trained": trained},
                id_dir,
                near,
                out / "evaluation",
                generated_dirs,
                detector,
            )
            detection[device] = [row.metrics.auroc for row in evaluation.rows]
    np.testing.assert_allclose(detection[ELSEWHERE], detection[CPU], atol=0.01)


def test_a_graph_makes_its_constants_where_its_weights_are() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            places = torch.arange(4, device=images.device, dtype=torch.float32)
            return self.head(self.first(images.mean(dim=(1, 2))) + places)

    images = (torch.randn(2, 1, 4, 4),)
    free = ({0: torch.export.Dim.DYNAMIC},)
    network = graph_network(torch.export.export(Positions(), images, dynamic_shapes=free), "it")
    expected = network.forward_features(*images)
    network.to("meta")
    assert network.forward_features(images[0].to("meta")).device.type == "meta"
    network.to_empty(device="cpu")
    assert network.forward_features(*images).shape == expected.shape


@pytest.mark.parametrize("name", ["cuda:99", "meta", "gpu", "cuda:x"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(GoodRtError, match=r"sees .* here; leave --device out|there is no device"):
        use_device(name)
    assert use_device("cpu") == torch.device("cpu")
