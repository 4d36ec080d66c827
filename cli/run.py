"""`good-rt run`: a job file from a folder of images to detector.onnx and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from good_rt.cli.options import Existing, device_option, emit_json, json_option, print_skipped
from good_rt.progress import shown_progress

if TYPE_CHECKING:
    from good_rt.workflow.run import RunResult

EPILOG = """\b
Examples:
  good-rt run job.toml            runs the unfinished steps; an interrupted run resumes
  good-rt run job.toml --json     steps and figures as JSON
"""


@click.command(epilog=EPILOG)
@click.argument("job", type=Existing("does not exist; write one with `good-rt init`"))
@device_option
@json_option
def run(job: Path, device: str, as_json: bool) -> None:
    """Run a job file, from images to detector.onnx and report.html.

    The steps are split, export, generate, train, build the detector, evaluate and report; generate
    and train repeat for each of `train.rounds`. Finished steps are skipped while their settings and
    inputs stay the same. All output goes to the job's folder (`out` in the file).
    """
    from good_rt.workflow.job_file import Job

    read = Job.read(job)
    read.check_paths()
    from good_rt.workflow.run import run_job

    with shown_progress(quiet=as_json) as progress:
        result = run_job(read, device, progress)
    print_skipped(result.skipped_images)
    if as_json:
        emit_json(result_json(result))
        return
    print_result(result)


def result_json(result: RunResult) -> dict[str, Any]:
    """The files, steps and figures of a run, for --json."""
    return {
        "detector": str(result.detector),
        "report": str(result.report),
        "skipped": list(result.skipped_images),
        "steps": [vars(step) for step in result.steps],
        "evaluation": result.evaluation.to_json(),
    }


def print_result(result: RunResult) -> None:
    """The figures of a run, the seconds of its steps, and where its files are."""
    from good_rt.cli.tables import print_evaluation

    print_evaluation(result.evaluation)
    for step in result.steps:
        click.echo(
            f"{step.name}: {'skipped, already done' if step.skipped else f'{step.seconds:.0f} s'}"
        )
    click.echo(f"detector: {result.detector} ({result.detector.stat().st_size / 1e6:.1f} MB)")
    click.echo(f"report:   {result.report} (open it in a browser)")
