"""`good-rt bench`: how fast the sampler is on this machine, with engines and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from good_rt.cli.options import (
    device_option,
    emit_json,
    engine_folder_option,
    id_option,
    json_option,
)
from good_rt.cli.settings import image_limit_options, takes
from good_rt.config.settings import GenerationConfig
from good_rt.errors import GoodRtError
from good_rt.models import ModelSpec
from good_rt.progress import shown_progress

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
@takes(ModelSpec, "models")
@id_option
@image_limit_options
@takes(GenerationConfig, "config", without=("count", "batch", "backend", "twins"))
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 8, 32),
    show_default=True,
    help="Batch size; may be repeated.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Timed runs of each variant.",
)
@engine_folder_option
@device_option
@click.option(
    "--tensorrt",
    "plans",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    multiple=True,
    help="Also time TensorRT plans of this precision, on a GPU; may be repeated.",
)
@json_option
def sampler(
    models: ModelSpec,
    id_data: Path,
    config: GenerationConfig,
    device: str,
    as_json: bool,
    **arms: Any,
) -> None:
    """Time the sampler with and without engines.

    The variants are: without guidance, engines end to end, engines with PyTorch's gradients, and
    only PyTorch. They sample the same seeds in turn, so that their ratios are meaningful even on a
    busy machine.
    """
    if config.kind == "none":
        raise GoodRtError(
            "--guidance none has nothing to compare; choose img, feat or both (the unguided "
            "sampler is always timed)"
        )
    if arms["plans"] and device == "cpu":
        raise GoodRtError("--tensorrt needs --device cuda")
    models.check_paths()
    from good_rt.cli.tables import print_speed
    from good_rt.workflow.bench import bench_sampler

    with shown_progress(quiet=as_json) as progress:
        speed = bench_sampler(models.load(device), id_data, config, progress=progress, **arms)
    if as_json:
        emit_json(speed)
        return
    print_speed(speed)
