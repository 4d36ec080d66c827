"""What a GPU computes, against the CPU: run where there is one (`benchmarks/gpu_check.sh`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from good_rt.classifier import Classifier, predict
from good_rt.cli.workflow import open_generator, run_job
from good_rt.data import from_uint8
from good_rt.demo import assets
from good_rt.generation import GenerationJob
from good_rt.training import TrainConfig, TrainingImages, finetune

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
LEVELS = 3
"""How far (of 255) a pixel of a GPU's image may be from the CPU's in a few steps, which unguided hardly amplify."""


@pytest.mark.parametrize(
    ("engine", "gradients"),
    [("torch", False), ("onnx", False), ("onnx", True), ("tensorrt", False), ("tensorrt", True)],
)
def test_images(
    engine: str, gradients: bool, model_dir: Path, classifier_dir: Path, id_dir: Path, tmp_path: Path,
    make_job: Callable[..., GenerationJob],
) -> None:  # fmt: skip
    if engine == "tensorrt":
        pytest.importorskip("tensorrt_rtx_bindings")
    job = make_job(4, batch=4)

    def images(device: str, guidance: str) -> np.ndarray:
        engines = None if engine == "torch" else tmp_path / "engines"
        plans = "fp32" if engine == "tensorrt" and device != "cpu" else None
        generator, describe = open_generator(
            model_dir, classifier_dir, id_dir, job, engines=engines, gradients=gradients, steps=3, cfg_scale=2.0,
            device=device, plans=plans,
        )  # fmt: skip
        kind = replace(job, guidance=guidance)
        return run_job(generator, describe, kind, tmp_path / device / guidance, twins=False).images().astype(int)

    assert np.abs(images("cuda", "none") - images("cpu", "none")).max() <= LEVELS
    guided = np.abs(images("cuda", "img") - images("cpu", "img"))
    assert np.median(guided) <= LEVELS


def test_training_and_features(classifier: Classifier) -> None:
    train, val = assets.load_images("train"), assets.load_images("held_out")
    assert train.labels is not None and val.labels is not None
    data = TrainingImages(
        from_uint8(train.images[:100]), torch.from_numpy(train.labels[:100]), from_uint8(val.images[:40]),
        torch.from_numpy(val.labels[:40]),
    )  # fmt: skip
    there = copy.deepcopy(classifier).to("cuda")
    for found, expected in zip(predict(there, data.images), predict(classifier, data.images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    config = TrainConfig(steps=4, id_batch=8, evaluate_every=2, max_accuracy_drop=1.0)
    on_gpu, on_cpu = (finetune(model, data, config).history for model in (there, classifier))
    np.testing.assert_allclose([step.ce for step in on_gpu], [step.ce for step in on_cpu], rtol=1e-2)
