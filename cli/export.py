"""`good-rt export`: UNet, VAE and classifier to ONNX engines, checked against PyTorch, and to
TensorRT plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from good_rt.cli.options import (
    PATH,
    classifier_option,
    emit_json,
    gradient_decoder_option,
    id_option,
    image_size_option,
    json_option,
    model_option,
    out_option,
    progress,
)

EPILOG = """\b
Examples:
  good-rt export                                            the demo's models to ./good-rt-engines
  good-rt export --model sd/ --classifier clf/ -o engines/
  good-rt export --model sd/ --classifier clf/ --gradient-decoder taesd/
  good-rt export --model sd/ --classifier clf/ --parity-batch 1   where 16 at once is too much memory
  good-rt export --relative 1e-4 --absolute 1e-5 --force    with tighter tolerances
  good-rt export --to tensorrt --arch sm89 --arch sm120 --profile 1/16/64
  good-rt export --to tensorrt --precision fp16 --no-gradients     half precision is not for gradients
  good-rt export --to tensorrt --onnx detector.onnx -o .    a plan of any ONNX file
"""


class Profile(click.ParamType[tuple[str, tuple[int, int, int]]]):
    """[NAME=]MIN/OPT/MAX; without a name, of the batch."""

    name = "[name=]min/opt/max"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, int, int]]:
        name, _, sizes = str(value).rpartition("=")
        try:
            low, best, high = (int(size) for size in sizes.split("/"))
        except ValueError:
            self.fail(
                f"{value!r} is not of the form [NAME=]MIN/OPT/MAX, such as 1/8/32 or "
                "height=32/64/128",
                param,
                ctx,
            )
        return name or "batch", (low, best, high)


@click.command(epilog=EPILOG)
@model_option
@classifier_option
@id_option
@out_option("good-rt-engines", "Folder of the engines; replaced as a whole.")
@click.option(
    "--opset", type=click.IntRange(18, 23), default=20, show_default=True, help="ONNX operator set."
)
@click.option(
    "--relative",
    type=click.FloatRange(0),
    default=1e-3,
    show_default=True,
    help="Relative tolerance.",
)
@click.option(
    "--absolute",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="Absolute tolerance.",
)
@click.option(
    "--parity-batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 2, 5, 16),
    show_default=True,
    help="Batch size to check at; give it again for more, and small ones where memory is short.",
)
@click.option(
    "--gradients/--no-gradients",
    default=True,
    show_default=True,
    help="Also export the graphs that guidance can differentiate with.",
)
@gradient_decoder_option
@image_size_option
@click.option("--force", is_flag=True, help="Export and build again even where nothing changed.")
@click.option(
    "--to",
    type=click.Choice(["onnx", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="tensorrt: also build a TensorRT plan of every graph, beside it. The options below are "
    "for that.",
)
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    metavar="SM",
    help="GPU architecture to build for, such as sm89; several go into one plan. [default: sm80 "
    "and all newer that "
    "TensorRT-RTX builds for; with TensorRT the GPU that is there]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of weights and activations; norms, softmax and sums, inputs and outputs stay fp32.",
)
@click.option(
    "--profile",
    "profiles",
    type=Profile(),
    multiple=True,
    help="Least, usual and largest batch, or length of another dynamic dimension.  [default: "
    "1/8/32]",
)
@click.option(
    "--library",
    help="tensorrt-rtx or tensorrt (data-centre GPUs).  [default: whichever is installed]",
)
@click.option("--tf32", is_flag=True, help="Let fp32 be computed with mantissas of 10 bits.")
@click.option("--optimisation-level", type=click.IntRange(0, 5), help="Of TensorRT's builder.")
@click.option(
    "--timing-cache",
    type=PATH,
    help="File of TensorRT's kernel timings.  [default: beside the plans]",
)
@click.option(
    "--onnx",
    "graph",
    type=PATH,
    help="Build the plan of this ONNX file alone, into --out, which is kept.",
)
@json_option
def export(
    model: Path,
    classifier: Path,
    id_data: Path,
    out: Path,
    opset: int,
    relative: float,
    absolute: float,
    batches: tuple[int, ...],
    gradients: bool,
    gradient_decoder: Path | None,
    image_size: int | None,
    force: bool,
    to: str,
    architectures: tuple[str, ...],
    precision: str,
    profiles: tuple[tuple[str, tuple[int, int, int]], ...],
    library: str | None,
    tf32: bool,
    optimisation_level: int | None,
    timing_cache: Path | None,
    graph: Path | None,
    as_json: bool,
) -> None:
    """Export UNet, VAE and classifier to ONNX, with a dynamic batch, and graphs that also compute
    gradients.

    Every graph is run in ONNX Runtime against PyTorch on real and random inputs at several batch
    sizes. When one is off by more than the tolerance, nothing is written and the exit code is 2. An
    unchanged model is not exported again, and an unchanged plan not built again.
    """
    from good_rt.cli.tables import print_parity, print_plans

    if to == "onnx":
        plan_options = {
            "--arch": architectures,
            "--profile": profiles,
            "--library": library,
            "--tf32": tf32,
            "--onnx": graph,
            "--optimisation-level": optimisation_level,
            "--timing-cache": timing_cache,
        }
        given = [name for name, value in plan_options.items() if value not in (None, False, ())]
        if given or precision != "fp32":
            raise click.UsageError(f"{[*given, '--precision'][0]} is for plans: add --to tensorrt")
    from good_rt.workflow.steps import run_export, run_plans

    plans = None
    with progress(quiet=as_json) as bars:
        if to == "tensorrt":
            from good_rt.export.tensorrt import BATCHES, PlanConfig, check_config

            config = PlanConfig(
                architectures=tuple(name.lower() for name in architectures), precision=precision,
                profile={"batch": BATCHES, **dict(profiles)}, library=library, tf32=tf32,
                optimisation_level=optimisation_level, timing_cache=timing_cache,
            )  # fmt: skip
            check_config(config)  # before the work of exporting
        if graph is None:
            manifest, done = run_export(
                model,
                classifier,
                id_data,
                out,
                bars,
                opset=opset,
                relative=relative,
                absolute=absolute,
                batches=batches,
                force=force,
                gradients=gradients,
                gradient_decoder=gradient_decoder,
                image_size=image_size,
                on_no_rule=lambda error: click.echo(
                    f"warning: no engines for gradients are made: {error}", err=True
                ),
            )
        if to == "tensorrt":
            plans = run_plans(out, config, bars, graph=graph, force=force)
    found: dict[str, Any] = {"folder": str(out)}
    if graph is None:
        found = {"exported": done, **found, **manifest.to_json()}
    if plans is not None:
        found["plans"] = {
            name: {"built": built, **info.to_json()} for name, (info, built) in plans.items()
        }
    if as_json:
        emit_json(found)
        return
    if graph is None:
        print_parity(manifest)
        click.echo(f"{'exported to' if done else 'unchanged, nothing to do:'} {out}")
    if plans is not None:
        print_plans(plans)
