"""What a GPU computes, against the CPU: run where there is one (`benchmarks/gpu_check.sh`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from good_rt.classifier import Classifier, load_classifier, predict
from good_rt.config.settings import (
    BackendConfig,
    GenerationConfig,
    Precision,
    SamplerConfig,
    TrainConfig,
)
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.diffusion import load_diffusion
from good_rt.engines.tensorrt import load_library, present_architecture
from good_rt.environment import use_device
from good_rt.errors import GoodRtError
from good_rt.method.guidance import value_and_gradient
from good_rt.method.training import finetune
from good_rt.method.training_data import TrainingImages
from good_rt.models import Models
from good_rt.workflow.generate import open_generator

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
LEVELS = 3
"""How far (of 255) a pixel of a GPU's image may be from the CPU's in a few steps, which unguided
hardly amplify."""


@pytest.mark.parametrize(
    "backend",
    [
        BackendConfig("torch"),
        BackendConfig("onnx", gradients="torch"),
        BackendConfig("onnx", gradients="engine"),
        BackendConfig("tensorrt", gradients="torch"),
        BackendConfig("tensorrt", gradients="engine"),
    ],
    ids=lambda backend: f"{backend.engine}-{backend.gradients}",
)
def test_images_and_gradients(
    backend: BackendConfig,
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    tmp_path: Path,
    make_config: Callable[..., GenerationConfig],
) -> None:
    if backend.engine == "tensorrt":
        try:
            load_library(architecture=present_architecture())
        except GoodRtError as error:
            pytest.skip(str(error))
    on_gpu = replace(
        make_config(4, batch=4, kind="both"), sampler=SamplerConfig(3, cfg=2.0), backend=backend
    )
    on_cpu = on_gpu
    if backend.engine == "tensorrt":
        on_cpu = replace(on_gpu, backend=replace(backend, engine="onnx"))
    indices = [0, 1, 2, 3]
    generators = {
        device: open_generator(
            models_on(use_device(device), model_dir, classifier_dir),
            IdData(id_dir),
            config,
            tmp_path / "engines",
        )
        for device, config in (("cpu", on_cpu), ("cuda", on_gpu))
    }
    unguided = [
        one.images(on_gpu, indices, guided=False).astype(int) for one in generators.values()
    ]
    assert np.abs(unguided[0] - unguided[1]).max() <= LEVELS
    again = [generators["cuda"].images(on_gpu, indices) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    latents = torch.randn(4, *generators["cpu"].shape, generator=torch.Generator().manual_seed(0))
    (value, gradient), (gpu_value, gpu_gradient) = (
        value_and_gradient(
            one.guidance(on_gpu), one.decode_with_gradient, latents.to(one.device), 0.0, None
        )
        for one in generators.values()
    )
    torch.testing.assert_close(gpu_value.cpu(), value, rtol=1e-3, atol=1e-3)
    similarity = torch.cosine_similarity(gpu_gradient.cpu().flatten(1), gradient.flatten(1))
    assert similarity.min() > 0.999


def test_half_precision_on_onnx_runtime(
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    tmp_path: Path,
    make_config: Callable[..., GenerationConfig],
) -> None:
    models = models_on(use_device("cuda"), model_dir, classifier_dir)
    config = replace(make_config(4, batch=4, kind="none"), sampler=SamplerConfig(3, cfg=2.0))

    def images(precision: Precision) -> np.ndarray:  # type: ignore[type-arg]
        backend = BackendConfig("onnx", precision, "torch")
        generator = open_generator(
            models, IdData(id_dir), replace(config, backend=backend), tmp_path / "engines"
        )
        return generator.images(config, [0, 1, 2, 3]).astype(int)

    assert 0 < np.abs(images("fp16") - images("fp32")).max() <= 24


def models_on(device: torch.device, model_dir: Path, classifier_dir: Path) -> Models:
    """Models of their own, since a generator moves them to its device."""
    return Models(load_diffusion(model_dir), load_classifier(classifier_dir), device)


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
