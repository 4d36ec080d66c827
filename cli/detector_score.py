"""`good-rt detector score`: images through detector.onnx; the base install is enough."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from good_rt.cli.options import PATH, emit_json, json_option
from good_rt.data.image_files import find_images, read_image
from good_rt.detector.runtime import Detector
from good_rt.errors import GoodRtError, printable
from good_rt.files import atomic_path
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt detector score photo.png --detector detector.onnx
  good-rt detector score photos/ --detector detector.onnx --fit --skip-bad --csv scores.csv
  good-rt detector score photo.png --detector detector.onnx --alpha 0.01 --json
"""


AT_ONCE = 256
"""Images that are held in memory, whatever their number."""


@dataclass(frozen=True)
class Line:
    """One image's row in table, CSV and JSON."""

    file: str
    label: str
    score: float
    p_value: float
    is_ood: bool
    discrepancies: Mapping[str, float]

    def columns(self) -> dict[str, Any]:
        """The row as flat columns, which CSV and JSON share."""
        rest = {name: value for name, value in vars(self).items() if name != "discrepancies"}
        return {**rest, **self.discrepancies}


@click.command(epilog=EPILOG)
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option(
    "--detector", "detector_path", type=PATH, required=True, help="The detector.onnx to run."
)
@click.option(
    "--alpha", type=float, help="Share of ID inputs that may be refused.  [default: the detector's]"
)
@click.option("--fit", is_flag=True, help="Convert images to the detector's channels and size.")
@click.option(
    "--skip-bad",
    is_flag=True,
    help="Skip files that cannot be read as an image, and list them.",
)
@click.option(
    "--csv",
    "csv_path",
    type=PATH,
    help="Write CSV to this file instead of printing a table; - for standard output.",
)
@click.option(
    "--threads", type=click.IntRange(0, os.cpu_count()), default=0, help="Threads; 0 for all cores."
)
@json_option
def score(
    files: tuple[Path, ...], detector_path: Path, alpha: float | None, fit: bool, skip_bad: bool,
    csv_path: Path | None, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Score image FILES, or folders of them, with a detector.onnx.

    A higher score means more OOD. The p-value is (1 + c)/(n + 1), where c of the n calibration
    images have at least the same score; an image with a p-value of at most alpha is OOD. PyTorch is
    not needed.
    """
    if as_json and str(csv_path) == "-":
        raise GoodRtError(
            "--json and --csv - would both print to standard output; choose one of them"
        )
    detector = Detector(detector_path, alpha, threads)
    paths = find_images(files)
    lines: list[Line] = []
    skipped: list[str] = []
    with (
        shown_progress(quiet=as_json or len(paths) <= AT_ONCE) as progress,
        progress.task("scoring", len(paths)) as advance,
    ):
        at_once = min(AT_ONCE, detector.images_at_once)
        for first in range(0, len(paths), at_once):
            part = paths[first : first + at_once]
            lines += _scored(detector, part, fit, skipped if skip_bad else None)
            advance(len(part))
    for reason in skipped:
        click.echo(f"skipped: {printable(reason)}", err=True)
    if not lines:
        raise GoodRtError("none of the files could be read; nothing was scored")
    if csv_path is not None:
        _write_csv(csv_path, lines)
    if as_json:
        images = [line.columns() for line in lines]
        emit_json({"alpha": detector.alpha, "images": images, "skipped": skipped})
    elif csv_path is None:
        _print_table(lines, detector.alpha)
        click.echo(_summary(lines))
    elif str(csv_path) != "-":
        click.echo(f"{_summary(lines)}; scores in {csv_path}")


def _scored(
    detector: Detector, paths: list[Path], fit: bool, skipped: list[str] | None
) -> list[Line]:
    """The rows of images that are read at once; what is wrong with others goes to ``skipped``, or
    is raised."""
    size = (detector.info.image_size, detector.info.image_size)
    images, names = [], []
    for path in paths:
        try:
            images.append(read_image(path, detector.info.channels, size, fit))
            names.append(str(path))
        except GoodRtError as error:
            if skipped is None:
                raise GoodRtError(f"{error} (--skip-bad leaves such files out)") from None
            skipped.append(str(error))
    if not images:
        return []
    scores = detector.score(np.stack(images))
    return [
        Line(
            file=name,
            label=printable(detector.info.classes[scores.label[i]]),
            score=float(scores.score[i]),
            p_value=float(scores.p_value[i]),
            is_ood=bool(scores.is_ood[i]),
            discrepancies={name: float(values[i]) for name, values in scores.discrepancies.items()},
        )
        for i, name in enumerate(names)
    ]


def _write_csv(path: Path, lines: list[Line]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0].columns()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(line.columns() for line in lines)
    if str(path) == "-":
        sys.stdout.write(text.getvalue())
        return
    path = path.resolve()  # a link stays one
    if path.is_fifo() or path.is_char_device():
        path.write_text(text.getvalue())
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue())


def _print_table(lines: list[Line], alpha: float) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    folder = _common_folder([Path(line.file) for line in lines])
    table = Table(title=f"in {escape(printable(folder))}" if folder else None, title_justify="left")
    for name in ("file", "nearest class"):
        table.add_column(name, overflow="fold")
    for name in ("score", "p-value", f"OOD at α = {alpha:g}"):
        table.add_column(name, justify="right")
    for line in lines:
        decision = "[bold red]yes[/]" if line.is_ood else "no"
        name = printable(os.path.relpath(line.file, folder) if folder else line.file)
        table.add_row(
            escape(name), escape(line.label), f"{line.score:.3f}", f"{line.p_value:.4f}", decision
        )
    Console().print(table)


def _common_folder(files: list[Path]) -> str:
    """The folder that all of several files lie in, which is said once; "" where there is none but
    the current one."""
    try:
        folder = os.path.commonpath([file.parent for file in files]) if len(files) > 1 else ""
    except ValueError:  # absolute paths and relative ones
        return ""
    return "" if folder == os.path.dirname(folder) else folder


def _summary(lines: list[Line]) -> str:
    return f"{sum(line.is_ood for line in lines)} of {len(lines)} OOD"
