"""`good-rt init`: looks at images and models, and writes the job file that `good-rt run` takes."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import (
    IMAGES,
    classifier_option,
    emit_json,
    gradient_decoder_option,
    image_size_option,
    json_option,
    model_option,
    named_paths,
    out_option,
    progress,
)

EPILOG = """\b
Examples:
  good-rt init photos/ --classifier clf/ --model ddpm/      then: good-rt run job.toml
  good-rt init photos/ --classifier clf/ --model ddpm/ --ood street=street/ -o try/job.toml
"""


@click.command(epilog=EPILOG)
@click.argument("images", type=IMAGES)
@classifier_option
@model_option
@gradient_decoder_option
@image_size_option
@click.option(
    "--ood",
    multiple=True,
    callback=named_paths,
    metavar="NAME=PATH",
    help="Real OOD images, for the evaluation alone; may be given several times.",
)
@click.option("--force", is_flag=True, help="Replace a job file that is there.")
@click.option(
    "--skip-bad", is_flag=True, help="Leave out images that are damaged or contradict others."
)
@out_option("job.toml", "The job file to write.")
@json_option
def init(
    images: Path,
    classifier: Path,
    model: Path,
    gradient_decoder: Path | None,
    image_size: int | None,
    ood: dict[str, Path],
    force: bool,
    skip_bad: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Look at a folder of IMAGES, a classifier and a diffusion model, and write a commented job
    file.

    IMAGES is a folder per class, WebDataset shards, a Hugging Face dataset on disk or .npz files.
    What does not fit together is said now, and not after hours.
    """
    from good_rt.config.job import Job
    from good_rt.errors import GoodRtError
    from good_rt.files import atomic_path
    from good_rt.workflow.init import inspect, job_text

    if out.exists() and not force:
        raise GoodRtError(
            f"{out} is there already; choose another --out, or say --force to replace it"
        )
    with progress(quiet=as_json) as bars, bars.task("looking at the images", None) as advance:
        found = inspect(
            images, classifier, model, ood, skip_bad=skip_bad, gradient_decoder=gradient_decoder,
            image_size=image_size, on_item=advance,
        )  # fmt: skip
    with atomic_path(out) as temporary:
        temporary.write_text(job_text(found, out))
    Job.read(out)
    for reason in found.splits.skipped:
        click.echo(f"skipped: {reason}", err=True)
    if as_json:
        emit_json({"job": str(out), **found.to_json()})
        return
    for line in found.lines():
        click.echo(line)
    click.echo(f"wrote {out}; look at it, then: good-rt run {out}")
