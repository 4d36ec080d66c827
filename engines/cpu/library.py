"""The library of `kernels.c`, where it was built: operators that ONNX Runtime's CPU provider lacks.

It is made when the package is installed, if there is a C compiler; without it every graph runs all
the same, slower.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SWITCH = "GOOD_RT_KERNELS"
"""Environment variable: "0" leaves the kernels out."""


@cache
def kernel_library() -> Path | None:
    """The library that sessions register, or None where it was not built or is switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    spec = find_spec("good_rt.engines._kernels")
    return None if spec is None or spec.origin is None else Path(spec.origin)
