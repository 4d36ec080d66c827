"""`good-rt run`: a job file from a folder of images to detector.onnx and its report."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import Existing, device_option, emit_json, json_option, progress

EPILOG = """\b
Examples:
  good-rt run job.toml            everything that is not done yet; an interrupted run goes on
  good-rt run job.toml --json     what was done and measured, as JSON
"""


@click.command(epilog=EPILOG)
@click.argument("job", type=Existing("does not exist; write one with `good-rt init`"))
@device_option
@json_option
def run(job: Path, device: str, as_json: bool) -> None:
    """Do what a job file says: split, export, generate, train, build the detector, evaluate,
    report.

    What is done already is skipped, as long as its settings and inputs are the same. Everything is
    written into the job's folder (`out` in the file), and nothing outside it.
    """
    from good_rt.cli.tables import print_evaluation
    from good_rt.environment import use_device
    from good_rt.workflow.run import run_job_file

    with progress(quiet=as_json) as bars:
        done = run_job_file(job, bars, use_device(device))
    for reason in done.skipped_images:
        click.echo(f"skipped: {reason}", err=True)
    if as_json:
        emit_json(
            {
                "detector": str(done.detector),
                "report": str(done.report),
                "skipped": list(done.skipped_images),
                "steps": [vars(step) for step in done.steps],
                "evaluation": done.evaluation.to_json(),
            }
        )
        return
    print_evaluation(done.evaluation)
    for step in done.steps:
        click.echo(f"{step.name}: {'done before' if step.skipped else f'{step.seconds:.0f} s'}")
    click.echo(f"detector: {done.detector}")
    click.echo(f"report:   {done.report} (open it in a browser)")
