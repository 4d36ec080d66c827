"""A graph rewritten for the CPU: the door of this folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from good_rt.engines.cpu.fusing import fuse, has_inner_graphs
from good_rt.engines.cpu.library import avx512_is_wanted, kernel_library
from good_rt.engines.cpu.winograd import with_convolutions
from good_rt.engines.onnx_file import is_small

ACCELERATIONS = ("fused operators", "Winograd convolutions")
"""What `accelerate` does, by the keys of `Accelerated.changes`."""
FUSED, WINOGRAD = ACCELERATIONS


@dataclass(frozen=True)
class Accelerated:
    """A graph for ONNX Runtime's CPU provider.

    Attributes:
        model: The graph; the one that was given where nothing is faster.
        changes: How many operators each of `ACCELERATIONS` put in or took out; empty for an
            unchanged graph.
        library: The library of custom operators that a session of the graph registers.
        is_optimised: Whether ONNX Runtime's optimisations are in the graph already, and must not
            be applied again.
    """

    model: ModelProto
    changes: Mapping[str, int]
    library: Path | None = None
    is_optimised: bool = False


def accelerate(
    model: ModelProto, parts: Collection[str] = ACCELERATIONS, library: Path | None = None
) -> Accelerated:
    """The graph rewritten so that ONNX Runtime's CPU provider computes the same in less time.

    Results are the same up to floating-point rounding. A graph with external data, or one larger
    than `good_rt.engines.onnx_file.is_small`, only gets fused operators.

    Args:
        model: A checked graph (`good_rt.engines.onnx_file.read_graph`); it is not changed.
        parts: Which of `ACCELERATIONS` are applied.
        library: The compiled kernels; None for `kernel_library()`.
    """
    library = library or kernel_library()
    if library is None or has_inner_graphs(model.graph):
        return Accelerated(model, {})
    fused, changes = ModelProto(), dict[str, int]()
    fused.CopyFrom(model)
    if FUSED in parts and (count := fuse(fused)):
        changes[FUSED] = count
    if WINOGRAD in parts and is_small(model) and avx512_is_wanted():
        optimised, count = with_convolutions(fused, library)
        if count:
            return Accelerated(optimised, {**changes, WINOGRAD: count}, library, is_optimised=True)
    return Accelerated(fused, changes, library) if changes else Accelerated(model, {})
