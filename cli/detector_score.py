"""`good-rt detector score`: images through detector.onnx; the base install is enough."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click
import numpy as np

from good_rt.cli.options import PATH, emit_json, json_option, print_skipped
from good_rt.cli.settings import image_limit_options
from good_rt.data.image_files import DepthCheck, decode_image, list_images, read_image_file
from good_rt.detector.runtime import Detector
from good_rt.errors import GoodRtError
from good_rt.files import printable
from good_rt.progress import shown_progress

EPILOG = """\b
Examples:
  good-rt detector score photo.png --detector detector.onnx
  good-rt detector score photos/ --detector detector.onnx --fit --skip-bad --csv scores.csv
  good-rt detector score photo.png --detector detector.onnx --alpha 0.01 --json
"""


AT_ONCE = 256
"""Images that are held in memory, whatever their number."""
FORMULA_MARKS = ("=", "+", "-", "@", "'", "＝", "＋", "－", "＠")
"""What a formula of a spreadsheet begins with, and the mark against it."""


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
    help="Skip files that cannot be read as an image, and list them; without it they are an error "
    "after the others are scored.",
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
@image_limit_options
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
    listing = list_images(files)
    paths = listing.files
    lines: list[Line] = []
    unread: list[str] = []
    depth = DepthCheck()
    with (
        _rows(csv_path) as write,
        shown_progress(quiet=as_json or len(paths) <= AT_ONCE) as progress,
        progress.task("scoring", len(paths)) as advance,
    ):
        at_once = min(AT_ONCE, detector.images_at_once)
        for first in range(0, len(paths), at_once):
            part = paths[first : first + at_once]
            scored = _scored(detector, part, fit, unread, depth)
            write(scored)
            lines += scored
            advance(len(part))
    skipped = [*listing.left_out, *unread]
    print_skipped(skipped if skip_bad else listing.left_out)
    doubt = depth.doubt()
    if doubt is not None:
        click.echo(f"warning: {doubt}", err=True)
    if not lines and (skip_bad or not unread):
        raise GoodRtError("none of the files could be read; nothing was scored")
    if as_json and lines:
        images = [line.columns() for line in lines]
        emit_json({"alpha": detector.alpha, "images": images, "skipped": skipped})
    elif csv_path is None and lines:
        _print_table(lines, detector.alpha)
        click.echo(_summary(lines))
    elif lines and str(csv_path) != "-":
        click.echo(printable(f"{_summary(lines)}; scores in {csv_path}"))
    if unread and not skip_bad:
        more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
        rest = f"; the other {len(lines)} were scored" if lines else ""
        raise GoodRtError(f"{unread[0]}{more}{rest} (--skip-bad leaves such files out)")


def _scored(
    detector: Detector, paths: Sequence[Path], fit: bool, unread: list[str], depth: DepthCheck
) -> list[Line]:
    """The rows of images that are read at once; what is wrong with others goes to ``unread``."""
    size = (detector.info.image_size, detector.info.image_size)
    images, names = [], []
    for path in paths:
        try:
            content = read_image_file(path)
            images.append(decode_image(content, str(path), detector.info.channels, size, fit))
            depth.see(content, str(path))
            names.append(str(path))
        except GoodRtError as error:
            unread.append(str(error))
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


@contextlib.contextmanager
def _rows(path: Path | None) -> Iterator[Callable[[Sequence[Line]], None]]:
    """A function that writes rows of CSV as they come, so that an error later on does not lose
    them. Nothing is written before the first row."""
    with contextlib.ExitStack() as stack:
        files: list[TextIO] = []

        def write(lines: Sequence[Line]) -> None:
            if path is None or not lines:
                return
            begins = not files
            if begins:
                files.append(sys.stdout if str(path) == "-" else stack.enter_context(_opened(path)))
            writer = csv.DictWriter(
                files[0], list(map(safe_cell, lines[0].columns())), lineterminator="\n"
            )
            if begins:
                writer.writeheader()
            for line in lines:
                columns = line.columns().items()
                writer.writerow({safe_cell(name): safe_cell(value) for name, value in columns})
            files[0].flush()

        yield write


def _opened(path: Path) -> TextIO:
    """A file to write CSV to, in which names of files keep the bytes that they have."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise GoodRtError(
            f"cannot write {path} ({error.strerror or error}); choose another place"
        ) from None


def safe_cell(value: Any) -> Any:
    """A value of a CSV cell: a text that a spreadsheet would run as a formula has a ' before it,
    and control characters are escaped.

    Args:
        value: A text; anything else is returned as it is.
    """
    if not isinstance(value, str):
        return value
    kept = "".join(printable(c) if unicodedata.category(c) == "Cc" else c for c in value)
    return f"'{kept}" if kept.startswith(FORMULA_MARKS) else kept


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
            escape(printable(name)),
            escape(printable(line.label)),
            f"{line.score:.3f}",
            f"{line.p_value:.4f}",
            decision,
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
