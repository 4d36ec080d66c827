"""The stand-in for torchvision's operators: declared where they are missing, nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[1] / ".ci"


def declared_beside(package: Path, patch: str = "") -> str:
    """What a new interpreter prints that finds this folder's torchvision first."""
    code = f"""
import sys, torch
sys.path[:0] = [{str(package)!r}, {str(CI)!r}]
{patch}
import torchvision_operators
print(len(torchvision_operators._library), hasattr(torch.ops.torchvision, "nms"))
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return ran.stdout.strip()


@pytest.fixture
def torchvision_without_operators(tmp_path: Path) -> Path:
    """A package of that name whose compiled part is no library."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_C.so").write_bytes(b"not a library")
    return package


def test_missing_operators_are_declared(torchvision_without_operators: Path) -> None:
    assert declared_beside(torchvision_without_operators.parent) == "1 True"
    (torchvision_without_operators / "_C.so").unlink()
    assert declared_beside(torchvision_without_operators.parent) == "1 True"


def test_operators_of_torchvision_itself_are_left_alone(
    torchvision_without_operators: Path,
) -> None:
    """Its compiled part is loaded before anything is declared, which would keep it out."""
    patch = """
def load_library(path):
    global own
    own = torch.library.Library("torchvision", "DEF")
    own.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.ops.load_library = load_library
"""
    assert declared_beside(torchvision_without_operators.parent, patch) == "0 True"


def test_operators_that_torchvision_finds_elsewhere_are_left_alone(tmp_path: Path) -> None:
    """Declared twice they would abort the interpreter: nothing may be declared where they come."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\n"
        'library = torch.library.Library("torchvision", "DEF")\n'
        'library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
    )
    assert declared_beside(tmp_path) == "0 False"
    assert declared_beside(tmp_path, "import torchvision") == "0 True"
