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
from good_rt.config.settings import DetectorConfig, GuidanceConfig, TrainConfig
from good_rt.data.id_data import IdData, from_uint8
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule
from good_rt.diffusion import load_diffusion
from good_rt.environment import CPU, use_device
from good_rt.errors import GoodRtError
from good_rt.method.bank import FeatureBank
from good_rt.method.training import TrainingImages, finetune
from good_rt.workflow import steps as workflow
from good_rt.workflow.generation import (
    GenerationJob,
    Generator,
    generate,
    make_generator,
    pick_batch,
)
from good_rt.workflow.pipeline import decoded_images, detector_for

Job = Callable[..., GenerationJob]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*non-meta parameter in the checkpoint"
)  # here it is copied
LEVELS = 1
"""How far (of 255) a pixel may differ: inner products and faiss round differently."""


@pytest.mark.parametrize(
    "config",
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
    make_job: Job,
    config: GuidanceConfig,
) -> None:
    job = replace(make_job(6), config=config)
    expected = generator.images(job, [0, 1, 2]).astype(int)
    with second_device() as device:
        models = load_diffusion(model_dir), load_classifier(classifier_dir)
        there = make_generator(*models, IdData(id_dir), make_job(), steps=3, device=device)
        assert next(models[0].network.parameters()).device == device == models[1].device
        assert there.scales == generator.scales
        found = there.images(job, [0, 1, 2]).astype(int)
    assert np.abs(found - expected).max() <= LEVELS


def test_a_set_of_images(
    model_dir: Path, classifier_dir: Path, id_dir: Path, make_job: Job, tmp_path: Path
) -> None:
    job = make_job(4, batch=2)
    with second_device() as device:
        models = load_diffusion(model_dir), load_classifier(classifier_dir)
        there = make_generator(*models, IdData(id_dir), job, steps=3, cfg_scale=2.0, device=device)
        assert pick_batch(there, 16) in (8, 16)
        made = generate(there, job, tmp_path)
        assert len(made.rows()) == 4
        decoded = decoded_images(models[0], made_images := from_uint8(made.images()))
        assert (
            decoded is not None
            and decoded.device.type == "cpu"
            and decoded.shape == made_images.shape
        )


@pytest.mark.parametrize("name", ["ldm", "dit", "sd1", "sdxl", "sd3", "flux"])
def test_every_kind_of_condition(
    name: str, folders: Callable[[str], Path], classifier_dir: Path, id_dir: Path, make_job: Job
) -> None:
    with second_device() as device:
        model, classifier = load(folders, name), load_classifier(classifier_dir)
        there = make_generator(
            model, classifier, IdData(id_dir), make_job(), steps=2, device=device
        )
        assert (
            there.images(replace(make_job(2), config=GuidanceConfig(mu=0.0, rho=0.1)), [0, 1]).shape[0] == 2
        )


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


def test_training(classifier: Classifier, tmp_path: Path) -> None:
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
    config = TrainConfig(steps=4, id_batch=8, ood_batch=4, evaluate_every=2, max_accuracy_drop=1.0)
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
        assert found.unified.pi == pytest.approx(detector_module.unified.pi, abs=1e-3)
        images = torch.rand(4, 1, 32, 32)
        energy, expected = found(images.to(device))[1], detector_module(images)[1]
        torch.testing.assert_close(energy.cpu(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(
            found.p_values(np.zeros(2)), detector_module.p_values(np.zeros(2))
        )
        assert all(value.device.type == "cpu" for value in found.cpu().state_dict().values())


def test_the_steps_of_the_commands(
    model_dir: Path, classifier_dir: Path, id_dir: Path, generated_dirs: list[Path], tmp_path: Path,
    make_job: Job,
) -> None:  # fmt: skip
    """Generating, training, the detector and the evaluation, from files to files."""
    config = TrainConfig(steps=2, id_batch=8, ood_batch=4, evaluate_every=2, max_accuracy_drop=1.0)
    near = {"near": assets.load_images("near").images[:20]}
    found = {}
    for device in (CPU, ELSEWHERE):
        out = tmp_path / device.type
        with second_device():
            generator, describe = workflow.open_generator(
                model_dir,
                classifier_dir,
                id_dir,
                make_job(),
                engines=None,
                gradients=False,
                steps=2,
                cfg_scale=1.0,
                device=device,
            )
            assert generator.device == device
            assert describe.get("device") == {CPU: None, ELSEWHERE: "meta"}[device]
            workflow.run_train(
                classifier_dir,
                model_dir,
                id_dir,
                generated_dirs,
                out / "trained",
                config,
                device=device,
            )
            data = workflow.open_training(
                classifier_dir, model_dir, id_dir, generated_dirs, device=device
            )
            with pytest.raises(
                GoodRtError, match="not those of the generated and unguided folders"
            ):
                workflow.run_train(
                    classifier_dir, model_dir, id_dir, (), out / "trained", config, data=data
                )
            trained = out / "trained" / "classifier"
            detector = DetectorConfig(k=3, alpha=0.1)
            built, _ = workflow.run_build(
                trained, id_dir, generated_dirs, out / "detector.onnx", detector, device=device
            )
            assert built.classifier.device == device
            models = {"before": classifier_dir, "trained": trained}
            evaluation = workflow.run_evaluate(
                models, id_dir, generated_dirs, near, detector, out / "evaluation", device=device
            )
            found[device] = [row.metrics.auroc for row in evaluation.rows]
    np.testing.assert_allclose(found[ELSEWHERE], found[CPU], atol=0.01)


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
