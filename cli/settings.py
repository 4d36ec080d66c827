"""Options of commands, made from the declarations of settings: `takes(GenerationConfig, "config")`
adds one option a setting and passes the configuration to the command."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from good_rt.cli.options import PathText, renamed
from good_rt.config.declaration import Setting, assemble, settings_of
from good_rt.config.settings import ImageLimits
from good_rt.data.limits import image_limits

Command = Callable[..., Any]


def takes(
    config: type[Any], name: str, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """A decorator: options for every setting of ``config``, whose values the command gets as one
    configuration.

    Options of former versions are accepted with a deprecation warning.

    Args:
        config: A dataclass of settings.
        name: The command's parameter that gets the configuration.
        without: Fields that have no option.
    """
    settings = [setting for setting in settings_of(config) if setting.path[0] not in without]
    former: dict[str, list[Setting]] = {}
    for setting in settings:
        for flag in setting.declared.renamed_from:
            former.setdefault(flag, []).append(setting)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**parameters: Any) -> Any:
            values = {}
            for setting in settings:
                value = parameters.pop(_parameter(name, setting))
                if value is not None and (value != () or setting.optional):
                    values[setting.key] = value
            return command(**parameters, **{name: assemble(config, values)})

        wrapped: Command = run
        for flag, same in former.items():
            options = {_parameter(name, setting): setting.option for setting in same}
            wrapped = renamed(flag, options, **_kind(same[0]))(wrapped)
        for setting in reversed(settings):
            wrapped = _option(name, setting)(wrapped)
        return wrapped

    return decorate


def image_limit_options(command: Command) -> Command:
    """A decorator: options for the limits of image files, which hold while the command runs."""

    @functools.wraps(command)
    def run(limits: ImageLimits, **parameters: Any) -> Any:
        with image_limits(limits):
            return command(**parameters)

    return takes(ImageLimits, "limits")(run)


def _option(name: str, setting: Setting) -> Callable[[Command], Command]:
    declared, default = setting.declared, setting.default
    flags = [setting.option] if declared.short is None else [declared.short, setting.option]
    shown: bool | str = declared.default_text or (default is not None and default != ())
    kind = _kind(setting)
    if kind.get("is_flag") and "/" not in setting.option:
        shown = False  # a flag is off unless it is given
    if isinstance(kind.get("type"), Numbers):
        shown = ",".join(f"{number:g}" for number in default)
    return click.option(
        *flags,
        _parameter(name, setting),
        default=default,
        show_default=shown,
        help=declared.help,
        **kind,
    )


def _kind(setting: Setting) -> dict[str, Any]:
    """What click needs to know of a setting's type."""
    declared, kinds = setting.declared, setting.value_types
    free = [kind for kind in kinds if get_origin(kind) is not Literal]
    arguments: dict[str, Any] = {} if declared.metavar is None else {"metavar": declared.metavar}
    if not free:
        return {"type": click.Choice([str(choice) for choice in setting.choices])}
    if setting.choices:  # a number, or a word in its place
        word = str(setting.choices[0])
        return arguments | {"type": NumberOr(word), "is_flag": False, "flag_value": word}
    kind, parts = free[0], get_args(free[0])
    if kind is bool:
        return arguments if "/" in setting.option else arguments | {"is_flag": True}
    if get_origin(kind) is tuple:
        if parts[-1] is not Ellipsis:
            return arguments | {"type": parts}
        if parts[0] is float:
            return arguments | {"type": Numbers()}
        return arguments | {"type": _single(parts[0], setting), "multiple": True}
    return arguments | {"type": _single(kind, setting)}


def _single(kind: Any, setting: Setting) -> Any:
    bounds = setting.declared.bounds
    if get_origin(kind) is Literal:
        return click.Choice([str(choice) for choice in get_args(kind)])
    if Path in setting.value_types:
        return PathText()
    if kind is str:
        return str
    if bounds is None:
        return kind
    if kind is int:
        low, high = (None if b is None else int(b) for b in (bounds.low, bounds.high))
        return click.IntRange(low, high)
    return click.FloatRange(bounds.low, bounds.high, bounds.open_low, bounds.open_high)


def _parameter(name: str, setting: Setting) -> str:
    return f"{name}_{'_'.join(setting.path)}"


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Numbers with commas between them."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 0.485,0.456,0.406", param, ctx)


class NumberOr(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A whole number of at least 1, or one word in its place."""

    name = "number"

    def __init__(self, word: str) -> None:
        self.word = word

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == self.word or isinstance(value, int):
            return value
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a number of at least 1 nor {self.word}", param, ctx)
        return number
