"""How a setting is declared: one dataclass field with its help, from which everything else follows.

`settings_of` lists a configuration's settings; `good_rt.cli.settings` turns them into options,
`good_rt.config.toml` into keys of a TOML table, scripts/settings_tables.py into documentation. A
field that holds another configuration is flattened: its settings stand beside the others.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from good_rt.errors import GoodRtError

Config = TypeVar("Config")
_KEY = "good_rt"


@dataclass(frozen=True)
class Bounds:
    """The values that a number may have; ``open_low`` excludes the lowest one, ``open_high`` the
    highest."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def unmet_by(self, number: float) -> str | None:
        """What a number must be instead; None where it is within the bounds."""
        if self.low is not None and (number < self.low or (self.open_low and number == self.low)):
            return f"{'greater than' if self.open_low else 'at least'} {self.low:g}"
        if self.high is not None and (
            number > self.high or (self.open_high and number == self.high)
        ):
            return f"{'less than' if self.open_high else 'at most'} {self.high:g}"
        return None


@dataclass(frozen=True)
class Declaration:
    """What a field says of its setting beside its type and default."""

    help: str
    bounds: Bounds | None = None
    key: str | None = None
    """TOML key and option name, where the field's own name would not say enough by itself."""
    option: str | None = None
    """Option name, where another command has an option of the key's name."""
    short: str | None = None
    metavar: str | None = None
    default_text: str | None = None
    """What help shows as the default, where the value itself would not be understood."""
    renamed_from: tuple[str, ...] = ()
    """Options of former versions, accepted with a deprecation warning."""
    required_in_file: bool = False
    """Whether a TOML file must give it, although an option has a default."""


@dataclass(frozen=True)
class Nested:
    """A field whose configuration is flattened, without the settings named in ``without``."""

    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration: where it is stored, its names, type, default and help."""

    path: tuple[str, ...]
    type: Any
    default: Any
    declared: Declaration

    @property
    def key(self) -> str:
        return self.declared.key or self.path[-1]

    @property
    def option(self) -> str:
        if self.declared.option is not None:
            return self.declared.option
        name = self.key.replace("_", "-")
        return f"--{name}/--no-{name}" if self.default is True else f"--{name}"

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def optional(self) -> bool:
        """Whether None is a value."""
        return type(None) in get_args(self.type)

    @property
    def value_types(self) -> tuple[Any, ...]:
        """The types of its values other than None."""
        if get_origin(self.type) in (Union, types.UnionType):
            return tuple(kind for kind in get_args(self.type) if kind is not type(None))
        return (self.type,)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The literal values that it may have; empty where any value of its type is allowed."""
        return tuple(
            value
            for kind in self.value_types
            if get_origin(kind) is Literal
            for value in get_args(kind)
        )


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    **names: Any,
) -> Any:
    """A dataclass field that declares a setting.

    Args:
        default: Value where the user gives none; without it the setting is required.
        help: One sentence, as help, documentation and job files show it.
        low: Lowest value of a number.
        high: Highest value of a number.
        open_low: Whether ``low`` itself is excluded.
        open_high: Whether ``high`` itself is excluded.
        names: Further fields of `Declaration`.
    """
    unbounded = low is None and high is None
    bounds = None if unbounded else Bounds(low, high, open_low, open_high)
    metadata = {_KEY: Declaration(help, bounds, **names)}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def nested(kind: type[Any], without: Collection[str] = ()) -> Any:
    """A dataclass field that holds another configuration, whose settings are flattened."""
    return field(default_factory=kind, metadata={_KEY: Nested(tuple(without))})


