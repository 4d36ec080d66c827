"""docs/architecture.md names only files that exist, every room, and walks of at most six files."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RULES = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))
FOLDERS, LAYERS = RULES["FOLDERS"], RULES["LAYERS"]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMED = sorted(
    set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./]*)`", PAGE)) - {f"{one}/" for one in FOLDERS}
)


def test_the_page_names_files() -> None:
    assert len(NAMED) > 100


@pytest.mark.parametrize("name", NAMED)
def test_a_named_file_exists(name: str) -> None:
    path = ROOT / name
    assert path.is_dir() if name.endswith("/") else path.is_file()


def test_every_room_is_on_the_map() -> None:
    on_map = {re.sub(r"\.py$", "", name.removeprefix("good_rt/")).split("/")[0] for name in NAMED}
    assert {room for rooms in LAYERS for room in rooms} - on_map == set()


def test_the_import_order_is_the_layers() -> None:
    order = re.search(r"```text\n(cli\n.*?)```", PAGE, re.DOTALL)
    assert order is not None
    assert [set(line.split(", ")) for line in order[1].splitlines()] == list(LAYERS)


@pytest.mark.parametrize("number", [1, 2])
def test_a_walk_passes_at_most_six_files(number: int) -> None:
    walk = re.search(rf"^## Walk {number}: .*?(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
    assert walk is not None
    steps = re.findall(r"^\d+\. `([\w./]+)`", walk[0], re.MULTILINE)
    assert 2 <= len(steps) <= 6
    assert all((ROOT / step).is_file() for step in steps)
