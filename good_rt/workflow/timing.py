"""How fast sampling is: variants of one piece of work timed side by side, and where a guided step's
time goes.

A noisy machine is as unkind to each variant, so ratios of neighbouring runs mean something where
seconds do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from good_rt.method.guidance import value_and_gradient
from good_rt.workflow.generation import GenerationJob, Generator

Work = Callable[[], object]
REST = 0.01
"""PyTorch's threads were seen to spin for 7 ms after their work, on cores that another's work then
lacks."""


def side_by_side(
    variants: Mapping[str, Work],
    repeats: int = 5,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds of every variant, ``repeats`` times each, in turn; each runs once before that to warm
    up.

    Before each run there is a rest of `REST` seconds, in which the threads of the one before stop
    to spin.
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
    """Median over the rounds of slow / fast, each round's two runs having been neighbours in
    time."""
    return float(np.median(np.divide(slow, fast)))


def step_parts(generator: Generator, job: GenerationJob, batch: int) -> dict[str, Work]:
    """The parts of one guided step at this batch size, each as something to time.

    "gradient" is of ∇ℓ as a whole, decoder and classifier forward and backward; "UNet and back" is
    variance guidance's.
    """
    indices = list(range(batch))
    labels = generator.rows(indices)
    latents = torch.randn(batch, *generator.shape, generator=torch.Generator().manual_seed(0)).to(
        generator.device
    )
    guidance = generator.guidance(job)
    with torch.no_grad():
        images = generator.decode(latents)
        _, features = generator.classifier(images)

    def without_gradient(run: Work) -> Work:
        def timed() -> object:
            with torch.no_grad():
                return run()

        return timed

    def through_unet() -> Tensor:
        x0, pull_back = generator.denoiser.vjp(latents, 1.0, labels)
        return pull_back(x0)

    return {
        "UNet": lambda: generator.denoiser(latents, 1.0, labels),
        "UNet and back": through_unet,
        "decoder": without_gradient(lambda: generator.decode(latents)),
        "classifier": without_gradient(lambda: generator.classifier(images)),
        "k-NN": without_gradient(
            lambda: generator.bank.distance(features, job.k, approximate=generator.fused is None)
        ),
        "gradient": lambda: value_and_gradient(
            guidance, generator.decode_with_gradient, latents, 0.0, None
        ),
    }
