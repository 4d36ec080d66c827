"""Compares the places of ONNX Runtime's functions in engines/cpu/kernels.c with its own header.

    GOOD_RT_ORT_HEADER=include/onnxruntime_c_api.h python scripts/ort_api_layout.py

The header is the one of the environment variable, else one in site-packages (Python wheels of ONNX
Runtime have none; its releases do). The C compiler compares; exit code 1 where a place differs, 3
where there is no header or no compiler.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import click

from good_rt.engines.cpu.library import SOURCE, find_compiler

HEADER = "GOOD_RT_ORT_HEADER"
NAME = "onnxruntime_c_api.h"
DIFFERS, NOTHING_TO_COMPARE = 1, 3


def find_header() -> Path | None:
    """The header that the environment names, else the first one in site-packages."""
    if given := os.environ.get(HEADER):
        return Path(given).resolve()
    packages = Path(sysconfig.get_path("purelib"))
    return next(packages.glob(f"onnxruntime*/**/{NAME}"), None)


def compare(header: Path, compiler: str) -> str:
    """What the compiler finds to differ; empty where every place is the same."""
    ended = subprocess.run(
        [
            compiler, "-std=gnu11", "-fsyntax-only", "-Wno-psabi", "-I", str(header.parent),
            f'-DGOOD_RT_HEADER="{header.name}"', str(SOURCE),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ended.stderr if ended.returncode else ""


def main() -> int:
    """Prints which version was compared, or what differs."""
    header, compiler = find_header(), find_compiler()
    if header is None or not header.is_file() or compiler is None:
        click.echo(
            f"nothing to compare with: set {HEADER} to the path of ONNX Runtime's {NAME}, "
            "and have a C compiler",
            err=True,
        )
        return NOTHING_TO_COMPARE
    if differences := compare(header, compiler):
        click.echo(f"{SOURCE.name} differs from {header}:\n{differences}", err=True)
        return DIFFERS
    version = re.search(r"^#define ORT_API_VERSION (\d+)", header.read_text(), re.MULTILINE)
    click.echo(
        f"{SOURCE.name} is laid out as {NAME}, API version {version[1] if version else 'unknown'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
