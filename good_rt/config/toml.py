"""TOML tables as frozen dataclasses: every key is known, every value of its type, and an error
names key and line."""

from __future__ import annotations

import difflib
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from good_rt.errors import GoodRtError

T = TypeVar("T")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


def read_settings(path: Path, kind: type[T]) -> T:
    """A TOML file as ``kind``. Raises GoodRtError that names file and line: of bad TOML, of an
    unknown key, with the nearest that is known, of a missing one, and of a value of the wrong
    type."""
    try:
        text = path.read_text()
        values = tomllib.loads(text)
    except OSError as error:
        raise GoodRtError(
            f"cannot read {path} ({error.strerror}); write one with `good-rt init`"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GoodRtError(f"{path} is not valid TOML: {error}") from None
    return _Reader(path, text).table(kind, values, ())


class _Reader:
    """One file's text, to say where a key stands."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.lines = path, text.splitlines()

    def table(self, kind: type[T], values: Mapping[str, Any], place: tuple[str, ...]) -> T:
        types_of = get_type_hints(kind)
        known = {field.name: field for field in fields(kind) if field.init}  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                raise self.unknown(key, list(known), place)
        missing = [
            name
            for name, field in known.items()
            if field.default is MISSING and field.default_factory is MISSING and name not in values
        ]
        if missing:
            within = f" in [{'.'.join(place)}]" if place else ""
            raise GoodRtError(f"{self.path}: {missing[0]!r} is missing{within}; add it")
        found = {
            key: self.value(types_of[key], value, (*place, key)) for key, value in values.items()
        }
        try:
            return kind(**found)
        except GoodRtError as error:
            raise GoodRtError(f"{self.where(place)}: {error}") from None

    def value(self, kind: Any, value: Any, place: tuple[str, ...]) -> Any:
        """A value as the type that the dataclass says."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            return self.value(next(a for a in arguments if a is not type(None)), value, place)
        if origin is Literal:
            if value not in arguments:
                raise self.wrong(
                    value,
                    f"one of {', '.join(map(str, arguments))}" + _near(value, arguments),
                    place,
                )
            return value
        if origin is tuple:
            return self.sequence(arguments, value, place)
        if origin is not None and issubclass(origin, Mapping):
            if not isinstance(value, dict):
                raise self.wrong(value, "a table", place)
            return {
                key: self.value(arguments[1], item, (*place, key)) for key, item in value.items()
            }
        if is_dataclass(kind):
            if not isinstance(value, dict):
                raise self.wrong(value, "a table", place)
            return self.table(kind, value, place)  # type: ignore[arg-type]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not kind:
            raise self.wrong(value, KINDS[kind], place)
        return value

    def sequence(
        self, arguments: Sequence[Any], value: Any, place: tuple[str, ...]
    ) -> tuple[Any, ...]:
        """A list: of any length of one type, or of as many values as there are types."""
        if not isinstance(value, list):
            raise self.wrong(value, "a list", place)
        if arguments[-1] is Ellipsis:
            return tuple(self.value(arguments[0], item, place) for item in value)
        if len(value) != len(arguments):
            raise self.wrong(value, f"a list of {len(arguments)} values", place)
        return tuple(
            self.value(kind, item, place) for kind, item in zip(arguments, value, strict=True)
        )

    def unknown(self, key: str, known: Sequence[str], place: tuple[str, ...]) -> GoodRtError:
        within = f" in [{'.'.join(place)}]" if place else ""
        near = _near(key, known) or f"; known are {', '.join(known)}"
        return GoodRtError(f"{self.where((*place, key))}: there is no {key!r}{within}{near}")

    def wrong(self, value: Any, expected: str, place: tuple[str, ...]) -> GoodRtError:
        return GoodRtError(
            f"{self.where(place)}: {'.'.join(place)} is {value!r}, but must be {expected}"
        )

    def where(self, place: tuple[str, ...]) -> str:
        """The file, and the line that a key stands on where it can be found."""
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.lines, 1):
            header = re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line)
            if header:
                table = _dotted(header[1])
                if table == place:
                    return f"{self.path}, line {number}"
            key = re.match(r"\s*([\w.\-\"']+)\s*=", line)
            if key and (*table, *_dotted(key[1])) == place:
                return f"{self.path}, line {number}"
        return str(self.path)


def _dotted(name: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in name.split("."))


def _near(value: object, known: Sequence[object]) -> str:
    """'; did you mean …?' when something known is near."""
    found = difflib.get_close_matches(str(value), [str(name) for name in known], 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
