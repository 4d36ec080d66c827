"""A graph rewritten for the CPU: the door of this folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from good_rt.engines.cpu.fusing import fuse, has_inner_graphs
from good_rt.engines.cpu.layout import keep_blocks, optimised
from good_rt.engines.cpu.library import kernel_library
from good_rt.engines.cpu.winograd import put_convolutions
from good_rt.engines.onnx_file import is_small

ACCELERATIONS = ("fused operators", "blocked layout", "Winograd convolutions")
"""What `accelerate` does, by the keys of `Accelerated.changes`."""
FUSED, BLOCKS, WINOGRAD = ACCELERATIONS


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
    convolves = any(node.op_type == "Conv" for node in fused.graph.node)
    if is_small(model) and (changes or convolves) and not {BLOCKS, WINOGRAD}.isdisjoint(parts):
        blocked, more = _in_blocks(fused, library, parts)
        if more:
            return Accelerated(blocked, {**changes, **more}, library, is_optimised=True)
    return Accelerated(fused, changes, library) if changes else Accelerated(model, {})


def _in_blocks(
    model: ModelProto, library: Path, parts: Collection[str]
) -> tuple[ModelProto, dict[str, int]]:
    """The graph as ONNX Runtime optimises it for channels in blocks, and what was changed in it.

    Nothing where ONNX Runtime cannot optimise it: it says what is wrong on opening the graph.
    """
    found = optimised(model.SerializeToString(), library)
    if found is None or has_inner_graphs(found.graph):  # of a function, which is inlined by now
        return model, {}
    counts = {
        BLOCKS: keep_blocks(found) if BLOCKS in parts else 0,
        WINOGRAD: put_convolutions(found.graph) if WINOGRAD in parts else 0,
    }
    return found, {part: count for part, count in counts.items() if count}
