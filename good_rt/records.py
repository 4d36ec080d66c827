"""Versioned records: JSON objects that carry their type, their version and what wrote them.

Every file that one good-rt writes for another to read is one: detector, engines, classifier,
generated set, splits, run state, training, evaluation. Older versions are migrated step by step
when they are read, newer ones are refused. The keys of a record are the fields of a dataclass,
whose types and bounds `from_json` checks. docs/format.md describes the records.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from good_rt import __version__
from good_rt.config.declaration import Bounds
from good_rt.errors import GoodRtError
from good_rt.files import parse_json, read_content, write_json

Fields = TypeVar("Fields")
Values = dict[str, Any]
Migration = Callable[[Values], Values]
Reader = Callable[[Any], Any]
"""Turns a JSON value into a declared type."""
WRITER = re.compile(r"good-rt [0-9A-Za-z.+-]{1,40}")
"""What ``written_by`` must look like to be quoted in an error."""


@dataclass(frozen=True)
class RecordType:
    """A type of record, and how its older versions become the current one.

    Args:
        name: The record's ``type``.
        remedy: What to do about a damaged one: the end of the error's line.
        migrations: Functions that change nothing in place; the n-th turns the values of version n
            into those of version n + 1, and the last one's result is the current version.
    """

    name: str
    remedy: str
    migrations: tuple[Migration, ...] = ()

    @property
    def version(self) -> int:
        """The version that is written."""
        return len(self.migrations) + 1

    def to_record(self, values: Mapping[str, Any]) -> Values:
        """``values`` after the header ``type``, ``version`` and ``written_by``."""
        header = {
            "type": self.name,
            "version": self.version,
            "written_by": f"good-rt {__version__}",
        }
        return {**header, **values}

    def from_record(self, record: Mapping[str, Any], where: Path | str) -> Values:
        """The values of a record at the current version, without the header.

        A record without a header is of the version that its ``format`` says, else of version 1.

        Args:
            record: A JSON object.
            where: Its file, for errors.

        Raises:
            GoodRtError: the record is of another type, of a newer version, or damaged.
        """
        values = dict(record)
        name, version, writer = (values.pop(key, None) for key in ("type", "version", "written_by"))
        if name is None and version is None:
            version = values.get("format", 1)
        elif name != self.name:
            raise GoodRtError(
                f"{where} is a record of type {name!r}, not {self.name!r}; give another file"
            )
        if type(version) is not int or version < 1:
            raise self.damaged(where, f"its version is {version!r}")
        if version > self.version:
            raise newer_version(where, f"{self.name} version {version}", self.version, writer)
        try:
            for migrate in self.migrations[version - 1 :]:
                values = migrate(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.damaged(where, error) from None
        return values

    def json_object(self, text: str | bytes, where: Path | str) -> Values:
        """The JSON object of a text that belongs to a record; errors say what to do about it."""
        try:
            return parse_json(text, where)
        except GoodRtError as error:
            raise GoodRtError(f"{error}; {self.remedy}") from None

    def loads(self, text: str | bytes, where: Path | str) -> Values:
        """The values of a record's JSON text, as `from_record` returns them."""
        return self.from_record(self.json_object(text, where), where)

    def read(self, path: Path) -> Values:
        """The values of a record's file, as `from_record` returns them."""
        return self.loads(read_content(path), path)

    def read_as(self, kind: type[Fields], path: Path) -> Fields:
        """The values of a record's file as the dataclass ``kind`` declares them."""
        return self.as_fields(kind, self.read(path), path)

    def as_fields(self, kind: type[Fields], values: object, where: Path | str) -> Fields:
        """The values of a record as the dataclass ``kind`` declares them.

        Raises:
            GoodRtError: a key is missing or unknown, or a value is not what it must be.
        """
        try:
            return from_json(kind, values)
        except ValueError as error:
            raise self.damaged(where, str(error)) from None

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        """Writes ``values`` as a record, whole or not at all."""
        write_json(path, self.to_record(values))

    def damaged(self, where: Path | str, reason: Exception | str) -> GoodRtError:
        """The error for a record whose values are not what they must be."""
        if isinstance(reason, Exception):
            reason = f"{type(reason).__name__}: {reason}"
        return GoodRtError(f"{where} is damaged ({reason}); {self.remedy}")


def newer_version(
    where: Path | str, found: str, newest: int, written_by: object = None
) -> GoodRtError:
    """The error for a file of a version that this good-rt does not know.

    Args:
        where: The file.
        found: Its type and version, such as "splits version 3".
        newest: The newest version that is read.
        written_by: What the file says of its writer.
    """
    known = isinstance(written_by, str) and WRITER.fullmatch(written_by)
    return GoodRtError(
        f"{where} was written by {written_by if known else 'a newer good-rt'} ({found}); this "
        f"good-rt {__version__} reads up to version {newest}: upgrade good-rt"
    )


def drop_format(values: Values) -> Values:
    """Version 1 to 2 of most records: the header replaces the number ``format``."""
    return {key: value for key, value in values.items() if key != "format"}


class ValueCondition(Protocol):
    """What the second part of an `Annotated` field demands of a value, such as `Bounds`."""

    def unmet_by(self, value: Any) -> str | None:
        """What the value must be instead; None where it is right."""


@dataclass(frozen=True)
class InsideFolder:
    """The condition of a path that does not leave the record's folder."""

    def unmet_by(self, value: str) -> str | None:
        leaves = os.path.isabs(value) or LEAVING.search(value) is not None
        return "a path inside the folder" if leaves else None


