"""`good-rt inspect`: what a diffusion model is, what would be exported, and what does not work and
why."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import PATH, emit_json, image_size_option, json_option

EPILOG = """\b
Examples:
  good-rt inspect stable-diffusion/                        kind, parts, sizes, memory, and what does not work
  good-rt inspect sd/ --classifier clf/                    and whether the classifier fits it
  good-rt inspect sd/ --image-size 256 --json
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=PATH)
@click.option(
    "--classifier", type=PATH, help="Classifier folder that the model is to be used with."
)
@image_size_option
@json_option
def inspect(model: Path, classifier: Path | None, image_size: int | None, as_json: bool) -> None:
    """Say what a diffusion model is, what will be exported, how large it is, and what does not work
    and why.

    MODEL is a diffusers folder. Configs and weight files' headers are read, no weights. The exit
    code is 2 where the model cannot be run.
    """
    from good_rt.cli.tables import print_inspection
    from good_rt.diffusion.inspection import inspect_model
    from good_rt.errors import GoodRtError

    shape, classes = None, None
    if classifier is not None:
        from good_rt.classifier import load_classifier

        config = load_classifier(classifier).config
        shape, classes = (
            (config.channels, config.image_size, config.image_size),
            len(config.classes),
        )
    found = inspect_model(model, image_size=image_size, image_shape=shape, classes=classes)
    if as_json:
        emit_json(found.to_json())
    else:
        print_inspection(found)
    if not found.runs:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise GoodRtError(f"{found.problems[0]}{more}")
