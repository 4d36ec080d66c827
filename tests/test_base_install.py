"""The wheel with its base dependencies alone: the detector scores, and the rest says in one line
what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from good_rt.demo import assets
from good_rt.detector.runtime import Detector

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
TOOLKIT = (
    "torch",
    "diffusers",
    "onnx",
    "scipy",
    "faiss",
    "safetensors",
    "sklearn",
    "matplotlib",
    "jinja2",
)


def ran(command: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "VIRTUAL_ENV"}
    }
    words = [str(word) for word in command]
    return subprocess.run(
        words, capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of python and good-rt of a new environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("base")
    source = folder / "source"  # setuptools writes build/ beside its source
    names = ["pyproject.toml", "README.md", "LICENSE", "good_rt", "cli", "engines", "export"]
    subprocess.run(["mkdir", source], check=True)
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in names), str(source)], check=True)
    for command in (
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            source,
        ],
        [sys.executable, "-m", "venv", folder / "venv"],
    ):
        ended = ran(command, folder)
        assert ended.returncode == 0, ended.stderr
    (wheel,) = folder.glob("good_rt-*-py3-none-any.whl")  # nothing is compiled on installing it
    assert "good_rt/engines/cpu/kernels.c" in zipfile.ZipFile(wheel).namelist()
    assert wheel.stat().st_size < 60e6
    ended = ran([folder / "venv" / "bin" / "pip", "install", "-q", wheel], folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "venv" / "bin"


def test_the_toolkit_is_not_there(scripts: Path, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print([n for n in {TOOLKIT} if u.find_spec(n)])"
    assert ran([scripts / "python", "-c", code], tmp_path).stdout == "[]\n"


def test_the_wheel_holds_the_package_and_the_demos_files(scripts: Path, tmp_path: Path) -> None:
    code = (
        "import good_rt.cli, good_rt.engines, good_rt.export; from good_rt.demo import assets as "
        "a; "
        "print(a.CLASSIFIER.is_dir(), a.MODEL.is_dir(), len(a.load_images('near')))"
    )
    assert ran([scripts / "python", "-c", code], tmp_path).stdout == "True True 2000\n"
    code = (
        "import importlib.util as u; "
        "print([n for n in ('cli', 'engines', 'export', 'tests') if u.find_spec(n)])"
    )
    assert ran([scripts / "python", "-c", code], tmp_path).stdout == "[]\n"


def test_the_detector_scores_as_in_the_toolkits_environment(
    scripts: Path, detector_path: Path, tmp_path: Path
) -> None:
    images = np.concatenate([assets.load_images(name).images[:4] for name in ("test", "emoji")])
    names = [f"{i}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / name)
    ended = ran(
        [scripts / "good-rt", "detector", "score", *names, "--detector", detector_path, "--json"],
        tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    found, expected = json.loads(ended.stdout)["images"], Detector(detector_path).score(images)
    assert [row["file"] for row in found] == names
    assert [row["label"] for row in found] == [assets.CLASSES[label] for label in expected.label]
    assert [row["is_ood"] for row in found] == expected.is_ood.tolist()
    columns = {"score": expected.score, "p_value": expected.p_value, **expected.discrepancies}
    for column, values in columns.items():
        np.testing.assert_allclose([row[column] for row in found], values, rtol=1e-4, atol=1e-5)
    table = ran(
        [scripts / "good-rt", "detector", "score", *names, "--detector", detector_path], tmp_path
    )
    assert (
        table.returncode == 0
        and "nearest class" in table.stdout
        and f" of {len(names)} OOD" in table.stdout
    )


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "export",
        "train --control",
        "evaluate --generated .",
        "detector build --generated .",
        "demo",
    ],
)
def test_what_needs_the_toolkit_says_so_in_one_line(
    scripts: Path, tmp_path: Path, command: str
) -> None:
    ended = ran([scripts / "good-rt", *command.split()], tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: this command needs ") and line.endswith(
        "pip install 'good-rt[toolkit]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_help_and_missing_files_work_without_the_toolkit(scripts: Path, tmp_path: Path) -> None:
    for command in (
        [],
        ["generate"],
        ["train"],
        ["export"],
        ["evaluate"],
        ["demo"],
        ["detector", "build"],
    ):
        ended = ran([scripts / "good-rt", *command, "--help"], tmp_path)
        assert ended.returncode == 0 and "Examples:" in ended.stdout
    ended = ran(
        [scripts / "good-rt", "detector", "score", "gone.png", "--detector", "gone.onnx"], tmp_path
    )
    assert ended.returncode == 2 and ended.stderr.startswith("error: gone.onnx does not exist")
