"""Options that several commands share, progress bars, and JSON on standard output."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from good_rt.demo import assets
from good_rt.errors import GoodRtError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PATH = click.Path(path_type=Path)
LINE_SECONDS = 30


class Existing(click.Path):
    """A path that must exist, which is looked at before anything heavy is imported; else ``lack``
    says what to do."""

    def __init__(self, lack: str) -> None:
        super().__init__(path_type=Path)
        self.lack = lack

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(value)
        if not path.exists():
            raise GoodRtError(f"{path} {self.lack}")
        return path


IMAGES = Existing(
    "does not exist; give a folder per class, .tar shards, a Hugging Face dataset, .npz, or a "
    "splits.json"
)


model_option = click.option(
    "--model",
    type=PATH,
    default=assets.MODEL,
    show_default="the demo's",
    help="Diffusion model: a diffusers folder, or a name on the Hugging Face hub.",
)
classifier_option = click.option(
    "--classifier", type=PATH, default=assets.CLASSIFIER, show_default="the demo's",
    help="Classifier: a folder, timm:NAME@FILE.safetensors, torchvision:NAME@FILE.safetensors, "
    "transformers:FOLDER_OR_NAME, MODULE:ATTR@FILE.safetensors, or a .pt2, .pt or .onnx file.",
)  # fmt: skip
id_option = click.option(
    "--id",
    "id_data",
    type=IMAGES,
    default=assets.DATA,
    show_default="the demo's",
    help="In-distribution images: a folder per class, .tar shards, a Hugging Face dataset, .npz; "
    "or their splits.json.",
)
engines_option = click.option(
    "--engines", type=PATH, default=Path("good-rt-engines"), show_default=True,
    help="Folder of the exported engines; they are made there when missing.",
)  # fmt: skip
gradient_decoder_option = click.option(
    "--gradient-decoder",
    type=Existing("does not exist; give the folder of an AutoencoderTiny"),
    help="Folder of a light autoencoder (AutoencoderTiny) that gradients go through, in the "
    "decoder's place.",
)
image_size_option = click.option(
    "--image-size", type=click.IntRange(1),
    help="Height and width of the images, for networks that bear with another than their own.",
)  # fmt: skip
device_option = click.option(
    "--device", default="cpu", show_default=True, metavar="cpu|cuda|cuda:N",
    help="Where the models run; images of another device are others by rounding.",
)  # fmt: skip
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all randomness."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def generated_option(required: bool) -> Callable[[Any], Any]:
    """--ood, the generated sets."""
    return click.option(
        "--ood", "generated", multiple=True, required=required,
        type=Existing("holds no generated images; make them with `good-rt generate`"),
        help="Folder of generated images (from `good-rt generate`); may be given several times.",
    )  # fmt: skip


def out_option(default: str, text: str) -> Callable[[Any], Any]:
    """--out of a folder or, where the default has an ending, of a file; what cannot be one is
    refused at once."""
    kind, other = ("file", "folder") if Path(default).suffix else ("folder", "file")

    def checked(context: click.Context, parameter: click.Parameter, out: Path) -> Path:
        if out.is_dir() if kind == "file" else out.is_file():
            raise GoodRtError(
                f"-o {out} is a {other}, and it must be a {kind}; choose another place"
            )
        above = next((parent for parent in out.absolute().parents if parent.exists()), out)
        if not above.is_dir() or not os.access(out if out.exists() else above, os.W_OK):
            raise GoodRtError(f"-o {out}: {above} cannot be written to; choose another place")
        return out

    return click.option(
        "-o",
        "--out",
        type=PATH,
        default=Path(default),
        show_default=True,
        help=text,
        callback=checked,
    )


def named_paths(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Path]:
    """A callback for options of the form NAME=PATH."""
    pairs = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise click.BadParameter(f"{value!r} is not NAME=PATH")
        pairs[name] = Path(path)
    return pairs


def emit_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))


class Bars:
    """Progress bars on standard error, a line now and then where that is no terminal, or nothing at
    all."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    @contextmanager
    def task(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar for one piece of work (without ``total``: of unknown length); the function it gives
        takes advances."""
        if self._progress is None:
            yield lambda count: None
            return
        progress = self._progress
        if not progress.console.is_terminal:  # bars would appear at the end alone
            yield _Lines(progress.console, text, total).advance
            return
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)
        progress.update(task, total=total or 1, completed=total or 1)

    def note(self, text: str) -> None:
        """Says something between the bars."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Lines:
    """Progress where there is no terminal: a line at the beginning, and one every
    `LINE_SECONDS`."""

    def __init__(self, console: Console, text: str, total: int | None) -> None:
        self._console, self._text, self._total = console, text, total
        self._done, self._began = 0, time.monotonic()
        self._said = self._began
        self._say("...")

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._total is None or not self._done or now - self._said < LINE_SECONDS:
            return
        self._said = now
        left = (now - self._began) * (self._total - self._done) / self._done
        about = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        self._say(f"{self._done} of {self._total}, about {about} left")

    def _say(self, words: str) -> None:
        self._console.print(f"{self._text} {words}", markup=False, highlight=False, soft_wrap=True)


NO_BARS = Bars(None)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Bars]:
    """Progress bars while the block runs."""
    if quiet:
        yield Bars(None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield Bars(bars)
