"""`good-rt init`: looks at images and models, and writes the job file that `good-rt run` takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from good_rt.cli.options import (
    ID_IMAGES,
    IMAGES_PATH,
    NamedPath,
    emit_json,
    json_option,
    out_option,
    print_skipped,
    renamed,
    test_set_option,
)
from good_rt.cli.settings import image_limit_options, takes
from good_rt.config.settings import SplitConfig
from good_rt.errors import GoodRtError
from good_rt.files import printable
from good_rt.models import ModelSpec
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt init photos/ --classifier clf/ --model ddpm/      then: good-rt run job.toml
  good-rt init photos/ --classifier clf/ --model ddpm/ --test-set street=street/ -o try/job.toml
"""


@click.command(epilog=EPILOG)
@click.argument("images", type=ID_IMAGES)
@takes(ModelSpec, "models")
@test_set_option("Real OOD images that only the evaluation sees; may be repeated.")
@renamed("--ood", {"test_sets": "--test-set"}, type=NamedPath(IMAGES_PATH), multiple=True)
@click.option("--force", is_flag=True, help="Replace an existing job file.")
@image_limit_options
@takes(SplitConfig, "config", without=("held_out", "test", "seed"))
@out_option("job.toml", "The job file to write.")
@json_option
def init(
    images: Path,
    models: ModelSpec,
    test_sets: tuple[tuple[str, Path], ...],
    force: bool,
    config: SplitConfig,
    out: Path,
    as_json: bool,
) -> None:
    """Check IMAGES and both models, and write a commented job file.

    IMAGES is a folder per class, WebDataset shards, a Hugging Face dataset on disk or .npz files.
    Mismatches between images, classifier and diffusion model are reported before anything is
    written.
    """
    if out.exists() and not force:
        raise GoodRtError(f"{out} exists; choose another --out, or give --force to replace it")
    models.check_paths()
    from good_rt.files import atomic_path
    from good_rt.workflow.init import inspect_job, job_text
    from good_rt.workflow.job_file import Job

    with shown_progress(quiet=as_json) as progress:
        findings = inspect_job(
            images, models, dict(test_sets), skip_bad=config.skip_bad, progress=progress
        )
    with atomic_path(out) as temporary:
        temporary.write_text(job_text(findings, out), encoding="utf-8")
    Job.read(out)
    print_skipped(findings.splits.skipped)
    if as_json:
        emit_json({"job": str(out), **findings.to_json()})
        return
    for line in findings.lines():
        click.echo(printable(line))
    command = f"good-rt run {shlex.quote(str(out))}"
    click.echo(printable(f"wrote {out}; review it, then run: {command}"))
