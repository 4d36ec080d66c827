"""`good-rt`: the group of all commands. Each lives in a file of its own and is imported when it is
called.

Errors that a user can fix end in one line on standard error and exit code 2; anything else keeps
its traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from good_rt import __version__
from good_rt.errors import GoodRtError, printable

COMMANDS = {
    "demo": "good_rt.cli.demo:demo",
    "inspect": "good_rt.cli.inspect:inspect",
    "init": "good_rt.cli.init:init",
    "run": "good_rt.cli.run:run",
    "split": "good_rt.cli.split:split",
    "export": "good_rt.cli.export:export",
    "generate": "good_rt.cli.generate:generate",
    "train": "good_rt.cli.train:train",
    "detector": "good_rt.cli.main:detector",
    "classifier": "good_rt.cli.main:classifier",
    "evaluate": "good_rt.cli.evaluate:evaluate",
    "bench": "good_rt.cli.bench:bench",
}
DETECTOR_COMMANDS = {
    "build": "good_rt.cli.detector_build:build",
    "score": "good_rt.cli.detector_score:score",
}
CLASSIFIER_COMMANDS = {
    "show": "good_rt.cli.classifier_show:show",
    "save": "good_rt.cli.classifier_save:save",
}
TOOLKIT = {
    "torch",
    "diffusers",
    "onnx",
    "onnxscript",
    "faiss",
    "safetensors",
    "transformers",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "filelock",
}
"""Top-level modules that come with the extra `toolkit`."""


class LazyGroup(click.Group):
    """A group whose commands are named as module:attribute, and imported when one of them is
    needed."""

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, name = self._lazy[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


EPILOG = """\b
Examples:
  good-rt demo                               end to end on shipped images, in about five minutes
  good-rt init photos/ --classifier clf/ --model ddpm/     a job file for your own images
  good-rt generate --batch 64 -n 1000        guided OOD images for a classifier
  good-rt detector score photo.png --detector detector.onnx
"""


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="good-rt")
def cli() -> None:
    """Make an image classifier know what it was not trained on.

    Guides a diffusion model with the classifier towards out-of-distribution images, trains and
    calibrates a detector with them, and ships it as one ONNX file.
    """


@click.group(
    cls=LazyGroup,
    lazy=DETECTOR_COMMANDS,
    epilog="""\b
Examples:
  good-rt detector build --generated ood/ -o detector.onnx
  good-rt detector score photos/ --detector detector.onnx --csv scores.csv
""",
)
def detector() -> None:
    """Build detector.onnx, or score images with it."""


@click.group(
    cls=LazyGroup,
    lazy=CLASSIFIER_COMMANDS,
    epilog="""\b
Examples:
  good-rt classifier show timm:resnet18@weights.safetensors
  good-rt classifier save clf.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 -o clf/
""",
)
def classifier() -> None:
    """Show a classifier, or save it as a folder."""


def main() -> None:
    """The console script."""
    try:
        cli.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command resumes a job", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GoodRtError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        if top not in TOOLKIT:
            raise
        _fail(f"this command needs {top}; install it with: pip install 'good-rt[toolkit]'")
    except BrokenPipeError:
        sys.exit(1)
    except RuntimeError as error:
        # PyTorch's error, by its name, so that PyTorch is not imported
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _fail("the GPU is out of memory; use a smaller --batch, or another --device")
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(
            f"{error.strerror or error}{where}; check the path, its permissions and the space left"
        )


def _fail(message: str) -> None:
    click.echo(f"error: {printable(' '.join(message.split()))}", err=True)
    sys.exit(2)
