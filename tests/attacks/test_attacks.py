"""Every attack is refused by the command in one line, with little memory and time."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack import Attack
from PIL import Image

from good_rt.detector.runtime import Detector
from good_rt.errors import GoodRtError
from good_rt.files import printable

HERE = Path(__file__).parent
SCRIPTS = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "test_attacks")
COMMAND = Path(sys.executable).with_name("good-rt")
MOST_BYTES, MOST_SECONDS = 2**30, 10.0


def attacks_of(script: str, folder: Path) -> Iterator[Attack]:
    """The attacks that a script makes in a folder."""
    spec = importlib.util.spec_from_file_location(script, HERE / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield from module.attacks(folder)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "images" / name for name in ("a.png", "b.png")]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("L", (32, 32), 90).save(path)
    return paths


def check_refused(attack: Attack, images: list[Path]) -> None:
    """Runs the command on a file, and checks how it ends."""
    command = [COMMAND, "detector", "score", *images, "--detector", attack.file]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    assert process.stdout is not None and process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 2, (attack.name, process.returncode, out, err)
    assert out == "", (attack.name, out)
    assert err.startswith("error: ") and err.count("\n") == 1, (attack.name, err)
    assert printable(err.rstrip("\n")) == err.rstrip("\n") and len(err) < 1000, (attack.name, err)
    assert re.search(attack.message, err), (attack.name, err)
    assert usage.ru_maxrss * 1024 < MOST_BYTES, (attack.name, usage.ru_maxrss)
    assert seconds < MOST_SECONDS, (attack.name, seconds)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_attack_is_refused(script: str, images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "attacks"
    folder.mkdir()
    check_refused(next(attacks_of(script, folder)), images)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_attack_is_refused(script: str, images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "attacks"
    folder.mkdir()
    for attack in attacks_of(script, folder):
        check_refused(attack, images)


def test_metadata_are_refused_when_they_are_read(tmp_path: Path) -> None:
    """The same in this process, where it takes no second each."""
    for attack in attacks_of("wrong_metadata", tmp_path):
        with pytest.raises(GoodRtError, match=attack.message) as caught:
            Detector(attack.file)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000, attack.name


def test_every_script_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+)\.py` \|", (HERE / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == SCRIPTS
