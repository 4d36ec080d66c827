"""Kernels for ONNX Runtime's CPU provider, behind one door: `accelerate`.

`fusing` replaces groups of operators by one of `kernels.c`, `winograd` has 3x3 convolutions
multiply less. `library` compiles `kernels.c` on first use. Nothing outside this folder knows any of
them, and without a C compiler every graph runs as it is.
"""

from good_rt.engines.cpu.acceleration import ACCELERATIONS, Accelerated, accelerate

__all__ = ["ACCELERATIONS", "Accelerated", "accelerate"]
