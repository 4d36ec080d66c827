"""Versioned records: JSON objects that carry their type, their version and what wrote them.

Every file that one good-rt writes for another to read is one: detector, engines, classifier,
generated set, splits, run state, training. Older versions are migrated step by step when they are
read, newer ones are refused. docs/format.md describes the records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from good_rt import __version__
from good_rt.errors import GoodRtError
from good_rt.files import parse_json, read_content, write_json

Values = dict[str, Any]
Migration = Callable[[Values], Values]
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

    def loads(self, text: str | bytes, where: Path | str) -> Values:
        """The values of a record's JSON text, as `from_record` returns them."""
        try:
            record = parse_json(text, where)
        except GoodRtError as error:
            raise GoodRtError(f"{error}; {self.remedy}") from None
        return self.from_record(record, where)

    def read(self, path: Path) -> Values:
        """The values of a record's file, as `from_record` returns them."""
        return self.loads(read_content(path), path)

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
