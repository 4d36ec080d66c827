"""Files appear whole or not at all, folders are replaced as a whole, and nothing is left behind."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from good_rt.errors import GoodRtError
from good_rt.files import atomic_path, read_json, sha256, sole_user, write_json


def test_a_file_appears_with_its_name_only_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.name == path.name  # writers that go by the suffix see it
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
        assert [path.name for path in folder.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_may_be_named_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with atomic_path(Path()) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("target", ["file.txt/out", "file.txt/deep/out", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "file.txt").write_text("in the way")
    (tmp_path / "folder").mkdir()

    def write() -> None:
        with atomic_path(tmp_path / target) as temporary:
            temporary.write_text("a file, even where a folder is")

    with pytest.raises(
        GoodRtError, match=rf"cannot write .*{target} \(\w.*\); choose another place"
    ):
        write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_errors_without_a_system_text_say_something(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "x"):
            raise OSError("cannot write mode F as PNG")

    with pytest.raises(GoodRtError, match=r"\(cannot write mode F as PNG\)"):
        fail()


def test_hash_is_hashlibs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 999)
    assert sha256(tmp_path / "file") == hashlib.sha256(bytes(range(256)) * 999).hexdigest()


def test_json_there_and_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert json.loads((tmp_path / "x.json").read_text()) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*x\.json \(No such file"),
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[1, 2]", "must hold a JSON object, not a list"),
    ],
)
def test_what_is_no_json_object_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(GoodRtError, match=message):
        read_json(tmp_path / "x.json")


def test_a_folder_has_one_job_at_a_time_and_is_free_again_when_its_process_is_killed(
    tmp_path: Path,
) -> None:
    hold = (
        "import pathlib, sys, time\nfrom good_rt.files import sole_user\n"
        "with sole_user(pathlib.Path(sys.argv[1])):\n    print('in', flush=True)\n    "
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        with pytest.raises(GoodRtError, match="another process is at work in"), sole_user(tmp_path):
            pass
        process.kill()
    with sole_user(tmp_path):
        pass
