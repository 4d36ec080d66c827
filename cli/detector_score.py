"""`good-rt detector score`: images through detector.onnx, with the base install alone."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from good_rt.cli.options import PATH, emit_json, json_option
from good_rt.detector import Detector, Scores
from good_rt.errors import GoodRtError
from good_rt.files import atomic_path
from good_rt.images import find_images, read_image

EPILOG = """\b
Examples:
  good-rt detector score photo.png --detector detector.onnx
  good-rt detector score photos/ --detector detector.onnx --fit --skip-bad --csv scores.csv
  good-rt detector score photo.png --detector detector.onnx --alpha 0.01 --json
"""


@dataclass(frozen=True)
class Line:
    """One image's row in table, CSV and JSON."""

    file: str
    label: str
    score: float
    p_value: float
    is_ood: bool
    energy: float
    knn_distance: float


@click.command(epilog=EPILOG)
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--detector", "detector_path", type=PATH, required=True, help="The detector.onnx.")
@click.option("--alpha", type=float, help="Share of ID inputs that may be refused.  [default: the detector's]")
@click.option("--fit", is_flag=True, help="Convert images to the detector's channels and size.")
@click.option("--skip-bad", is_flag=True, help="Leave out files that cannot be read, and name them.")
@click.option("--csv", "csv_path", type=PATH, help="Write CSV to this file; - for standard output.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads; 0 for all cores.")
@json_option
def score(
    files: tuple[Path, ...], detector_path: Path, alpha: float | None, fit: bool, skip_bad: bool,
    csv_path: Path | None, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Score image FILES (or folders of them): is this something the classifier was trained on?

    The p-value is the share of held-out ID images that look at least as strange; at or below alpha, the image is OOD.
    """
    if as_json and str(csv_path) == "-":
        raise GoodRtError("--json and --csv - would both print to standard output; choose one of them")
    detector = Detector(detector_path, alpha, threads)
    size = (detector.info.image_size, detector.info.image_size)
    images, names, skipped = [], [], []
    for path in find_images(files):
        try:
            images.append(read_image(path, detector.info.channels, size, fit))
            names.append(str(path))
        except GoodRtError as error:
            if not skip_bad:
                raise GoodRtError(f"{error} (--skip-bad leaves such files out)") from None
            skipped.append(str(error))
    for reason in skipped:
        click.echo(f"skipped: {reason}", err=True)
    if not images:
        raise GoodRtError("none of the files could be read; nothing was scored")
    lines = _lines(names, detector.score(np.stack(images)), detector.info.classes)
    if csv_path is not None:
        _write_csv(csv_path, lines)
    if as_json:
        emit_json({"alpha": detector.alpha, "images": [vars(line) for line in lines], "skipped": skipped})
    elif csv_path is None or str(csv_path) != "-":
        _print_table(lines, detector.alpha)


def _lines(names: list[str], scores: Scores, classes: tuple[str, ...]) -> list[Line]:
    return [
        Line(
            file=name,
            label=classes[scores.label[i]],
            score=float(scores.score[i]),
            p_value=float(scores.p_value[i]),
            is_ood=bool(scores.is_ood[i]),
            energy=float(scores.energy[i]),
            knn_distance=float(scores.knn_distance[i]),
        )
        for i, name in enumerate(names)
    ]


def _write_csv(path: Path, lines: list[Line]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Line.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(line) for line in lines)
    if str(path) == "-":
        sys.stdout.write(text.getvalue())
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue())


def _print_table(lines: list[Line], alpha: float) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for name in ("file", "nearest class"):
        table.add_column(name, overflow="fold")
    for name in ("score", "p-value", f"OOD at α = {alpha:g}"):
        table.add_column(name, justify="right")
    for line in lines:
        decision = "[bold red]yes[/]" if line.is_ood else "no"
        table.add_row(escape(line.file), escape(line.label), f"{line.score:.3f}", f"{line.p_value:.4f}", decision)
    Console().print(table)
    click.echo(f"{sum(line.is_ood for line in lines)} of {len(lines)} OOD")
