"""An ONNX graph in half precision (fp16 or bf16) for TensorRT and ONNX Runtime on a GPU.

TensorRT's builders no longer choose precisions by a flag: the graph's own types say what is
computed in what. Inputs, outputs and what half precision is bad at (norms, softmax, sums, the
timestep's sine) stay float32.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from good_rt.engines.onnx_file import LARGEST_FILE, read_graph

HALF = {
    "fp16": (TensorProto.FLOAT16, torch.float16),
    "bf16": (TensorProto.BFLOAT16, torch.bfloat16),
}
"""Precision -> its ONNX element type and PyTorch's."""

FLOAT32_OPS = frozenset(
    {
        # sums over many elements, and what is steep
        "InstanceNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "ReduceMean",
        "ReduceSum",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceProd",
        "GlobalAveragePool",
        "CumSum",
        "Softmax",
        "LogSoftmax",
        "Exp",
        "Log",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Sin",
        "Cos",
        "TopK",
        "ArgMax",
        "ArgMin",
        # what makes floats out of other things, or has its type in an attribute
        "Cast",
        "CastLike",
        "Constant",
        "ConstantOfShape",
        "EyeLike",
        "OneHot",
        "Range",
        "RandomNormal",
        "RandomUniform",
        "QuantizeLinear",
        "DequantizeLinear",
    }
)
"""Operations that are computed in float32."""

REFUSED = {"fp16": frozenset[str](), "bf16": frozenset({"ConvTranspose"})}
"""Operations that TensorRT-RTX has no kernels for in that precision (1.7.1), and that stay in
float32 for it."""

LIGHT_OPS = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Abs",
        "Clip",
        "Max",
        "Min",
        "Where",
        "Reshape",
        "Transpose",
        "Expand",
        "Unsqueeze",
        "Squeeze",
        "Slice",
        "Concat",
        "Identity",
        "Flatten",
    }
)
"""Operations that stay in float32 where all that they feed does: a timestep on its way to its sine,
x² to its mean."""

FLOAT32_INPUTS = {"Resize": {1, 2}, "BatchNormalization": {1, 2, 3, 4}}
"""Operation -> the places of inputs that must be float32, or are better so, in a half-precision
operation."""


@contextlib.contextmanager
def in_precision(path: Path, precision: str) -> Iterator[Path]:
    """A file with a graph in another precision, as long as the block lasts.

    Args:
        path: The ONNX file, in float32.
        precision: "fp32" (the file itself), "fp16" or "bf16".
    """
    if precision == "fp32":
        yield path
        return
    whole = ModelProto()
    whole.CopyFrom(read_graph(path))
    onnx.load_external_data_for_model(whole, str(path.parent))
    half = to_half(whole, precision)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / path.name
        large = half.ByteSize() > LARGEST_FILE
        onnx.save(half, found, save_as_external_data=large, location="weights" if large else None)
        yield found


def to_half(model: ModelProto, precision: str) -> ModelProto:
    """A copy of the graph with weights and activations in half precision.

    Args:
        model: The graph in float32; its inputs and outputs keep their types.
        precision: "fp16" or "bf16".
    """
    kind, dtype = HALF[precision]
    found = ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    floats = _float_tensors(model)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept = _kept(
        graph, floats, _epsilons(graph, torch.finfo(dtype).tiny), FLOAT32_OPS | REFUSED[precision]
    )
    nodes: list[NodeProto] = []
    # tensors that exist in half precision, as NAME/fp16
    halves: set[str] = set()
    # float32 tensors that exist under their own name
    wholes = {value.name for value in graph.input} | set(weights)

    def half(name: str) -> str:
        twin = f"{name}/{precision}"
        if twin not in halves and name not in weights:
            nodes.append(helper.make_node("Cast", [name], [twin], name=f"{twin}/Cast", to=kind))
        halves.add(twin)
        return twin

    def whole(name: str) -> str:
        if name not in wholes and f"{name}/{precision}" in halves:
            cast = helper.make_node(
                "Cast", [f"{name}/{precision}"], [name], name=f"{name}/Cast", to=TensorProto.FLOAT
            )
            nodes.append(cast)
            wholes.add(name)
        return name

    for node in graph.node:
        low = id_of(node) not in kept and any(
            name in floats for name in (*node.input, *node.output)
        )
        exempt = FLOAT32_INPUTS.get(node.op_type, set())
        inputs = [
            half(name) if low and name in floats and place not in exempt else whole(name)
            for place, name in enumerate(node.input)
        ]
        for name in _captured(node):
            whole(name)
        changed = NodeProto()
        changed.CopyFrom(node)
        del changed.input[:], changed.output[:]
        changed.input.extend(inputs)
        for name in node.output:
            if low and name in floats:
                halves.add(f"{name}/{precision}")
                changed.output.append(f"{name}/{precision}")
            else:
                wholes.add(name)
                changed.output.append(name)
        nodes.append(changed)
    for output in graph.output:
        whole(output.name)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in (*node.input, *_captured(node))} | {
        out.name for out in graph.output
    }
    del graph.initializer[:]
    for name, tensor in weights.items():
        if name in used:
            graph.initializer.append(tensor)
        if f"{name}/{precision}" in used:
            graph.initializer.append(_rounded(tensor, f"{name}/{precision}", kind, dtype))
    return found


def id_of(node: NodeProto) -> str:
    """What tells one node from the others: names may be missing, outputs are unique."""
    return "|".join(node.output)


def _float_tensors(model: ModelProto) -> set[str]:
    """Names of all float32 tensors."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {
        value.name
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    return values | {
        tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }


def _epsilons(graph: onnx.GraphProto, tiny: float) -> set[str]:
    """Names of single constants, other than 0, below what half precision holds well: guards of
    divisions."""
    scalars = {tensor.name: tensor for tensor in graph.initializer if math.prod(tensor.dims) == 1}
    return {
        name
        for name, tensor in scalars.items()
        if 0 < abs(float(numpy_helper.to_array(tensor).item())) < tiny
    }


def _kept(
    graph: onnx.GraphProto, floats: set[str], epsilons: set[str], steep: frozenset[str]
) -> set[str]:
    """The nodes that are computed in float32: operations of ``steep``, and what goes with them."""
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    kept: set[str] = set()
    # nodes are in topological order, so that a node's users are seen before it
    for node in reversed(graph.node):
        fed = [user for name in node.output if name in floats for user in users.get(name, [])]
        light = (
            node.op_type in LIGHT_OPS
            and fed
            and outputs.isdisjoint(node.output)
            and all(id_of(user) in kept for user in fed)
        )
        if (
            node.op_type in steep
            or light
            or epsilons.intersection(node.input)
            or any(_captured(node))
        ):
            kept.add(id_of(node))
    return kept


def _captured(node: NodeProto) -> Iterator[str]:
    """Names that a node's inner graphs (of If, Loop) take from outside, and others; the graphs are
    left as they are."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _captured(inner)


def _rounded(tensor: TensorProto, name: str, kind: int, dtype: torch.dtype) -> TensorProto:
    """A weight in half precision; what lies beyond its range (a mask's -3.4e38) becomes its largest
    value."""
    array = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    limit = torch.finfo(dtype).max
    rounded = torch.where(array.isinf(), array, array.clamp(-limit, limit)).to(dtype)
    found = TensorProto(name=name, data_type=kind, dims=tensor.dims)
    found.raw_data = rounded.contiguous().view(torch.int16).numpy().tobytes()
    return found
