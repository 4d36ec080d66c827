"""`good-rt split`: which image is for training, held out, or for the test, recorded in a file."""

from __future__ import annotations

from pathlib import Path

import click

from good_rt.cli.options import (
    ID_IMAGES,
    emit_json,
    json_option,
    out_option,
    print_skipped,
)
from good_rt.cli.settings import image_limit_options, takes
from good_rt.config.settings import SplitConfig
from good_rt.files import printable
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt split photos/ -o splits.json                 then: good-rt train --id splits.json ...
  good-rt split photos/ --held-out 0.3 --test 0.1 --skip-bad
"""


@click.command(epilog=EPILOG)
@click.argument("images", type=ID_IMAGES)
@takes(SplitConfig, "config")
@image_limit_options
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Decode every image to find damaged ones.",
)
@out_option("splits.json", "The file to write; every --id accepts it in place of the images.")
@json_option
def split(images: Path, config: SplitConfig, check: bool, out: Path, as_json: bool) -> None:
    """Divide IMAGES into train, held-out and test parts.

    The part follows from a hash of an image's content, so the same images always give the same
    parts, and copies share one. Images in an existing splits.json keep their part while shares and
    seed stay the same. Data that already has train, val and test parts keeps them; a copy in two of
    them is an error.
    """
    from good_rt.cli.tables import print_splits
    from good_rt.workflow import split as step

    with shown_progress(quiet=as_json) as progress:
        splits = step.split(images, out, config, progress, check=check)
    print_skipped(splits.skipped)
    copies = sum(file.copy for file in splits.files.values())
    if as_json:
        emit_json(
            {
                "splits": str(out),
                "kind": splits.kind,
                "given": splits.given,
                "counts": splits.counts(),
                "copies": copies,
                "skipped": list(splits.skipped),
                "fingerprint": splits.fingerprint,
            }
        )
        return
    print_splits(splits)
    click.echo(
        printable(
            f"{out}: {len(splits.files) - copies} images of {splits.source} ({copies} copies are "
            "not used)"
        )
    )
