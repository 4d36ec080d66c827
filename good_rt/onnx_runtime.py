"""ONNX Runtime as it is installed: from one of two packages, or broken by both.

``onnxruntime`` and ``onnxruntime-gpu`` install the same module. Whichever comes second overwrites
the first, and uninstalling one takes away files of the other.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

from good_rt.errors import GoodRtError, first_line

CPU_PACKAGE, GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"
UNINSTALL = f"pip uninstall -y {CPU_PACKAGE} {GPU_PACKAGE}"
LAST_FOR_CUDA_12 = "1.26.0"
"""The newest onnxruntime-gpu for CUDA 12; later ones are built for CUDA 13."""


def package_version(package: str) -> str | None:
    """The version of an installed package; None where there is none, or its record is damaged."""
    try:
        version = metadata.version(package)
    except Exception:  # a damaged record raises many kinds, and no figure is worth a job's end
        return None
    return version if isinstance(version, str) else None


def onnxruntime_module() -> ModuleType:
    """The module onnxruntime.

    Raises:
        GoodRtError: it is missing, or files of it are; the error says how to install it again.
    """
    try:
        module = importlib.import_module("onnxruntime")
    except (ImportError, OSError) as error:
        raise _unusable(first_line(error)) from None
    # what is left of the folder after uninstalling is imported as an empty module
    if not hasattr(module, "InferenceSession"):
        raise _unusable("files of it are missing")
    return module


def gpu_commands(cuda: str | None) -> str:
    """The two commands that install ONNX Runtime for a GPU, joined by &&.

    Args:
        cuda: The CUDA version of the PyTorch that is there, such as "12.8"; None for a PyTorch
            without CUDA.
    """
    pinned = f"=={LAST_FOR_CUDA_12}" if cuda is not None and cuda.startswith("12.") else ""
    return f"{UNINSTALL} && pip install {GPU_PACKAGE}{pinned}"


def both_installed() -> bool:
    """Whether both packages are installed, of which one has overwritten the other."""
    return None not in (package_version(CPU_PACKAGE), package_version(GPU_PACKAGE))


def _unusable(reason: str) -> GoodRtError:
    return GoodRtError(
        f"ONNX Runtime cannot be imported here ({reason}); install it again: "
        f"{UNINSTALL} && pip install {CPU_PACKAGE}"
    )
