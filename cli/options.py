"""Options that several commands share beside their settings, and JSON on standard output."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from good_rt.config.settings import ENGINE_FOLDER
from good_rt.errors import GoodRtError
from good_rt.files import DEMO_IMAGES, demo_path, printable, user_path


def refuse_empty(value: Any, parameter: click.Parameter | None) -> None:
    """Raises GoodRtError for an empty text in place of a path, which would mean the current
    folder."""
    if value == "" and parameter is not None:
        is_option = isinstance(parameter, click.Option)
        name = "/".join(parameter.opts) if is_option else parameter.human_readable_name
        raise GoodRtError(f"{name} is empty; give a path")


class PathText(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A path, or a spec with paths in it, that stays text."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        refuse_empty(value, param)
        return value


class PathOf(click.Path):
    """A path, which may be missing."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        refuse_empty(value, param)
        return user_path(value)


class Existing(PathOf):
    """A path that must exist, checked before anything heavy is imported; ``lack`` ends the
    error."""

    def __init__(self, lack: str) -> None:
        super().__init__()
        self.lack = lack

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if not path.exists():
            raise GoodRtError(f"{path} {self.lack}")
        return path


class IdImages(Existing):
    """A source of ID images; "demo" names the demo's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        refuse_empty(value, param)
        return super().convert(demo_path(value, DEMO_IMAGES), param, ctx)


class NamedPath(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """NAME=PATH as (name, path)."""

    name = "name=path"

    def __init__(self, path: PathOf) -> None:
        self.path = path

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        if isinstance(value, tuple):
            return value
        name, _, path = str(value).partition("=")
        form = (param and param.metavar) or "NAME=PATH"
        if path and "/" in name and user_path(value).exists():
            self.fail(f"{value!r} is a path; give {form}", param, ctx)
        if not name or not path:
            self.fail(f"{value!r} is not {form}", param, ctx)
        return name, self.path.convert(path, param, ctx)


PATH = PathOf()
NO_IMAGES = (
    "does not exist; give a folder per class, .tar shards, a Hugging Face dataset, .npz, or a "
    "splits.json"
)
IMAGES_PATH, ID_IMAGES = Existing(NO_IMAGES), IdImages(NO_IMAGES)

id_option = click.option(
    "--id",
    "id_data",
    type=ID_IMAGES,
    default=DEMO_IMAGES,
    show_default="the demo's",
    help="In-distribution images: a folder per class, .tar shards, a Hugging Face dataset, .npz; "
    "or their splits.json.",
)
device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    help="Device that runs the models; images differ between devices, which round differently.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def is_given(context: click.Context, parameter: str | None) -> bool:
    """Whether the user gave a parameter, rather than its default being taken."""
    source = context.get_parameter_source(parameter or "")
    return source not in (None, click.core.ParameterSource.DEFAULT)


def renamed(old: str, options: Mapping[str, str], **kind: Any) -> Callable[[Any], Any]:
    """A decorator: a hidden option ``old``, whose value the command gets as that of other options.

    It prints a deprecation warning. Place it below those options.

    Args:
        old: Option of a former version.
        options: What it is called now: options by the command's parameters.
        kind: The arguments of `click.option`.
    """
    former = f"former_{'_'.join(options)}_{old.partition('/')[0].strip('-').replace('-', '_')}"

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def run(**parameters: Any) -> Any:
            value = parameters.pop(former)
            if value is None or value == ():
                return command(**parameters)
            used = _used(old, value)
            now = " and ".join(_used(option, value) for option in options.values())
            for parameter in options:
                if kind.get("multiple"):
                    parameters[parameter] = (*value, *parameters[parameter])
                elif is_given(click.get_current_context(), parameter):
                    raise click.UsageError(f"{used} is the former name of {now}; give only {now}")
                else:
                    parameters[parameter] = value
            click.echo(f"warning: {used} is deprecated, use {now}", err=True)
            return command(**parameters)

        return click.option(old, former, hidden=True, default=None, **kind)(run)

    return decorate


def _used(option: str, value: Any) -> str:
    """The half of an option --x/--no-x that gives this value; other options as they are."""
    yes, slash, no = option.partition("/")
    return no if slash and value is False else yes


def engine_folder_option(command: Any) -> Any:
    """--engine-folder, formerly --engines."""
    command = renamed("--engines", {"engine_folder": "--engine-folder"}, type=PATH)(command)
    return click.option(
        "--engine-folder",
        type=PATH,
        default=ENGINE_FOLDER,
        show_default=True,
        help="Folder of the exported engines; missing ones are exported into it.",
    )(command)


GENERATED = Existing("holds no generated images; create them with `good-rt generate`")


def generated_option(required: bool) -> Callable[[Any], Any]:
    """--generated, the sets of guided images, formerly --ood."""
    option = click.option(
        "--generated",
        multiple=True,
        type=GENERATED,
        help="Folder of generated images (from `good-rt generate`); may be repeated."
        + ("  [required]" if required else ""),
    )
    former = renamed("--ood", {"generated": "--generated"}, type=GENERATED, multiple=True)

    def add(command: Any) -> Any:
        @functools.wraps(command)
        def run(**parameters: Any) -> Any:
            if required and not parameters["generated"]:
                raise click.MissingParameter(
                    ctx=click.get_current_context(),
                    param_hint="'--generated'",
                    param_type="option",
                )
            return command(**parameters)

        return option(former(run))

    return add


def test_set_option(help: str) -> Callable[[Any], Any]:
    """--test-set NAME=PATH, real OOD images that only the evaluation uses."""
    return click.option(
        "--test-set",
        "test_sets",
        multiple=True,
        type=NamedPath(IMAGES_PATH),
        metavar="NAME=PATH",
        help=help,
    )


def out_option(default: str, text: str) -> Callable[[Any], Any]:
    """--out of a folder or, where the default has a suffix, of a file; a path that cannot be one is
    refused at once."""
    kind, other = ("file", "folder") if Path(default).suffix else ("folder", "file")

    def checked(context: click.Context, parameter: click.Parameter, out: Path) -> Path:
        if out.is_dir() if kind == "file" else out.is_file():
            raise GoodRtError(
                f"-o {out} is a {other}, and it must be a {kind}; choose another path"
            )
        above = next((parent for parent in out.absolute().parents if parent.exists()), out)
        if not above.is_dir() or not os.access(out if out.exists() else above, os.W_OK):
            raise GoodRtError(f"-o {out}: {above} cannot be written to; choose another path")
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


def print_skipped(reasons: Iterable[str]) -> None:
    """What was left out and why, a line a reason on standard error."""
    for reason in reasons:
        click.echo(printable(f"skipped: {reason}"), err=True)


def emit_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))
