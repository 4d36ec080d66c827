"""One PyTorch module to one ONNX file with a dynamic batch, by PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from good_rt.errors import GoodRtError

OPSET = 20


def trace(module: nn.Module, examples: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """The module as a graph of aten operations whose inputs share one batch size, any from 1.

    ``examples`` are inputs by name, in the module's order. What torch.export raises is left as it is.
    """
    arrays, shapes = tuple(examples.values()), torch.export.ShapesCollection()
    for array in arrays:  # unlike Dim("batch"), DYNAMIC bears with a module that treats large batches apart
        shapes[array] = {0: torch.export.Dim.DYNAMIC}
    with (
        quiet(),
        torch.no_grad(),
        torch.fx.experimental._config.patch(backed_size_oblivious=True),  # batch 1 is nothing special
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
) -> None:
    """Writes the module's graph to ``path``; every input's and output's first axis is "batch".

    ``examples`` are inputs by name, in the module's order, with a batch of at least 2 (a batch of 1 would be taken for
    a constant). Raises GoodRtError when the module cannot be exported or the result is not valid ONNX.
    """
    try:
        traced = trace(module, examples)
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                traced,
                tuple(examples.values()),
                dynamo=True,
                verbose=False,
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=tuple({0: "batch"} for _ in examples),
                opset_version=opset,
            )
    except Exception as error:  # the exporter raises many kinds; its first line says which operation it was
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise GoodRtError(f"{path.name} cannot be exported to ONNX: {first.strip()}") from None
    assert program is not None
    model = program.model_proto
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise GoodRtError(f"{path.name} is not valid ONNX: {str(error).splitlines()[0]}") from None
    onnx.save(model, path)


@contextlib.contextmanager
def quiet():  # type: ignore[no-untyped-def]
    """The exporter prints its progress and warns of its own internals; errors are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
