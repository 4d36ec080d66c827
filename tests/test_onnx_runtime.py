"""ONNX Runtime from one package, from both, from none, and from half of one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from good_rt.detector.runtime import Detector
from good_rt.engines.onnxruntime import check_providers
from good_rt.environment import REPORTED_PACKAGES, versions
from good_rt.errors import GoodRtError
from good_rt.onnx_runtime import gpu_commands, onnxruntime_module, package_version

UNINSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu"
CUDA = ("CUDAExecutionProvider",)


def installed(monkeypatch: pytest.MonkeyPatch, **packages: object) -> None:
    """Says which packages of ONNX Runtime are installed."""
    known = {name.replace("_", "-"): version for name, version in packages.items()}
    original = metadata.version

    def version(package: str) -> object:
        if not package.startswith("onnxruntime"):
            return original(package)
        if package not in known:
            raise metadata.PackageNotFoundError(package)
        found = known[package]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("cuda", "package"),
    [
        ("12.8", "onnxruntime-gpu==1.26.0"),
        ("12.0", "onnxruntime-gpu==1.26.0"),
        ("13.0", "onnxruntime-gpu"),
        ("13.2", "onnxruntime-gpu"),
        (None, "onnxruntime-gpu"),
    ],
)
def test_the_commands_are_those_of_pytorchs_cuda(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, package: str
) -> None:
    assert gpu_commands(cuda) == f"{UNINSTALL} && pip install {package}"
    monkeypatch.setattr(torch.version, "cuda", cuda)
    installed(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.26.0")
    with pytest.raises(GoodRtError) as caught:
        check_providers(CUDA)
    assert "onnxruntime and onnxruntime-gpu are both installed, and one has" in str(caught.value)
    assert str(caught.value).endswith(f"run: {UNINSTALL} && pip install {package}")


def test_one_package_is_not_taken_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime="1.32.0")
    with pytest.raises(GoodRtError, match=r"here: its GPU build, onnxruntime-gpu, is needed; run:"):
        check_providers(CUDA)


@pytest.mark.parametrize("record", ["1.32.0", None, KeyError("Version"), OSError(5, "gone"), 7])
def test_no_record_of_a_package_ends_a_job(monkeypatch: pytest.MonkeyPatch, record: object) -> None:
    installed(monkeypatch, onnxruntime_gpu=record)
    found = versions(REPORTED_PACKAGES)
    assert "onnxruntime" not in found and "torch" in found and "python" in found
    assert found.get("onnxruntime-gpu") == (record if record == "1.32.0" else None)


def test_a_damaged_record_on_disk_has_no_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, content in {"none": None, "empty": b"", "binary": b"\xff\xfe\0"}.items():
        folder = tmp_path / f"broken_{name}-1.0.dist-info"
        folder.mkdir()
        if content is not None:
            (folder / "METADATA").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("none", "empty", "binary"):
        assert package_version(f"broken-{name}") is None


@pytest.mark.parametrize("left", ["nothing", "a folder", "half a package", "a broken library"])
def test_an_import_that_fails_says_how_to_install(left: str, tmp_path: Path) -> None:
    """In a new interpreter that finds what uninstalling one of both packages leaves."""
    package = tmp_path / "onnxruntime"
    if left != "nothing":
        (package / "capi").mkdir(parents=True)
    if left == "half a package":
        (package / "__init__.py").write_text("from onnxruntime.capi import gone\n")
    if left == "a broken library":
        (package / "__init__.py").write_text("import ctypes; ctypes.CDLL('/nowhere/lib.so')\n")
    # a folder without __init__.py is found last, after the ONNX Runtime of these tests
    modules = {"nothing": "None", "a folder": "types.ModuleType('onnxruntime')"}
    hide = f"sys.modules['onnxruntime'] = {modules[left]}" if left in modules else ""
    detector = Path(__file__).parent / "records" / "v2" / "detector.onnx"
    code = f"""
import sys, types
sys.path.insert(0, {str(tmp_path)!r})
{hide}
from good_rt.cli.main import main
sys.argv = ["good-rt", "detector", "score", "x.png", "--detector", {str(detector)!r}]
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ONNX Runtime cannot be imported here (")
    assert line.endswith(f"install it again: {UNINSTALL} && pip install onnxruntime")


def test_the_module_that_is_there_is_taken(detector_path: Path) -> None:
    assert onnxruntime_module() is importlib.import_module("onnxruntime")
    assert Detector(detector_path).info.channels == 1
