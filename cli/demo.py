"""`good-rt demo`: the shipped job file, good_rt/demo/job.toml, from export to report."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from good_rt.cli.options import emit_json, json_option, out_option
from good_rt.cli.run import print_result, result_json
from good_rt.cli.settings import takes
from good_rt.config.settings import TrainConfig
from good_rt.demo import assets
from good_rt.progress import shown_progress

if TYPE_CHECKING:
    from good_rt.workflow.job_file import Job

EPILOG = """\b
Examples:
  good-rt demo                    writes to ./good-rt-demo; an interrupted run resumes
  good-rt demo -o try/ --seed 1   another seed, another folder
  good-rt demo --images 64        fewer generated images: faster, and a weaker detector
"""


@click.command(epilog=EPILOG)
@click.option(
    "--images",
    type=click.IntRange(20),
    default=100,
    show_default=True,
    help="Images per kind of guidance; the training gets 9 times as many at image level and 20 "
    "times as many unguided ones.",
)
@takes(TrainConfig, "train", without={field.name for field in fields(TrainConfig)} - {"steps"})
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all randomness."
)
@out_option("good-rt-demo", "Folder of all outputs; an interrupted run resumes.")
@json_option
def demo(images: int, train: TrainConfig, seed: int, out: Path, as_json: bool) -> None:
    """Run every step on shipped models and real images.

    It takes about five minutes on two cores and downloads nothing. Exports a diffusion model and a
    classifier to ONNX, guides the diffusion model with the classifier towards OOD images,
    fine-tunes the classifier with them, writes detector.onnx, and measures it on images that no
    step has used before.
    """
    from good_rt.data.folder_tree import CONTACT_SHEET
    from good_rt.workflow.job_file import Job
    from good_rt.workflow.run import run_job

    began = time.perf_counter()
    job = scaled(Job.read(assets.JOB), images, train.steps, seed)
    with shown_progress(quiet=as_json) as progress:
        result = run_job(replace(job, folder=out), progress=progress)
    seconds = time.perf_counter() - began
    if as_json:
        emit_json({"seconds": seconds, **result_json(result)})
        return
    print_result(result)
    generated = out / "generated" / "both"
    click.echo(f"pictures: {generated / CONTACT_SHEET}")
    click.echo(
        f"took {seconds:.0f} s; try: good-rt detector score {generated / 'images'} --detector "
        f"{result.detector}"
    )


def scaled(job: Job, images: int, train_steps: int, seed: int) -> Job:
    """The demo's job with other numbers of images, in the proportions of the file."""
    config = job.config
    generate, train = config.generate, config.train
    unit = generate.config.count
    counts = {kind: count * images // unit for kind, count in generate.counts.items()}
    generate = replace(generate, counts=counts, config=replace(generate.config, count=images))
    train = replace(train, config=replace(train.config, steps=train_steps))
    return replace(job, config=replace(config, seed=seed, generate=generate, train=train))
