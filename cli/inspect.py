"""`good-rt inspect`: what a diffusion model is, its exported graphs, and what does not work and
why."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import PATH, Existing, emit_json, json_option
from good_rt.cli.settings import takes
from good_rt.errors import GoodRtError
from good_rt.models import ModelSpec, check_classifier_path

EPILOG = """\b
Examples:
  good-rt inspect stable-diffusion/                        kind, parts, sizes, memory, problems
  good-rt inspect sd/ --classifier clf/                    also check that the classifier fits
  good-rt inspect sd/ --image-size 256 --json
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=Existing("does not exist; give a diffusers folder"))
@click.option("--classifier", type=PATH, help="Also check that this classifier fits the model.")
@takes(ModelSpec, "spec", without=("diffusion", "classifier", "gradient_decoder"))
@json_option
def inspect(model: Path, classifier: Path | None, spec: ModelSpec, as_json: bool) -> None:
    """Show a diffusion model's parts and sizes, and its problems.

    MODEL is a diffusers folder. Prints the kind of model, its parts, the exported graphs of the
    diffusion model, the memory needed, and each problem with its reason. Only configs and the
    headers of weight files are read, no weights. The exit code is 2 if the model cannot run.
    """
    if classifier is not None:
        check_classifier_path(classifier)
    from good_rt.cli.tables import print_inspection
    from good_rt.diffusion.inspection import inspect_model

    shape, classes = None, None
    if classifier is not None:
        from good_rt.classifier import load_classifier

        config = load_classifier(classifier).config
        shape = (config.channels, config.image_size, config.image_size)
        classes = len(config.classes)
    inspection = inspect_model(
        model, image_size=spec.image_size, image_shape=shape, classes=classes
    )
    if as_json:
        emit_json(inspection.to_json())
    else:
        print_inspection(inspection)
    if not inspection.runs:
        problems = inspection.problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GoodRtError(f"{problems[0]}{more}")
