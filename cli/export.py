"""`good-rt export`: both models to ONNX engines, checked against PyTorch, and to TensorRT plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from good_rt.cli.options import PATH, emit_json, id_option, json_option, out_option
from good_rt.cli.settings import image_limit_options, takes
from good_rt.config.settings import ENGINE_FOLDER, BankConfig, ExportConfig
from good_rt.errors import GoodRtError
from good_rt.models import ModelSpec
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt export                                            the demo's models to ./good-rt-engines
  good-rt export --model sd/ --classifier clf/ -o engines/
  good-rt export --model sd/ --classifier clf/ --gradient-decoder taesd/
  good-rt export --model sd/ --classifier clf/ --parity-batch 1   if memory is short
  good-rt export --relative 1e-4 --absolute 1e-5 --force    with tighter tolerances
  good-rt export --to tensorrt --arch sm89 --arch sm120 --profile 1/16/64
  good-rt export --to tensorrt --precision fp16 --no-vjp    gradients need fp32
  good-rt export --to tensorrt --onnx detector.onnx -o .    a plan of any ONNX file
"""


class Profile(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
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


def plan_options(command: Any) -> Any:
    """The options for TensorRT plans, passed on by name."""
    for option in reversed(
        (
            click.option(
                "--arch",
                "architectures",
                multiple=True,
                metavar="SM",
                help="GPU architecture to build for, such as sm89; several go into one plan.  "
                "[default: sm80 and newer with TensorRT-RTX, the present GPU with TensorRT]",
            ),
            click.option(
                "--precision",
                type=click.Choice(["fp32", "fp16", "bf16"]),
                default="fp32",
                show_default=True,
                help="Precision of weights and activations; norms, softmax and sums, inputs and "
                "outputs stay fp32.",
            ),
            click.option(
                "--profile",
                "profiles",
                type=Profile(),
                multiple=True,
                help="Smallest, usual and largest batch size, or size of another dynamic dimension."
                "  [default: 1/8/32]",
            ),
            click.option(
                "--library",
                help="tensorrt-rtx or tensorrt (data-centre GPUs).  [default: the installed one]",
            ),
            click.option("--tf32", is_flag=True, help="Allow TF32 in fp32 computations."),
            click.option(
                "--optimisation-level",
                type=click.IntRange(0, 5),
                help="Optimisation level of TensorRT's builder.",
            ),
            click.option(
                "--timing-cache",
                type=PATH,
                help="File of TensorRT's kernel timings.  [default: beside the plans]",
            ),
            click.option(
                "--onnx",
                "graph",
                type=PATH,
                help="Only build the plan of this ONNX file, into --out; other files are kept.",
            ),
        )
    ):
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@takes(ModelSpec, "models")
@id_option
@image_limit_options
@out_option(str(ENGINE_FOLDER), "Folder of the engines; its former content is replaced.")
@takes(ExportConfig, "config")
@takes(BankConfig, "bank")
@click.option(
    "--to",
    type=click.Choice(["onnx", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="onnx exports graphs; tensorrt also builds a TensorRT plan of each. The options below "
    "are for plans.",
)
@plan_options
@json_option
def export(
    models: ModelSpec,
    id_data: Path,
    out: Path,
    config: ExportConfig,
    bank: BankConfig,
    to: str,
    as_json: bool,
    **plan: Any,
) -> None:
    """Export both models to ONNX and compare them with PyTorch.

    Exports the diffusion model, the classifier and the graphs that compute gradients, all with a
    dynamic batch. Every graph is compared with PyTorch on real and random inputs at several batch
    sizes. If one differs by more than the tolerance, nothing is written and the exit code is 2.
    Unchanged models are not exported again, and unchanged plans not built again.
    """
    graph: Path | None = plan.pop("graph")
    if to == "onnx":
        plan["onnx"] = graph
        given = [name for name, value in plan.items() if value not in (None, False, (), "fp32")]
        if given:
            option = {"architectures": "arch", "profiles": "profile"}.get(given[0], given[0])
            raise click.UsageError(f"--{option.replace('_', '-')} is for plans: add --to tensorrt")
    elif graph is not None and not graph.exists():
        raise GoodRtError(f"{graph} does not exist; give an ONNX file")
    if graph is None:
        models.check_paths()
    from good_rt.workflow import export as step

    exported, plans = None, None
    with shown_progress(quiet=as_json) as progress:
        if to == "tensorrt":
            plan_config = _plan_config(**plan)  # checked before the work of exporting
        if graph is None:
            exported = step.export(models.load(), id_data, out, config, bank, progress)
        if to == "tensorrt":
            plans = step.build_tensorrt_plans(
                out, plan_config, progress, graph=graph, force=config.force
            )
    if as_json:
        result: dict[str, Any] = {"folder": str(out)}
        if exported is not None:
            result = {"exported": exported.exported, **result, **exported.manifest.to_json()}
        if plans is not None:
            result["plans"] = {
                name: {"built": built, **info.to_json()} for name, (info, built) in plans.items()
            }
        emit_json(result)
        return
    from good_rt.cli.tables import print_parity, print_plans

    if exported is not None:
        print_parity(exported.manifest)
        click.echo(f"{'exported to' if exported.exported else 'unchanged:'} {out}")
    if plans is not None:
        print_plans(plans)


def _plan_config(
    architectures: tuple[str, ...], profiles: tuple[tuple[str, Any], ...], **plan: Any
) -> Any:
    from good_rt.export.tensorrt import PLAN_BATCHES, PlanConfig, check_config

    config = PlanConfig(
        architectures=tuple(name.lower() for name in architectures),
        profile={"batch": PLAN_BATCHES, **dict(profiles)},
        **plan,
    )
    check_config(config)
    return config
