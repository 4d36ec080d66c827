"""What every benchmark writes: its raw figures, and each bar with value, bound and whether it is met."""

from __future__ import annotations

import contextlib
import operator
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from good_rt.files import write_json

RESULTS = Path(__file__).parent / "results"
OPERATORS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}
PACKAGES = (
    "good-rt",
    "torch",
    "diffusers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-rtx-cu13-libs",
    "faiss-cpu",
    "numpy",
    "scikit-learn",
    "timm",
    "torchvision",
    "transformers",
)


@dataclass(frozen=True)
class Bar:
    """A bound that a figure is held to."""

    name: str
    value: float
    op: str
    bound: float

    @property
    def ok(self) -> bool:
        return bool(OPERATORS[self.op](self.value, self.bound))


def cpu_name() -> str:
    """The processor's model and how many of its cores there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those that are installed: on a GPU machine onnxruntime is onnxruntime-gpu."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def write_result(name: str, figures: Mapping[str, Any], bars: Sequence[Bar], script: str | None = None) -> Path:
    """Writes results/NAME.json and prints every bar. ``script`` is the file's name where it is another."""
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "command": shlex.join(["python", f"benchmarks/{script or name}.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "cpu": cpu_name(),
            "versions": {"python": platform.python_version(), **installed(PACKAGES)},
            "bars": [{**asdict(bar), "ok": bar.ok} for bar in bars],
            "figures": dict(figures),
        },
    )
    for bar in bars:
        print(f"{'met   ' if bar.ok else 'MISSED'} {bar.name}: {bar.value:.4g} (to be {bar.op} {bar.bound:g})")
    print(f"written to {path}")
    return path
