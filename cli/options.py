"""Options that several commands share beside their settings, and JSON on standard output."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from good_rt.errors import GoodRtError
from good_rt.files import DEMO_IMAGES, demo_path


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
        return Path(value)


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


def renamed(old: str, new: str, parameter: str, **kind: Any) -> Callable[[Any], Any]:
    """A hidden option ``old`` whose values go to ``parameter``, the one of ``new``, with a warning.

    Place it above the option ``new``.
    """

    def move(context: click.Context, option: click.Parameter, value: Any) -> None:
        if value is not None and value != ():
            click.echo(f"warning: {old} is deprecated, use {new}", err=True)
            context.ensure_object(dict)[parameter] = value

    return click.option(
        old, f"former_{parameter}", hidden=True, is_eager=True, expose_value=False, callback=move,
        **kind,
    )  # fmt: skip


def given_or_renamed(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The option's value, or that of its former name; of repeated options both."""
    former = (context.obj or {}).get(parameter.name)
    if former is None:
        return value
    if parameter.multiple:
        return (*former, *value)
    if is_given(context, parameter.name):
        raise click.UsageError(f"{parameter.opts[-1]} is also given by its former name; give one")
    return former


def engine_folder_option(command: Any) -> Any:
    """--engine-folder, formerly --engines."""
    command = click.option(
        "--engine-folder",
        type=PATH,
        default=Path("good-rt-engines"),
        show_default=True,
        callback=given_or_renamed,
        help="Folder of the exported engines; missing ones are exported into it.",
    )(command)
    return renamed("--engines", "--engine-folder", "engine_folder", type=PATH)(command)


GENERATED = Existing("holds no generated images; create them with `good-rt generate`")


def generated_option(required: bool) -> Callable[[Any], Any]:
    """--generated, the sets of guided images, formerly --ood."""

    def check(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        folders = given_or_renamed(context, parameter, value)
        if required and not folders:
            raise click.MissingParameter(ctx=context, param=parameter)
        return folders

    def add(command: Any) -> Any:
        command = click.option(
            "--generated",
            multiple=True,
            type=GENERATED,
            callback=check,
            help="Folder of generated images (from `good-rt generate`); may be repeated."
            + ("  [required]" if required else ""),
        )(command)
        return renamed("--ood", "--generated", "generated", type=GENERATED, multiple=True)(command)

    return add


def test_set_option(help: str) -> Callable[[Any], Any]:
    """--test-set NAME=PATH, real OOD images that only the evaluation uses."""

    def existing(
        context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
    ) -> dict[str, Path]:
        paths = named_paths(context, parameter, values)
        return {name: IMAGES_PATH.convert(path, parameter, context) for name, path in paths.items()}

    return click.option(
        "--test-set",
        "test_sets",
        multiple=True,
        callback=existing,
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


def named_paths(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Path]:
    """A callback for options of the form NAME=PATH."""
    pairs = {}
    former = (context.obj or {}).get(parameter.name) or ()
    for value in (*values, *former):
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise click.BadParameter(f"{value!r} is not NAME=PATH")
        pairs[name] = Path(path)
    return pairs


def emit_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))
