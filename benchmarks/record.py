"""What every benchmark writes: its raw figures, and each bar with value, bound and whether it is
met."""

from __future__ import annotations

import operator
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from good_rt.environment import cpu_name, versions
from good_rt.files import read_json, write_json

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


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured once, then from the file ``path``, so that an interrupted benchmark
    resumes."""
    if not path.exists():
        write_json(path, measure())
    return read_json(path)


def measured(command: Sequence[str], path: Path) -> dict[str, float]:
    """Runs a command and returns its seconds, peak memory (not less than this process') and cores,
    `kept`."""

    def run() -> dict[str, Any]:
        began = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise click.ClickException(f"`{shlex.join(command)}` ended with status {status}")
        peak = usage.ru_maxrss / 2**20  # KiB to GiB
        return {
            "seconds": time.perf_counter() - began,
            "peak_gib": peak,
            "cores": len(os.sched_getaffinity(0)),
        }

    return kept(path, run)


def write_result(
    name: str, figures: Mapping[str, Any], bars: Sequence[Bar], script: str | None = None
) -> Path:
    """Writes results/NAME.json and prints every bar. ``script`` is the file's name where it is
    another."""
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "command": shlex.join(["python", f"benchmarks/{script or name}.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "cpu": cpu_name(),
            "versions": versions(PACKAGES),
            "bars": [{**asdict(bar), "ok": bar.ok} for bar in bars],
            "figures": dict(figures),
        },
    )
    for bar in bars:
        print(
            f"{'met   ' if bar.ok else 'MISSED'} {bar.name}: {bar.value:.4g} (to be {bar.op} "
            f"{bar.bound:g})"
        )
    print(f"written to {path}")
    return path
