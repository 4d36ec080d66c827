"""`good-rt bench`: how fast the sampler is on this machine, with engines and without, side by
side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from good_rt.cli.options import (
    classifier_option,
    device_option,
    emit_json,
    engines_option,
    gradient_decoder_option,
    id_option,
    json_option,
    model_option,
    progress,
)

EPILOG = """\b
Examples:
  good-rt bench sampler                    the demo's models, batches of 1, 8 and 32
  good-rt bench sampler --batch 16 --rho 0.1 --json
  good-rt bench sampler --device cuda --tensorrt fp32 --tensorrt fp16
"""


@click.group(epilog=EPILOG)
def bench() -> None:
    """Measure speed on this machine."""


@bench.command(epilog=EPILOG)
@model_option
@classifier_option
@id_option
@engines_option
@gradient_decoder_option
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 8, 32),
    show_default=True,
    help="Batch size; may be given several times.",
)
@click.option("--mu", type=float, default=0.1, show_default=True, help="Strength of mean guidance.")
@click.option(
    "--rho", type=float, default=0.0, show_default=True, help="Strength of variance guidance."
)
@click.option(
    "--steps", type=click.IntRange(1), default=10, show_default=True, help="Sampler steps."
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Timed runs of each variant.",
)
@device_option
@click.option(
    "--tensorrt",
    "plans",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    multiple=True,
    help="Time TensorRT plans of this precision as well, on a GPU; may be given several times.",
)
@json_option
def sampler(
    model: Path,
    classifier: Path,
    id_data: Path,
    engines: Path,
    gradient_decoder: Path | None,
    batches: tuple[int, ...],
    mu: float,
    rho: float,
    steps: int,
    repeats: int,
    device: str,
    plans: tuple[Any, ...],
    as_json: bool,
) -> None:
    """Time the guided sampler: unguided, with PyTorch's gradients, with engines throughout, and in
    PyTorch alone.

    All variants sample the same seeds in turn, so that their ratios mean something on a noisy
    machine.
    """
    from good_rt.cli.tables import print_speed
    from good_rt.environment import use_device
    from good_rt.errors import GoodRtError
    from good_rt.method.guidance import GuidanceConfig
    from good_rt.workflow.steps import run_sampler_bench

    place = use_device(device)
    config = GuidanceConfig(mu=mu, rho=rho)
    if not config.active:
        raise GoodRtError("--mu and --rho are both 0, so nothing is guided; set one")
    if plans and place.type == "cpu":
        raise GoodRtError("--tensorrt needs --device cuda")
    with progress(quiet=as_json) as bars:
        speed = run_sampler_bench(
            model,
            classifier,
            id_data,
            engines,
            config,
            batches,
            steps,
            repeats,
            bars,
            gradient_decoder,
            place,
            plans,
        )
    if as_json:
        emit_json(speed)
        return
    print_speed(speed)
