"""`good-rt generate`: the guided sampler from the command line, into a folder of images."""

from __future__ import annotations

import math
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
    image_size_option,
    json_option,
    model_option,
    out_option,
    progress,
    seed_option,
)

EPILOG = """\b
Examples:
  good-rt generate --batch                        64 images with the demo's models, the batch size picked by timing
  good-rt generate --batch 64 -n 10000 -o ood/    ten thousand, resumable
  good-rt generate --guidance feat --mu 0.2       feature-level guidance, twice as strong
  good-rt generate --gradients engine             gradients by engines as well
  good-rt generate --device cuda --engine tensorrt --precision fp16
  good-rt generate --model sd/ --classifier clf/ --id photos/ --engine torch
  good-rt generate --model sd/ --classifier clf/ --id photos/ --cfg 7.5 --prompt "a photo of a {}, outdoors"
"""


@click.command(epilog=EPILOG)
@model_option
@classifier_option
@id_option
@engines_option
@click.option(
    "--engine",
    type=click.Choice(["onnx", "torch", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="What runs UNet and decoder; TensorRT builds its plans for the GPU that is there.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Of UNet and decoder as engines on a GPU, bf16 on TensorRT alone; gradients are always in "
    "fp32.  "
    "[default: fp32]",
)
@device_option
@click.option(
    "--gradients",
    type=click.Choice(["torch", "engine"]),
    default="torch",
    show_default=True,
    help="What computes the guidance's gradients: the retained PyTorch modules, or engines of "
    "their own.",
)
@gradient_decoder_option
@image_size_option
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Prompt of a class, {} in its name's place, for models that follow text; several take "
    "turns.  "
    '[default: "a photo of a {}"]',
)
@click.option(
    "--batch",
    is_flag=False,
    flag_value="auto",
    default="auto",
    metavar="[N]",
    help="Images a batch; without N the fastest size is found by timing.  [default: auto]",
)
@click.option(
    "-n", "--count", type=click.IntRange(1), default=64, show_default=True, help="Images in all."
)
@click.option(
    "--guidance",
    type=click.Choice(["img", "feat", "both", "none"]),
    default="both",
    show_default=True,
    help="Image level (log-partition), feature level (k-NN distance), both, or unguided.",
)
@click.option(
    "--mu", type=float, default=0.1, show_default=True, help="Strength of mean guidance, on x̂0."
)
@click.option(
    "--rho",
    type=float,
    default=0.0,
    show_default=True,
    help="Strength of variance guidance, through the UNet.",
)
@click.option(
    "--strengths",
    default="0.5,1,2",
    show_default=True,
    help="Factors of --mu and --rho that the images take in turn.",
)
@click.option(
    "--schedule",
    type=click.Choice(["constant", "increase", "decrease"]),
    default="constant",
    show_default=True,
    help="How --mu and --rho change over the steps.",
)
@click.option(
    "--sigma",
    type=float,
    default=0.0,
    show_default=True,
    help="Width of the Gaussian smoothing; 0 for none.",
)
@click.option(
    "--n-mc", type=int, default=1, show_default=True, help="Monte-Carlo samples of the smoothing."
)
@click.option(
    "--n-iter",
    type=int,
    default=1,
    show_default=True,
    help="Mean-guidance steps at each noise level.",
)
@click.option(
    "--n-recur", type=int, default=1, show_default=True, help="Passes over each noise level."
)
@click.option(
    "--step",
    type=click.Choice(["unit", "raw"]),
    default="unit",
    show_default=True,
    help="Scale each gradient to root mean square 1, or take it as it is.",
)
@click.option("--clip", type=float, help="Largest norm of a sample's raw gradient.")
@click.option("--band", type=(float, float), help="ℓ between which guidance fades out: LOW HIGH.")
@click.option(
    "--span",
    type=(float, float),
    default=(0.0, 1.0),
    show_default=True,
    metavar="FROM TO",
    help="Part of the trajectory that is guided, as shares of the steps.",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Guide every n-th step alone.",
)
@click.option(
    "--k",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Neighbour of the k-NN distance.",
)
@click.option(
    "--bank-size",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="ID features to keep away from; beyond 20,000, --gradients torch looks at the nearest "
    "clusters alone.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=25, show_default=True, help="Sampler steps."
)
@click.option(
    "--eta",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="DDIM's η; 0 is deterministic.",
)
@click.option(
    "--cfg", type=float, default=1.0, show_default=True, help="Classifier-free guidance scale."
)
@click.option(
    "--cfg-sigma-max",
    type=click.FloatRange(0, min_open=True),
    default=math.inf,
    help="Largest σ at which --cfg acts; 2 or so keeps more of the diversity, and is faster.  "
    "[default: every σ]",
)
@click.option(
    "--twins/--no-twins",
    default=True,
    show_default=True,
    help='Also sample each image unguided, for the manifest\'s columns "before".',
)
@seed_option
@out_option("ood", "Folder of the images; an interrupted job goes on.")
@json_option
def generate(
    model: Path,
    classifier: Path,
    id_data: Path,
    engines: Path,
    engine: str,
    precision: Any,
    device: str,
    gradients: str,
    gradient_decoder: Path | None,
    image_size: int | None,
    prompts: tuple[str, ...],
    batch: str,
    count: int,
    guidance: Any,
    mu: float,
    rho: float,
    strengths: str,
    schedule: Any,
    sigma: float,
    n_mc: int,
    n_iter: int,
    n_recur: int,
    step: Any,
    clip: float | None,
    band: tuple[float, float] | None,
    span: tuple[float, float],
    every: int,
    k: int,
    bank_size: int,
    steps: int,
    eta: float,
    cfg: float,
    cfg_sigma_max: float,
    twins: bool,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Generate OOD images: sample a diffusion model under a classifier's guidance.

    Writes PNG images, manifest.jsonl (seed, class and both discrepancies of every image, and of its
    unguided twin), job.json and contact_sheet.png. The same seed, --batch N, engines and device
    give the same images; without N the batch size is found by timing. With --gradients engine on
    the CPU an image of convolutional networks does not depend on the batch; PyTorch rounds
    otherwise in another size, which guidance amplifies to other images.
    """
    from good_rt.config.job import ONNX, runtime_of
    from good_rt.data.image_files import CONTACT_SHEET
    from good_rt.diffusion import TEMPLATE
    from good_rt.environment import use_device
    from good_rt.errors import GoodRtError
    from good_rt.method.guidance import GuidanceConfig
    from good_rt.workflow.generation import LARGEST_BATCH, GenerationJob
    from good_rt.workflow.steps import open_generator, run_job

    try:
        factors = tuple(float(value) for value in strengths.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{strengths!r} is not a list of numbers like 0.5,1,2", param_hint="--strengths"
        ) from None
    if batch != "auto" and not (batch.isdigit() and int(batch) > 0):
        raise click.BadParameter(f"{batch!r} is not a number of images", param_hint="--batch")
    config = GuidanceConfig(
        rho=rho,
        mu=mu,
        sigma=sigma,
        rho_schedule=schedule,
        mu_schedule=schedule,
        n_recur=n_recur,
        n_iter=n_iter,
        n_mc=n_mc,
        step=step,
        clip=clip,
        band=band,
        span=span,
        every=every,
    )
    if guidance != "none" and not config.active:
        raise GoodRtError(
            "--mu and --rho are both 0, so nothing is guided; set one, or say --guidance none"
        )
    if guidance != "none" and not any(config.guides(step, steps) for step in range(steps)):
        raise GoodRtError(
            f"--span {span[0]:g} {span[1]:g} holds none of the {steps} steps, so nothing is guided"
        )
    if gradients == "engine" and engine == "torch":
        raise GoodRtError("--gradients engine needs --engine onnx or tensorrt")
    place = use_device(device)
    runtime = runtime_of(engine, precision)
    largest = min(count, LARGEST_BATCH) if batch == "auto" else int(batch)
    job = GenerationJob(count, guidance, config, factors, k=k, eta=eta, seed=seed, batch=largest)
    with progress(quiet=as_json) as bars:
        generator, describe = open_generator(
            model,
            classifier,
            id_data,
            job,
            engines=None if runtime is None else engines,
            gradients=gradients == "engine",
            steps=steps,
            cfg_scale=cfg,
            cfg_sigma_max=cfg_sigma_max,
            bars=bars,
            prompts=prompts or (TEMPLATE,),
            gradient_decoder=gradient_decoder,
            image_size=image_size,
            bank_size=bank_size,
            device=place,
            runtime=runtime or ONNX,
        )
        made = run_job(generator, describe, job, out, bars, twins=twins, auto_batch=batch == "auto")
    rows = made.rows()
    summary = {
        "out": str(out),
        "images": len(rows),
        "energy": _mean([row.energy for row in rows]),
        "energy_before": _mean([row.energy_before for row in rows]),
        "knn_distance": _mean([row.knn_distance for row in rows]),
        "knn_distance_before": _mean([row.knn_distance_before for row in rows]),
        "contact_sheet": str(out / CONTACT_SHEET),
    }
    if as_json:
        emit_json(summary)
        return
    click.echo(f"{len(rows)} images in {out}, see {summary['contact_sheet']}")
    for name in ("energy", "knn_distance"):
        before = summary[f"{name}_before"]
        unguided = "" if before is None else f", unguided twins {before:.3f}"
        click.echo(f"mean {name.replace('_', ' ')}: {summary[name]:.3f}{unguided}")


def _mean(values: list[float] | list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
