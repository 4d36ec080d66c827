"""What a GPU computes, against the CPU: run where there is one (`benchmarks/gpu_check.sh`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from good_rt.classifier import Classifier, predict
from good_rt.config.job import ONNX, Runtime
from good_rt.config.settings import TrainConfig
from good_rt.data.id_data import from_uint8
from good_rt.demo import assets
from good_rt.engines.tensorrt import load_library, present_architecture
from good_rt.environment import use_device
from good_rt.errors import GoodRtError
from good_rt.method.guidance import value_and_gradient
from good_rt.method.training import TrainingImages, finetune
from good_rt.workflow.generation import GenerationJob
from good_rt.workflow.steps import open_generator

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
LEVELS = 3
"""How far (of 255) a pixel of a GPU's image may be from the CPU's in a few steps, which unguided
hardly amplify."""


@pytest.mark.parametrize(
    ("engine", "gradients"),
    [("torch", False), ("onnx", False), ("onnx", True), ("tensorrt", False), ("tensorrt", True)],
)
def test_images_and_gradients(
    engine: str,
    gradients: bool,
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    tmp_path: Path,
    make_job: Callable[..., GenerationJob],
) -> None:
    if engine == "tensorrt":
        try:
            load_library(architecture=present_architecture())
        except GoodRtError as error:
            pytest.skip(str(error))
    job, indices = make_job(4, batch=4, guidance="both"), [0, 1, 2, 3]
    generators = {
        device: open_generator(
            model_dir,
            classifier_dir,
            id_dir,
            job,
            engines=None if engine == "torch" else tmp_path / "engines",
            gradients=gradients,
            steps=3,
            cfg_scale=2.0,
            device=use_device(device),
            runtime=Runtime("tensorrt") if engine == "tensorrt" and device == "cuda" else ONNX,
        )[0]
        for device in ("cpu", "cuda")
    }
    unguided = [
        found.images(job, indices, guided=False).astype(int) for found in generators.values()
    ]
    assert np.abs(unguided[0] - unguided[1]).max() <= LEVELS
    again = [generators["cuda"].images(job, indices) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    latents = torch.randn(4, *generators["cpu"].shape, generator=torch.Generator().manual_seed(0))
    found = [
        value_and_gradient(
            one.guidance(job), one.decode_with_gradient, latents.to(one.device), 0.0, None
        )
        for one in generators.values()
    ]
    torch.testing.assert_close(found[1][0].cpu(), found[0][0], rtol=1e-3, atol=1e-3)
    likeness = torch.cosine_similarity(found[1][1].cpu().flatten(1), found[0][1].flatten(1))
    assert likeness.min() > 0.999


def test_half_precision_on_onnx_runtime(
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    tmp_path: Path,
    make_job: Callable[..., GenerationJob],
) -> None:
    job, indices = make_job(4, batch=4, guidance="none"), [0, 1, 2, 3]
    exact, half = (
        open_generator(
            model_dir,
            classifier_dir,
            id_dir,
            job,
            engines=tmp_path / "engines",
            gradients=False,
            steps=3,
            cfg_scale=2.0,
            device=use_device("cuda"),
            runtime=runtime,
        )[0]
        .images(job, indices)
        .astype(int)
        for runtime in (ONNX, Runtime("onnx", "fp16"))
    )
    assert 0 < np.abs(half - exact).max() <= 24


def test_training_and_features(classifier: Classifier) -> None:
    train, val = assets.load_images("train"), assets.load_images("held_out")
    assert train.labels is not None and val.labels is not None
    data = TrainingImages(
        from_uint8(train.images[:100]),
        torch.from_numpy(train.labels[:100]),
        from_uint8(val.images[:40]),
        torch.from_numpy(val.labels[:40]),
    )
    there = copy.deepcopy(classifier).to(use_device("cuda"))
    for found, expected in zip(
        predict(there, data.images), predict(classifier, data.images), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    config = TrainConfig(steps=4, id_batch=8, evaluate_every=2, max_accuracy_drop=1.0)
    on_gpu, on_cpu = (finetune(model, data, config).history for model in (there, classifier))
    np.testing.assert_allclose(
        [step.ce for step in on_gpu], [step.ce for step in on_cpu], rtol=1e-2
    )
