"""Kernels for ONNX Runtime's CPU provider, behind one function, `accelerate`.

`fusing` replaces groups of operators by one of `kernels.c`, `winograd` has 3x3 convolutions
multiply less. `library` compiles `kernels.c` on first use. Other folders call only what this file
exports. Without a C compiler every graph runs as it is.
"""

from good_rt.engines.cpu.acceleration import ACCELERATIONS, Accelerated, accelerate
from good_rt.engines.cpu.library import kernel_library

__all__ = ["ACCELERATIONS", "Accelerated", "accelerate", "kernel_library"]
