"""A pytest plugin that lets a torchvision built for another torch be imported, as the tests' peers
need it beside a CPU torch.

At import torchvision asks for two operators of its compiled part. Where that part cannot be loaded,
they are declared here, and never called; where it can, torchvision stays as it is.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

_library: list[torch.library.Library] = []  # operators live as long as their library


def declare() -> None:
    """Declares the missing operators; does nothing where torchvision is absent or brings them."""
    package = importlib.util.find_spec("torchvision")
    if _library or package is None or package.origin is None:
        return
    folder = Path(package.origin).parent
    if not _loads_compiled_part(folder) and not _has_operators_by_itself():
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.append(library)


def _loads_compiled_part(folder: Path) -> bool:
    """Whether torchvision's own operators are there, after loading them as torchvision would.

    The question must come before the declaration: PyTorch takes a namespace's definitions once, so
    that torchvision's own would be refused after ours.
    """
    files = [folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]
    for file in filter(Path.exists, files):
        try:
            torch.ops.load_library(str(file))
        except (OSError, RuntimeError):
            continue
        return True
    return False


def _has_operators_by_itself() -> bool:
    """Whether torchvision can be imported in a new interpreter and has its operators there.

    It may find its compiled part elsewhere than beside itself. Operators that are declared twice
    abort the interpreter, so this is worth the seconds.
    """
    code = "import torch, torchvision; torch.ops.torchvision.nms"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


declare()
