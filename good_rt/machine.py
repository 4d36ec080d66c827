"""What a measurement was made on: the processor, its cores, and the versions of what computes."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("good-rt", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-libs", "numpy")
"""What the sampler computes with."""


def describe(device: torch.device) -> dict[str, Any]:
    """The device's name, PyTorch's threads, and versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": versions(PACKAGES),
    }


def cpu_name() -> str:
    """The processor's model and how many of its cores there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python's, and of those that are installed: on a GPU machine onnxruntime is onnxruntime-gpu."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
