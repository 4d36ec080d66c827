"""One PyTorch module to one ONNX file with a dynamic batch, by PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
import torch.fx.config
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from good_rt.engines.onnx_file import LARGEST_FILE
from good_rt.errors import GoodRtError, first_line
from good_rt.export.group_norm import stage_large_groups
from good_rt.files import atomic_path

OPSET = 20


def trace(module: nn.Module, examples: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """The module as a graph of aten operations whose inputs share one batch size, any from 1.

    Exceptions of torch.export are passed on.

    Args:
        module: The module.
        examples: Inputs by name, in the module's order.
    """
    arrays, shapes = tuple(examples.values()), torch.export.ShapesCollection()
    # unlike Dim("batch"), DYNAMIC accepts a module with a branch for large batches
    for array in arrays:
        shapes[array] = {0: torch.export.Dim.DYNAMIC}
    with (
        quiet_exporter(),
        torch.no_grad(),
        torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]  # batch 1 is nothing special
    ):
        dynamic = shapes.dynamic_shapes(module, arrays)
        return torch.export.export(module, arrays, dynamic_shapes=dynamic, strict=False)


def export_onnx(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
    rewrite: bool = True,
) -> None:
    """Writes a module as an ONNX file; the first axis of every input and output is "batch".

    Args:
        module: The module.
        examples: Inputs by name, in the module's order, of any batch size.
        outputs: Names of the outputs.
        path: The file.
        opset: ONNX operator set.
        metadata: What the file's metadata say.
        rewrite: Whether the exporter searches for patterns, which takes most of the time where
            nodes are many. Without it, what only depends on weights is computed now, whatever its
            size.

    Raises:
        GoodRtError: the module cannot be exported, or the result is not valid ONNX.
    """
    try:
        with quiet_exporter(), torch.no_grad():
            traced = stage_large_groups(trace(module, examples))
            program = torch.onnx.export(
                traced,
                tuple(examples.values()),
                dynamo=True,
                verbose=False,
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: "batch"} for _ in examples),
                opset_version=opset,
                optimize=rewrite,
            )
            assert program is not None
            if not rewrite:
                _fold(program.model)
    except GoodRtError:
        raise
    except (
        Exception
    ) as error:  # the exporter raises many kinds; its first line says which operation it was
        raise GoodRtError(f"{path.name} cannot be exported to ONNX: {first_line(error)}") from None
    for node in program.model.graph:
        node.metadata_props.clear()  # where in this machine's files it comes from
    program.model.metadata_props.update(metadata or {})
    _write(program.model, path)


def _write(model: ir.Model, path: Path) -> None:
    """The graph, whole or not at all; weights that are beyond what one file may hold go to
    NAME.data beside it."""
    weights = (value.const_value for value in model.graph.initializers.values())
    large = sum(tensor.nbytes for tensor in weights if tensor is not None) > LARGEST_FILE
    data = f"{path.name}.data"
    with atomic_path(path) as temporary:
        ir.save(model, temporary, external_data=data if large else None)
        try:
            onnx.checker.check_model(temporary, full_check=not large)
        except onnx.checker.ValidationError as error:
            raise GoodRtError(f"{path.name} is not valid ONNX: {first_line(error)}") from None
        if large:
            os.replace(temporary.with_name(data), path.with_name(data))


def _fold(model: ir.Model) -> None:
    """Computes what is constant, and drops what is unused or computed twice."""
    fold_constants(model, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    ir.passes.PassManager([CommonSubexpressionEliminationPass(), RemoveUnusedNodesPass()])(model)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter prints its progress and warns of its own internals; errors are raised all the
    same.

    Garbage collection and stack traces of nodes are off meanwhile: tracing creates millions of
    objects that live until its end, and both together took two fifths of its time.
    """
    logger = logging.getLogger("torch.onnx")
    level, collects = logger.level, gc.isenabled()
    # not in every version of torch
    traces = getattr(torch.fx.config, "do_not_emit_stack_traces", None)
    logger.setLevel(logging.ERROR)
    gc.disable()
    if traces is not None:
        torch.fx.config.do_not_emit_stack_traces = True
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if traces is not None:
            torch.fx.config.do_not_emit_stack_traces = traces
        if collects:
            gc.enable()
        logger.setLevel(level)