def settings_of(config: type[Any], without: Collection[str] = ()) -> list[Setting]:
    """Every setting of a configuration in the order of declaration, nested ones flattened.

    Args:
        config: A dataclass whose fields are made by `setting` or `nested`.
        without: Field names to leave out.
    """
    hints, listed = get_type_hints(config), []
    for part in fields(config):
        declared = part.metadata.get(_KEY)
        if part.name in without or declared is None:
            continue
        if isinstance(declared, Nested):
            inner = _default(part)
            for below in settings_of(type(inner), declared.without):
                value = inner
                for name in below.path:
                    value = getattr(value, name)
                listed.append(
                    dataclasses.replace(below, path=(part.name, *below.path), default=value)
                )
        else:
            listed.append(Setting((part.name,), hints[part.name], _default(part), declared))
    return listed


def assemble(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration from a flat mapping of keys; settings that are not in it keep their default.

    Raises:
        GoodRtError: a value is refused by the configuration's own check.
    """
    tree: dict[str, Any] = {}
    for setting in settings_of(config):
        if setting.key in values:
            branch = tree
            for name in setting.path[:-1]:
                branch = branch.setdefault(name, {})
            branch[setting.path[-1]] = values[setting.key]
    return _build(config, tree)


def check_types(config: Any) -> None:
    """Checks that every setting of a configuration has a value of its type.

    Raises:
        GoodRtError: a value is not of its type, or not one of its choices.
    """
    hints = get_type_hints(type(config))
    for part in fields(config):
        declared, value = part.metadata.get(_KEY), getattr(config, part.name)
        if isinstance(declared, Declaration):
            setting = Setting((part.name,), hints[part.name], _default(part), declared)
            if not any(_is_of(value, kind) for kind in (*setting.value_types, *_none(setting))):
                choices = setting.choices and f"one of {', '.join(map(str, setting.choices))}"
                kinds = " or ".join(getattr(kind, "__name__", "") for kind in setting.value_types)
                raise GoodRtError(
                    f"{setting.key} is {value!r}, but must be {choices or f'of type {kinds}'}"
                )
        elif isinstance(declared, Nested) and not is_dataclass(value):
            raise GoodRtError(f"{part.name} is {value!r}, but must be a configuration")


def check_bounds(config: Any) -> None:
    """Checks the numbers of a configuration against the declared bounds; NaN is in none.

    Raises:
        GoodRtError: a number is NaN, out of its bounds, or an integer of more than 63 bits.
    """
    for part in fields(config):
        declared, value = part.metadata.get(_KEY), getattr(config, part.name)
        if not isinstance(declared, Declaration):
            continue
        key, bounds = declared.key or part.name, declared.bounds or Bounds()
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                continue
            if math.isnan(number):
                raise GoodRtError(f"{key} is nan, but must be a number")
            if isinstance(number, int) and number >= 2**63:
                raise GoodRtError(f"{key} is {number}, but must be below 2^63")
            needed = bounds.unmet_by(number)
            if needed is not None:
                raise GoodRtError(f"{key} is {number}, but must be {needed}")


def _none(setting: Setting) -> tuple[Any, ...]:
    return (type(None),) if setting.optional else ()


def _is_of(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(kinds) == len(value) and all(map(_is_of, value, kinds))
    if origin is not None:  # a table
        return isinstance(value, origin)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _build(config: type[Config], tree: Mapping[str, Any]) -> Config:
    arguments = dict(tree)
    for part in fields(config):  # type: ignore[arg-type]
        declared = part.metadata.get(_KEY)
        if isinstance(declared, Nested) and isinstance(tree.get(part.name), dict):
            base = _default(part)
            arguments[part.name] = _replace(base, tree[part.name])
    return config(**arguments)


def _replace(base: Any, tree: Mapping[str, Any]) -> Any:
    changes = {
        name: _replace(getattr(base, name), value)
        if isinstance(value, dict) and is_dataclass(getattr(base, name))
        else value
        for name, value in tree.items()
    }
    return dataclasses.replace(base, **changes)


def _default(part: dataclasses.Field[Any]) -> Any:
    if part.default_factory is not MISSING:
        factory: Callable[[], Any] = part.default_factory
        return factory()
    return part.default
