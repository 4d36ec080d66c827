"""Nothing but the command line and its tests imports good_rt.cli: what it can do, three lines of
Python can."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {"tests/conftest.py": "good_rt.cli.main"}
"""The fixture `run` is the console script."""
SKIPPED = {".git", ".venv", "venv", "build", "dist", "node_modules", "__pycache__", "shared"}


def files(suffix: str) -> Iterator[Path]:
    """The repository's files of this kind, those of cli/ and tests/cli/ left out."""
    for path in sorted(ROOT.rglob(f"*{suffix}")):
        relative = path.relative_to(ROOT)
        if SKIPPED & set(relative.parts) or relative.parts[0] == "cli":
            continue
        if relative.parts[:2] != ("tests", "cli"):
            yield path


def imported(code: str) -> list[str]:
    """Every module of good_rt.cli that a piece of code imports, wherever it stands."""
    modules = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "good_rt":
            modules += [f"good_rt.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    return [name for name in modules if name == "good_rt.cli" or name.startswith("good_rt.cli.")]


def test_imports_are_found() -> None:
    assert imported("import good_rt.cli.main") == ["good_rt.cli.main"]
    assert imported("def f():\n    from good_rt import cli, models") == ["good_rt.cli"]
    assert imported("from good_rt.cli.run import run\nimport good_rt.clients") == [
        "good_rt.cli.run"
    ]
    assert len(list(files(".py"))) > 100 and len(list(files(".md"))) > 3


@pytest.mark.parametrize("path", list(files(".py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_the_command_line(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix())
    assert [name for name in imported(path.read_text()) if name != allowed] == []


@pytest.mark.parametrize("path", list(files(".md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_example_in_the_docs_imports_the_command_line(path: Path) -> None:
    for block in re.findall(r"```py(?:thon|con)?\n(.*?)```", path.read_text(), re.DOTALL):
        assert not re.search(r"^[>\s.]*(from|import)\s+good_rt\.cli\b", block, re.MULTILINE), block
        assert not re.search(r"^[>\s.]*from good_rt import .*\bcli\b", block, re.MULTILINE), block
