"""Whether a file is an ONNX graph that a runtime may be given: whole, of known operations, its data
in its own folder.

Runtimes are C++ that trusts its input more than this, and their errors name lines of their own
code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto

from good_rt.errors import GoodRtError, first_line

LARGEST_FILE = 2**31 - 2**24
"""Bytes over which a graph's weights go to a file of their own: protobuf's limit, less some
room."""
LARGEST_TENSOR = 2**31
"""Elements over which a tensor of known size is taken for damage: runtimes compute constants as
they load."""
SMALL_MODEL = 2**28
"""Bytes up to which `is_small` calls a graph with its weights small."""
STANDARD = ("", "ai.onnx")
"""The names of ONNX's own set of operations; what is in others is for the runtime to know."""


def read_graph(path: Path) -> ModelProto:
    """The graph of an ONNX file without its external data, checked.

    Args:
        path: The file.

    Raises:
        GoodRtError: the file is missing, or no runtime may load it.
    """
    if not path.is_file():
        raise GoodRtError(f"{path} does not exist; make it with `good-rt export`")
    try:
        model = onnx.load(path, load_external_data=False)
        check_data(model, path)
        _check_operations(model, path)
        size = (
            sum((path.parent / name).stat().st_size for name in data_files(model))
            + path.stat().st_size
        )
        # the full check needs the data (of shapes) in the graph; beyond protobuf's limit the lesser
        # one has to do
        large = size > LARGEST_FILE
        whole = model if large or not data_files(model) else onnx.load(path)
        onnx.checker.check_model(path if large else whole, full_check=not large)
        if not large:
            _check_sizes(whole, path)
    except GoodRtError:
        raise
    except (
        Exception
    ) as error:  # protobuf, the checker and shape inference each raise kinds of their own
        raise GoodRtError(
            f"{path} is not a valid ONNX file ({first_line(error)}); export it again"
        ) from None
    return model


def data_files(model: ModelProto) -> list[str]:
    """The files of a graph's external data, each once, as the graph names them."""
    return sorted(
        {found for tensor in _tensors(model.graph) if (found := _data_file(tensor)) is not None}
    )


def is_small(model: ModelProto) -> bool:
    """Whether a graph may be loaded more than once: to be optimised, and to compute a batch's parts
    side by side."""
    return not data_files(model) and model.ByteSize() <= SMALL_MODEL


def check_data(model: ModelProto, path: Path) -> None:
    """Checks that the files of a graph's external data are there, in the folder of its file.

    Args:
        model: The graph.
        path: Its file.

    Raises:
        GoodRtError: one is missing, or lies elsewhere.
    """
    for tensor in _tensors(model.graph):
        name = _data_file(tensor)
        if name is None:
            continue
        if not name or not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
            raise GoodRtError(
                f"{path}: the data of {tensor.name!r} lie outside its folder ({name}); export it "
                "again"
            )
        if not (path.parent / name).is_file():
            raise GoodRtError(
                f"{path}: the data of {tensor.name!r} are missing ({name}); copy them beside the "
                "file"
            )


def _check_operations(model: ModelProto, path: Path) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), None)
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not 1 <= opset <= newest:
        raise GoodRtError(
            f"{path} has opset {opset}, and onnx {onnx.__version__} knows 1 to {newest}; export it "
            "again"
        )
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model.graph):
        known = node.domain not in STANDARD or (node.domain, node.op_type) in own
        if not known and opset is not None and not onnx.defs.has(node.op_type, opset, ""):
            raise GoodRtError(
                f"{path}: operation {node.op_type}, node {node.name!r}, is not in ONNX's opset "
                f"{opset}"
            )


def _check_sizes(model: ModelProto, path: Path) -> None:
    for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info:
        size = 1
        for dim in value.type.tensor_type.shape.dim:
            size *= dim.dim_value or 1
        if size > LARGEST_TENSOR:
            raise GoodRtError(
                f"{path}: tensor {value.name!r} would have {size} elements; export it again"
            )


def _data_file(tensor: TensorProto) -> str | None:
    """The file of a tensor's external data, as the tensor has it."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _nodes(graph: GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of inner graphs (of If, Loop) as well."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """All tensors that are stored in a graph: weights, and those that nodes have as attributes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
