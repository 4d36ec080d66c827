"""TOML files as configurations: every key is known, every value of its type, and an error names key
and line."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from good_rt.config.declaration import Setting, assemble, settings_of
from good_rt.errors import GoodRtError
from good_rt.files import printable, read_text

Table = TypeVar("Table")
KeyPath = tuple[str, ...]
"""The tables that a key is in, from the outermost, and the key."""
PATH_OR_TEXT = str | Path
"""The type of a path, which a file holds as a text."""
TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
}


def read_toml(
    path: Path,
    config: type[Table],
    migrate: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: values,
    former_keys: Mapping[KeyPath, KeyPath] | None = None,
) -> Table:
    """A TOML file as the configuration ``config``.

    Args:
        path: The file.
        config: A dataclass whose fields are settings; one that holds another dataclass is a table.
        migrate: Turns the tables of an older version into those of this one.
        former_keys: The key of an older version by that of this one.

    Raises:
        GoodRtError: names file and line of bad TOML, an unknown key (with the nearest known one), a
            missing one, or a value of the wrong type.
    """
    try:
        text = read_text(path)
    except GoodRtError as error:
        raise GoodRtError(f"{error}; write one with `good-rt init`") from None
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # bad TOML, or an integer of thousands of digits
        raise GoodRtError(f"{path} is not valid TOML: {error}") from None
    reader = _Reader(path, text, former_keys or {})
    try:
        tables = migrate(values)
    except GoodRtError as error:
        raise GoodRtError(f"{reader.where(('version',))}: {error}") from None
    return reader.table(config, tables, ())


def toml_value(value: Any) -> str:
    """A value as TOML writes it.

    Raises:
        GoodRtError: a text has bytes that are not UTF-8, which TOML cannot write.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{{pairs}}}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise GoodRtError(
                f"{printable(value)} is not UTF-8, so it cannot stand in a TOML file; rename it"
            )
        # JSON's escapes are TOML's, but for the delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value)


def toml_key(key: str) -> str:
    """A key as TOML writes it, in quotes where it needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


class _Reader:
    """One file's text, to say where a key stands."""

    def __init__(self, path: Path, text: str, former_keys: Mapping[KeyPath, KeyPath]) -> None:
        self.path, self.lines, self.former_keys = path, text.split("\n"), former_keys

    def table(self, config: type[Table], values: Mapping[str, Any], key_path: KeyPath) -> Table:
        known = {setting.key: setting for setting in settings_of(config)}
        for key in values:
            if key not in known:
                raise self.unknown(key, list(known), key_path)
        for key, setting in known.items():
            needed = setting.required or setting.declared.required_in_file
            if needed and key not in values and not is_dataclass(setting.type):
                within = f" in [{'.'.join(key_path)}]" if key_path else ""
                raise GoodRtError(f"{self.path}: {key!r} is missing{within}; add it")
        # a missing table is read like an empty one, which names the first key that it needs
        given = dict(values)
        for key, setting in known.items():
            if setting.required and is_dataclass(setting.type):
                given.setdefault(key, {})
        read = {
            key: self.setting(known[key], value, (*key_path, key)) for key, value in given.items()
        }
        try:
            return assemble(config, read)
        except GoodRtError as error:
            raise GoodRtError(f"{self.where(key_path)}: {error}") from None

    def setting(self, setting: Setting, value: Any, key_path: KeyPath) -> Any:
        kinds = setting.value_types
        if setting.choices:
            free = [kind for kind in kinds if get_origin(kind) is not Literal]
            if value in setting.choices:
                return value
            if not free:
                choices = ", ".join(map(str, setting.choices))
                near = _near(value, setting.choices)
                raise self.wrong(value, f"one of {choices}{near}", key_path)
            kinds = tuple(free)
        read = self.value(PATH_OR_TEXT if Path in kinds else kinds[0], value, key_path)
        bounds = setting.declared.bounds
        # check_bounds looks at each number of a list, when the configuration is put together
        needed = bounds.unmet_by(read) if bounds and not isinstance(read, tuple) else None
        if needed is not None:
            raise self.wrong(value, needed, key_path)
        return read

    def value(self, kind: Any, value: Any, key_path: KeyPath) -> Any:
        """A value as the type that the declaration says."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            if value not in arguments:
                choices = ", ".join(map(str, arguments))
                raise self.wrong(value, f"one of {choices}{_near(value, arguments)}", key_path)
            return value
        if origin is tuple:
            return self.sequence(arguments, value, key_path)
        if origin is not None and issubclass(origin, Mapping):
            if not isinstance(value, dict):
                raise self.wrong(value, "a table", key_path)
            for key in value:
                self.value(arguments[0], key, (*key_path, key))
            return {
                key: self.value(arguments[1], item, (*key_path, key)) for key, item in value.items()
            }
        if kind == PATH_OR_TEXT:
            if value == "":
                raise self.wrong(value, "a path", key_path)
            kind = str
        if is_dataclass(kind):
            if not isinstance(value, dict):
                raise self.wrong(value, "a table", key_path)
            return self.table(kind, value, key_path)  # type: ignore[arg-type]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise self.wrong(
                    "a whole number of too many digits", "a number", key_path
                ) from None
        if type(value) is not kind:
            raise self.wrong(value, TYPE_NAMES[kind], key_path)
        return value

    def sequence(self, arguments: Sequence[Any], value: Any, key_path: KeyPath) -> tuple[Any, ...]:
        """A list: of any length of one type, or of as many values as there are types."""
        if not isinstance(value, list):
            raise self.wrong(value, "a list", key_path)
        if arguments[-1] is Ellipsis:
            return tuple(self.value(arguments[0], item, key_path) for item in value)
        if len(value) != len(arguments):
            raise self.wrong(value, f"a list of {len(arguments)} values", key_path)
        return tuple(
            self.value(kind, item, key_path) for kind, item in zip(arguments, value, strict=True)
        )

    def unknown(self, key: str, known: Sequence[str], key_path: KeyPath) -> GoodRtError:
        within = f" in [{'.'.join(key_path)}]" if key_path else ""
        near = _near(key, known) or f"; known are {', '.join(known)}"
        return GoodRtError(f"{self.where((*key_path, key))}: there is no {key!r}{within}{near}")

    def wrong(self, value: Any, expected: str, key_path: KeyPath) -> GoodRtError:
        name = ".".join(self.name(key_path))
        return GoodRtError(f"{self.where(key_path)}: {name} is {value!r}, but must be {expected}")

    def name(self, key_path: KeyPath) -> KeyPath:
        """The key as the file spells it: by its old name in a file of an older version."""
        old = self.former_keys.get(key_path)
        return old if old is not None and not self._line(key_path) and self._line(old) else key_path

    def where(self, key_path: KeyPath) -> str:
        """The file, and the line that a key stands on where it can be found."""
        line = self._line(self.name(key_path))
        return f"{self.path}, line {line}" if line else str(self.path)

    def _line(self, key_path: KeyPath) -> int | None:
        table: KeyPath = ()
        for number, line in enumerate(self.lines, 1):
            header = re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line)
            if header:
                table = _dotted(header[1])
                if table == key_path:
                    return number
            key = re.match(r"\s*([\w.\-\"']+)\s*=", line)
            if key and (*table, *_dotted(key[1])) == key_path:
                return number
        return None


def _dotted(name: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in name.split("."))


def _near(value: object, known: Sequence[object]) -> str:
    """'; did you mean …?' when a known name is near."""
    near = difflib.get_close_matches(str(value), [str(name) for name in known], 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
