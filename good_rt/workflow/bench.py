"""The benchmark of the sampler: variants timed in turn, and where a guided step's time goes.

A noisy machine slows every variant down alike, so ratios of neighbouring runs are meaningful where
seconds are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from good_rt.config.settings import BackendConfig, GenerationConfig, Precision
from good_rt.data.id_data import IdData
from good_rt.engines.cpu import kernel_library
from good_rt.engines.threads import cores
from good_rt.environment import describe
from good_rt.method.guidance import value_and_gradient
from good_rt.models import Models
from good_rt.progress import SILENT, Progress
from good_rt.workflow.generate import open_generator
from good_rt.workflow.generator import Generator

Work = Callable[[], object]
REST = 0.01
"""PyTorch's threads were seen to spin for 7 ms after their work, on cores that another's work then
lacks."""


def bench_sampler(
    models: Models,
    id_data: IdData | Path | str,
    config: GenerationConfig,
    engine_folder: Path,
    batches: Sequence[int],
    repeats: int = 5,
    plans: Sequence[Precision] = (),
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Seconds of the sampler's variants by batch size, and of the parts of a guided step.

    Args:
        models: Diffusion model and classifier.
        id_data: In-distribution images, for the discrepancies.
        config: What is sampled; count, batch and backend are the benchmark's own.
        engine_folder: Folder of the exported engines.
        batches: Batch sizes.
        repeats: Timed runs of each variant.
        plans: Precisions of TensorRT plans, a further variant each.
        progress: Hears of every run.
    """
    id_data, largest = IdData.of(id_data), max(batches)
    config = replace(config, count=largest, batch=largest)
    backends = {
        **{
            f"TensorRT {precision} end to end": BackendConfig("tensorrt", precision, "engine")
            for precision in plans
        },
        "engines end to end": BackendConfig("onnx", gradients="engine"),
        "engines, PyTorch gradients": BackendConfig("onnx", gradients="torch"),
        "only PyTorch": BackendConfig("torch"),
    }
    generators = {
        name: open_generator(
            models, id_data, replace(config, backend=backend), engine_folder, progress
        )
        for name, backend in backends.items()
    }
    machine = describe(models.device)
    speed: dict[str, Any] = {
        "machine": {**machine, "cores": len(cores()), "kernels": kernel_library() is not None},
        "steps": config.sampler.steps,
        "mu": config.guidance.mu,
        "rho": config.guidance.rho,
        "seconds": {},
        "parts": {},
    }
    for batch in batches:
        variants = _variants(generators, config, batch)
        runs = (repeats + 1) * len(variants)
        with progress.task(f"sampling batches of {batch}", runs) as advance:
            speed["seconds"][str(batch)] = side_by_side(
                variants, repeats, partial(_advance_one, advance)
            )
        with progress.task(f"timing a step's parts, batches of {batch}"):
            speed["parts"][str(batch)] = {
                name: {
                    part: float(np.median(seconds))
                    for part, seconds in side_by_side(
                        step_parts(generator, config, batch), repeats
                    ).items()
                }
                for name, generator in generators.items()
            }
    return speed


def _advance_one(advance: Callable[[int], None], name: str) -> None:
    advance(1)


def _variants(
    generators: Mapping[str, Generator], config: GenerationConfig, batch: int
) -> dict[str, Work]:
    indices = list(range(batch))
    unguided = generators["engines end to end"]
    return {
        "unguided": partial(unguided.images, config, indices, guided=False),
        **{
            name: partial(generator.images, config, indices)
            for name, generator in generators.items()
        },
    }


def side_by_side(
    variants: Mapping[str, Work],
    repeats: int = 5,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds of every variant, ``repeats`` times each, in turn, after one run of each to warm up.

    Before each run there is a pause of `REST` seconds, in which the threads of the previous run
    stop spinning.

    Args:
        variants: What is timed, by name.
        repeats: Timed runs of each.
        on_run: Called with the variant's name after each run.
    """
    for name, run in variants.items():
        run()
        on_run(name)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            time.sleep(REST)
            _settle()
            began = time.perf_counter()
            run()
            _settle()
            seconds[name].append(time.perf_counter() - began)
            on_run(name)
    return seconds


def _settle() -> None:
    """Waits for a GPU that is still at work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of slow / fast, whose runs of one round were neighbours in time.

    Args:
        slow: Seconds of one variant.
        fast: Seconds of another.
    """
    return float(np.median(np.divide(slow, fast)))


def step_parts(generator: Generator, config: GenerationConfig, batch: int) -> dict[str, Work]:
    """The parts of one guided step by name, each as a function to time.

    "gradient" is all of ∇ℓ, decoder and classifier forward and backward; "network and back" is that
    of variance guidance.

    Args:
        generator: The models.
        config: Settings of guidance and discrepancies.
        batch: Batch size.
    """
    indices = list(range(batch))
    labels = generator.rows(indices)
    latents = torch.randn(batch, *generator.shape, generator=torch.Generator().manual_seed(0)).to(
        generator.device
    )
    guidance = generator.guidance(config)
    with torch.no_grad():
        images = generator.decode(latents)
        logits, features = generator.classifier(images)

    def without_gradient(run: Work) -> Work:
        def timed() -> object:
            with torch.no_grad():
                return run()

        return timed

    def through_network() -> Tensor:
        x0, pull_back = generator.denoiser.vjp(latents, 1.0, labels)
        return pull_back(x0)

    return {
        "network": lambda: generator.denoiser(latents, 1.0, labels),
        "network and back": through_network,
        "decoder": without_gradient(lambda: generator.decode(latents)),
        "classifier": without_gradient(lambda: generator.classifier(images)),
        "feature discrepancy": without_gradient(lambda: generator.feature(logits, features)),
        "gradient": lambda: value_and_gradient(
            guidance, generator.decode_with_gradient, latents, 0.0, None
        ),
    }
