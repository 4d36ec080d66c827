"""The environment does not decide about content: text is UTF-8 whatever the locale, standard output
replaces what it cannot show, and file names may hold any bytes."""

from __future__ import annotations

import ast
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from good_rt.demo import assets
from good_rt.errors import GoodRtError
from good_rt.files import printable, read_text

ROOT = Path(__file__).parents[1]
FOLDERS = ("good_rt", "engines", "export", "cli")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
ENVIRONMENTS = {
    "cp1252": {"PYTHONIOENCODING": "cp1252:strict"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def text_calls(tree: ast.AST) -> list[ast.Call]:
    """Calls that read or write text in the locale's encoding."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and type(a.value) is str]
        is_text_open = name == "open" and any(m[:1] in "rwax" and "b" not in m for m in modes)
        is_text_process = any(k.arg in ("text", "universal_newlines") for k in node.keywords)
        is_text_method = name == "write_text" or (name == "read_text" and not node.args)
        if is_text_open or is_text_process or is_text_method:  # read_text(path) is ours: UTF-8
            found.append(node)
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_no_text_is_read_or_written_in_the_locales_encoding(path: Path) -> None:
    calls = text_calls(ast.parse(path.read_text(encoding="utf-8")))
    assert not [f"line {call.lineno}: {ast.unparse(call)}" for call in calls]


def good_rt(*words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    code = "from good_rt.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", code, *map(os.fsencode, map(str, words))]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose names are not UTF-8, not Latin-1, or would be run by a terminal or
    spreadsheet."""
    folder = tmp_path_factory.mktemp("odd") / "α"
    folder.mkdir()
    image = Image.fromarray(assets.load_images("test").images[0, ..., 0])
    names = (b"caf\xe9.png", "日本.png".encode(), b"a\x1b[31mred.png", b"=1+1.png", b"a b#.png")
    for name in names:
        image.save(os.fsencode(folder) + b"/" + name)
    return folder


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_output_is_replaced_where_it_cannot_be_shown(
    name: str, odd_names: Path, detector_path: Path, tmp_path: Path
) -> None:
    environment = ENVIRONMENTS[name]
    words = ("detector", "score", odd_names, "--detector", detector_path)
    for more in ((), ("--csv", "-"), ("--json",), ("--csv", tmp_path / "s.csv")):
        ended = good_rt(*words, *more, **environment)
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")
        assert b"\x1b" not in ended.stdout + ended.stderr
    assert good_rt("generate", "--help", **environment).returncode == 0
    content = (tmp_path / "s.csv").read_bytes()
    assert b"caf\xe9.png" in content and "日本.png".encode() in content  # the very bytes
    text = content.decode("utf-8", "surrogateescape")
    names = [os.path.basename(row["file"]) for row in csv.DictReader(text.splitlines())]
    assert sorted(names) == sorted(
        ["caf\udce9.png", "日本.png", r"a\x1b[31mred.png", "=1+1.png", "a b#.png"]
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_files_are_utf_8_in_every_environment(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("Maße", "日本"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(3):
            image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
            image.save(tmp_path / "data" / label / f"{i}.png")
    ended = good_rt("split", tmp_path / "data", "-o", tmp_path / "s.json", **ENVIRONMENTS[name])
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert record["classes"] == ["Maße", "日本"]
    assert {file[0] for file in record["files"].values()} >= {"Maße/0.png", "日本/2.png"}


def test_a_byte_order_mark_is_no_content_and_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffMaße\r\nhat\r\n".encode())
    assert read_text(path) == "Maße\nhat\n"
    for encoding in ("cp1252", "utf-16"):
        path.write_bytes("Maße".encode(encoding))
        with pytest.raises(GoodRtError, match=r"classes\.txt is not UTF-8 .*save it as UTF-8"):
            read_text(path)


@given(st.text(st.characters()))
def test_shown_text_steers_no_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isascii() or not any(c in shown for c in "\u202e\u2066\u2028\x85\x9b")
    assert not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 or ord(c) == 127 for c in shown)
    shown.encode()
    if text.isprintable():
        assert shown == text
