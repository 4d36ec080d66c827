"""Where models run and what they run on: the device, the processor, its cores, and the versions of
what computes.

NOT YET RUN ON A GPU: that nothing is mixed up between two devices is tested on a stand-in for one
(`tests/support/elsewhere.py`); `benchmarks/gpu_check.sh` runs the tests that need a GPU.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from good_rt.errors import GoodRtError
from good_rt.onnx_runtime import package_version

CPU = torch.device("cpu")
PACKAGES = (
    "good-rt",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-libs",
    "numpy",
)
"""What the sampler computes with."""
REPORTED_PACKAGES = (
    "good-rt",
    "torch",
    "diffusers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
)
"""What figures depend on."""


def describe(device: torch.device) -> dict[str, Any]:
    """The device's name, PyTorch's threads, and versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": versions(PACKAGES),
    }


def cpu_name() -> str:
    """The processor's model and how many of its cores there are."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python's, and of those that are installed: on a GPU machine onnxruntime is
    onnxruntime-gpu."""
    found = {package: package_version(package) for package in packages}
    known = {package: version for package, version in found.items() if version is not None}
    return {"python": platform.python_version(), **known}


def use_device(name: str | torch.device) -> torch.device:
    """A PyTorch device; a GPU becomes the current one.

    A GPU computes float32 as float32, as the engines and detector.onnx do, and by deterministic
    kernels. The caller prepares other devices.

    Args:
        name: "cpu", "cuda" or "cuda:N", or a device.

    Raises:
        GoodRtError: there is no such device.
    """
    if isinstance(name, torch.device) and name.type != "cuda":
        return name
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise GoodRtError(
            f"there is no device {name!r}; give cpu, cuda, or cuda:N for one of several GPUs"
        )
    if device.type == "cpu":
        return CPU
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        seen = f"{count} GPU{'s'[: count != 1]}" if count else "no CUDA GPU"
        raise GoodRtError(
            f"device {name}: PyTorch {torch.__version__} sees {seen} here; leave --device out to "
            "run on the CPU, or "
            "install a PyTorch for this machine's CUDA"
        )
    torch.cuda.set_device(index)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", index)
