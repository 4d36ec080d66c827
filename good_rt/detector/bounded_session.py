"""ONNX Runtime sessions on the CPU that take no more memory than they may.

A small file can make tensors of any size. The memory of a session's tensors comes from an arena of
its own, which ends at a limit; one image runs first, without optimisations, since these compute
constants outside of the arena.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from good_rt.errors import GoodRtError, first_line
from good_rt.onnx_runtime import onnxruntime_module

RUN_MEMORY = 2**29
"""Bytes that the tensors of one run may take, beside the weights."""
FIRST_RUN_SECONDS = 6.0
"""How long the first image of a small file may take; most networks take less than one second."""
BYTES_PER_SECOND = 2**26
"""Bytes of a file that give it another second: large networks take longer."""
_registering = threading.Lock()


def bounded_session(path: Path, threads: int = 0, *, optimise: bool = True) -> Any:
    """An ``onnxruntime.InferenceSession`` whose tensors take at most `RUN_MEMORY` at once.

    Args:
        path: The ONNX file.
        threads: Threads that ONNX Runtime uses; 0 for all cores.
        optimise: Whether ONNX Runtime optimises the graph.

    Raises:
        GoodRtError: ONNX Runtime is not installed, or cannot load the file.
    """
    ort = onnxruntime_module()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised, in one line
    # by its name, the file could be of another format, which nothing has looked at
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.use_env_allocators", "1")
    memory = RUN_MEMORY
    if optimise:
        memory += 2 * path.stat().st_size  # weights packed for the processor are in the arena too
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    place = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    # 1: the arena grows by what is asked for, since doubling would reach the limit too early
    arena = ort.OrtArenaCfg({"max_mem": memory, "arena_extend_strategy": 1})
    try:
        with _registering:  # a session keeps the arena that is registered when it begins
            ort.create_and_register_allocator(place, arena)
            return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise GoodRtError(
            f"{path} is damaged or not an ONNX file ({reason_of(error)}); build it again"
        ) from None


def first_run(session: Any, path: Path, images: NDArray[np.float32]) -> list[Any]:
    """The outputs of a detector file that nobody has run yet, for one image.

    Args:
        session: What `bounded_session` returned for the file.
        path: The file, for errors.
        images: (1, C, H, W) in [0, 1].

    Raises:
        GoodRtError: it fails, or the image takes too much memory or time.
    """
    options = onnxruntime_module().RunOptions()
    options.log_severity_level = 4
    seconds = FIRST_RUN_SECONDS + path.stat().st_size / BYTES_PER_SECOND
    late = threading.Event()

    def stop() -> None:
        late.set()
        options.terminate = True

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        outputs: list[Any] = session.run(None, {"images": images}, options)
    except Exception as error:  # onnxruntime's exceptions share no base class
        if late.is_set():
            problem = f"takes more than {seconds:.0f} s for one image"
        elif out_of_memory(error):
            problem = f"takes more than {RUN_MEMORY / 2**20:g} MiB for one image"
        else:
            problem = f"fails on an image ({reason_of(error)})"
        raise GoodRtError(f"{path} {problem}; build a detector of a smaller classifier") from None
    finally:
        timer.cancel()
    return outputs


def out_of_memory(error: Exception) -> bool:
    """Whether ONNX Runtime failed since a tensor had no room."""
    return isinstance(error, MemoryError) or bool(
        re.search(r"smaller than requested bytes|bad_alloc|[Ff]ailed to allocate", str(error))
    )


def reason_of(error: Exception) -> str:
    """The first line of what ONNX Runtime says, without its codes."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error))[:200]
