"""The header of a record, migration from version to version, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from good_rt import __version__
from good_rt.errors import GoodRtError
from good_rt.records import RecordType, drop_format, newer_version


def rename(values: dict[str, Any]) -> dict[str, Any]:
    return {"length": values["size"]}


def double(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "length": 2 * values["length"]}


RULER = RecordType("ruler", "measure again", (rename, double))
HEADER = {"type": "ruler", "version": 3, "written_by": f"good-rt {__version__}"}


def test_the_header_comes_first_and_is_removed_when_reading(tmp_path: Path) -> None:
    RULER.write(tmp_path / "ruler.json", {"length": 4})
    written = json.loads((tmp_path / "ruler.json").read_text())
    assert list(written.items()) == [*HEADER.items(), ("length", 4)]
    assert RULER.read(tmp_path / "ruler.json") == {"length": 4}


@pytest.mark.parametrize(
    ("record", "length"),
    [
        ({"size": 3}, 6),
        ({"format": 1, "size": 3}, 6),
        ({"format": 2, "length": 3}, 6),
        ({"type": "ruler", "version": 1, "size": 3}, 6),
        ({"type": "ruler", "version": 2, "length": 3}, 6),
        ({"type": "ruler", "version": 3, "length": 3}, 3),
    ],
)
def test_older_versions_migrate_step_by_step(record: dict[str, Any], length: int) -> None:
    before = dict(record)
    assert RULER.from_record(record, "ruler.json")["length"] == length
    assert record == before


def test_the_format_number_is_dropped() -> None:
    kind = RecordType("plain", "write it again", (drop_format,))
    assert kind.loads('{"format": 1, "a": 2}', "a.json") == {"a": 2}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"type": "ruler", "version": 4, "written_by": "good-rt 9.4.0"},
            rf"a\.json was written by good-rt 9\.4\.0 \(ruler version 4\); this good-rt "
            rf"{__version__} reads up to version 3: upgrade good-rt",
        ),
        ({"type": "ruler", "version": 4}, r"a\.json was written by a newer good-rt \(ruler"),
        ({"format": 4}, r"a\.json was written by a newer good-rt \(ruler version 4\)"),
        ({"type": "ruler", "version": 4, "written_by": "x\nerror: y"}, "by a newer good-rt"),
        ({"type": "ruler", "version": 4, "written_by": ["x"]}, "by a newer good-rt"),
        ({"type": "clock", "version": 9}, "is a record of type 'clock', not 'ruler'; give another"),
        ({"type": 7, "version": 3}, "is a record of type 7, not 'ruler'"),
        ({"version": 3}, "is a record of type None, not 'ruler'"),
        ({"type": "ruler"}, r"damaged \(its version is None\); measure again"),
        ({"type": "ruler", "version": "3"}, r"damaged \(its version is '3'\)"),
        ({"type": "ruler", "version": True}, r"damaged \(its version is True\)"),
        ({"type": "ruler", "version": 2.0}, r"damaged \(its version is 2\.0\)"),
        ({"type": "ruler", "version": 0}, r"damaged \(its version is 0\)"),
        ({"format": None}, r"damaged \(its version is None\)"),
        ({}, r"damaged \(KeyError: 'size'\); measure again"),
        ({"type": "ruler", "version": 2, "length": None}, r"damaged \(TypeError: .*measure again"),
    ],
)
def test_what_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(GoodRtError, match=message) as caught:
        RULER.loads(json.dumps(record), "a.json")
    assert str(caught.value).startswith("a.json ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"', "\0", "[" * 100_000])
def test_what_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ruler.json").write_text(text)
    with pytest.raises(GoodRtError, match=r"ruler\.json (is not|must).*measure again"):
        RULER.read(tmp_path / "ruler.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GoodRtError, match=r"cannot read .*ruler\.json \(No such file"):
        RULER.read(tmp_path / "ruler.json")


def test_a_newer_file_without_a_writer_is_refused() -> None:
    error = newer_version("the job file", "job version 3", 2)
    assert str(error) == (
        "the job file was written by a newer good-rt (job version 3); this good-rt "
        f"{__version__} reads up to version 2: upgrade good-rt"
    )
