"""A library of kernels that does not fit is not used, and the engines run without it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from good_rt.engines.cpu import library, self_test
from good_rt.engines.cpu.library import (
    CHECKSUM,
    built_library,
    cache_folder,
    find_compiler,
    kernel_library,
)
from good_rt.engines.cpu.self_test import check_library, examples
from good_rt.errors import GoodRtError

ROOT = Path(__file__).parents[3]
HEADER = "GOOD_RT_ORT_HEADER"
"""Environment variable: the path of ONNX Runtime's onnxruntime_c_api.h."""
pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="no C compiler that kernels.c is written for"
)
WRONG = {
    # what is wrong: text of kernels.c, what stands there instead, and what the warning tells
    "an operator computes something else": ("y[i] > 0 ?", "y[i] < 0 ?", "ReluGradient is off"),
    "another place in the table": (
        "#define axes_count API(61,",
        "#define axes_count API(62,",
        "self-test",
    ),
    "no such function in the library": (
        "RegisterCustomOps(",
        "RegisterOthers(",
        "self-test",
    ),
    "it does not compile": ("#include <math.h>", "#include <no_such_header.h>", "does not compile"),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a process that has not asked for a library yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(library.SWITCH, raising=False)
    library._library.cache_clear()
    yield cache_folder()
    library._library.cache_clear()


@pytest.mark.parametrize("what", WRONG)
def test_a_library_that_fails_its_check_is_not_used(
    what: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    text, other, reason = WRONG[what]
    source = library.SOURCE.read_text()
    assert source.count(text) == 1
    path = tmp_path / "kernels.c"
    path.write_text(source.replace(text, other))
    monkeypatch.setattr(library, "SOURCE", path)
    with caplog.at_level(logging.WARNING):
        assert kernel_library() is None
    assert reason in caplog.text
    assert not list(cache.glob("*.so")) and not list(cache.glob(f"*{CHECKSUM}"))


def test_a_mismatch_when_it_is_loaded_turns_the_kernels_off(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process that compiles it finds nothing, the one that loads it does."""
    built_library(cache, find_compiler() or "")

    def refuse(path: Path) -> None:
        raise GoodRtError("operator GroupNorm is off by 1.0e+00")

    monkeypatch.setattr(library, "check_library", refuse)
    with caplog.at_level(logging.WARNING):
        assert kernel_library() is None
    assert "GroupNorm is off" in caplog.text


def test_a_damaged_library_is_compiled_again(cache: Path) -> None:
    path = built_library(cache, find_compiler() or "")
    whole = path.read_bytes()
    path.write_bytes(whole[:4096])
    assert kernel_library() == path
    check_library(path)


def test_changed_source_or_flags_get_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = find_compiler() or ""
    path = tmp_path / "kernels.c"
    path.write_text(library.SOURCE.read_text() + "\n")
    fingerprints = {library._fingerprint(compiler, flags) for flags in (library.FLAGS, ("-O2",))}
    monkeypatch.setattr(library, "SOURCE", path)
    assert library._fingerprint(compiler, library.FLAGS) not in fingerprints
    assert len(fingerprints) == 2


def test_what_is_no_library_fails_its_check(tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"no library")
    with pytest.raises(GoodRtError, match="does not run"):
        check_library(path)
    command = [sys.executable, "-P", "-m", self_test.__name__, path]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 1 and "error: operator" in ended.stderr


def test_every_operator_has_an_example() -> None:
    source = library.SOURCE.read_text()
    titles = [line.split('"')[1] for line in source.splitlines() if "    OPERATOR(" in line]
    assert sorted(titles) == sorted(examples())


def test_without_a_compiler_there_is_no_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "find_compiler", lambda: None)
    with caplog.at_level(logging.INFO):
        assert kernel_library() is None
    assert "no C compiler" in caplog.text


def test_a_folder_that_others_can_write_to_is_refused(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(GoodRtError, match="can be changed by other users"):
        built_library(cache, find_compiler() or "")


def test_places_in_onnx_runtimes_table_are_those_of_its_header(tmp_path: Path) -> None:
    """By scripts/ort_api_layout.py, which is given the header by GOOD_RT_ORT_HEADER."""
    ended = subprocess.run(
        [sys.executable, ROOT / "scripts" / "ort_api_layout.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode == 3:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stderr


def test_another_place_than_the_headers_is_found(tmp_path: Path) -> None:
    """A header of our own, in which a function comes first that our table does not know."""
    header = tmp_path / "onnxruntime_c_api.h"
    header.write_text(
        "#define ORT_API_VERSION 99\n"
        "typedef struct OrtApi { void *new_one, *CreateStatus; } OrtApi;\n"
    )
    ended = subprocess.run(
        [sys.executable, ROOT / "scripts" / "ort_api_layout.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, HEADER: str(header)},
    )
    assert ended.returncode == 1 and "place of CreateStatus" in ended.stderr


def test_the_compiler_of_the_environment_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "false")
    assert find_compiler() == shutil.which("false")