LEAVING = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[./\\]*$|\0")
"""A path with .. or a null character in it, or without a name."""
Count = Annotated[int, Bounds(low=1)]
Index = Annotated[int, Bounds(low=0)]
InnerPath = Annotated[str, InsideFolder()]


def from_json(kind: type[Fields], value: object) -> Fields:
    """A JSON object as the dataclass ``kind``: every key is a field, every value of its type.

    Fields are dataclasses, tuples (JSON lists), mappings of texts, literals, unions, str, bool,
    int, float, None or Any; `Annotated` adds a `ValueCondition`. Numbers are finite, and whole
    numbers fit into 64 bits.

    Raises:
        ValueError: says which key is not as declared, such as "resize.crop is 'x', but must be a
            whole number".
    """
    declared: Any = kind
    fields_read: Fields = _reader(declared)(value)
    return fields_read


class _WrongValueError(ValueError):
    """A value that is not as declared, and its keys from the outermost to its own."""

    def __init__(self, problem: str) -> None:
        self.problem, self.keys = problem, list[str]()

    def within(self, key: object) -> _WrongValueError:
        text = str(key)
        self.keys.insert(0, text if re.fullmatch(r"[\w -]{1,40}", text) else _shown(text))
        return self

    def __str__(self) -> str:
        return f"{'.'.join(self.keys)}{self.problem}".lstrip(": ")


def _shown(value: object) -> str:
    """A JSON value in an error."""
    if isinstance(value, (list, tuple, dict)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong(value: object, expected: str) -> _WrongValueError:
    return _WrongValueError(f" is {_shown(value)}, but must be {expected}")


def _read_at(key: object, read: Reader, value: object) -> Any:
    try:
        return read(value)
    except _WrongValueError as error:
        raise error.within(key) from None


SCALARS = {
    bool: "true or false",
    int: "a whole number of 64 bits",
    float: "a finite number",
    str: "a text",
    NoneType: "null",
}
"""The types of single JSON values, and what an error calls them."""


@cache
def _reader(kind: Any) -> Reader:
    """The function that turns a JSON value into the type ``kind``."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if isinstance(kind, type) and is_dataclass(kind):
        return partial(_read_object, kind)
    if origin is Annotated:
        return partial(_read_condition, _reader(parts[0]), parts[1])
    if origin is Literal:
        return partial(_read_choice, parts)
    if origin in (Union, UnionType):
        others = tuple(part for part in parts if part is not NoneType)
        readers = tuple(_reader(part) for part in others)
        expected = " or ".join(SCALARS.get(part, "an object") for part in others)
        return partial(_read_union, readers, NoneType in parts, expected)
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return partial(_read_list, _reader(parts[0]))
        return partial(_read_values, tuple(_reader(part) for part in parts))
    if origin is not None and issubclass(origin, Mapping):
        return partial(_read_table, _reader(parts[1]))
    return {int: _read_whole, float: _read_number}.get(kind, partial(_read_scalar, kind))


@cache
def _declared(kind: Any) -> dict[str, tuple[Reader, bool]]:
    """The fields of a dataclass by name: what reads them, and whether they must be there."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: (
            _reader(hints[field.name]),
            field.default is MISSING and field.default_factory is MISSING,
        )
        for field in fields(kind)
    }


def _read_object(kind: Callable[..., Any], value: object) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(value, "an object")
    declared = _declared(kind)
    for key in value:
        if key not in declared:
            raise _WrongValueError(" is not a known key").within(key)
    for key, (_, required) in declared.items():
        if required and key not in value:
            raise _WrongValueError(" is missing").within(key)
    values = {key: _read_at(key, declared[key][0], item) for key, item in value.items()}
    try:
        return kind(**values)
    except (ValueError, GoodRtError) as error:  # of the dataclass's own check
        raise _WrongValueError(f": {error}") from None


def _read_condition(read: Reader, condition: ValueCondition, value: object) -> Any:
    result = read(value)
    needed = condition.unmet_by(result)
    if needed is not None:
        raise _wrong(value, needed)
    return result


def _read_choice(choices: tuple[object, ...], value: object) -> Any:
    if not isinstance(value, (str, int)) or value not in choices:
        raise _wrong(value, f"one of {', '.join(map(str, choices))}")
    return value


def _read_union(readers: tuple[Reader, ...], optional: bool, expected: str, value: object) -> Any:
    if value is None and optional:
        return None
    if len(readers) == 1:
        return readers[0](value)
    for read in readers:
        try:
            return read(value)
        except _WrongValueError:
            continue
    raise _wrong(value, expected)


def _read_list(read: Reader, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, "a list")
    return tuple([_read_at(index, read, item) for index, item in enumerate(value)])


def _read_values(readers: tuple[Reader, ...], value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, "a list")
    if len(value) != len(readers):
        raise _WrongValueError(f" has {len(value)} values, but must have {len(readers)}")
    return tuple([_read_at(index, readers[index], item) for index, item in enumerate(value)])


def _read_table(read: Reader, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(value, "an object")
    return {key: _read_at(key, read, item) for key, item in value.items()}


def _read_whole(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise _wrong(value, SCALARS[int])


def _read_number(value: object) -> float:
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    raise _wrong(value, SCALARS[float])


def _read_scalar(kind: type[Any], value: object) -> Any:
    if isinstance(value, kind):
        return value
    raise _wrong(value, SCALARS[kind])
