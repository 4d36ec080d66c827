"""Convolutions by 3x3 with less than half of their products, as `kernels.c` computes them on
processors with AVX-512.

ONNX Runtime's convolutions on the CPU take channels in blocks, (N, C / block, H, W, block), so the
graph is optimised by ONNX Runtime first, which puts what reorders channels around them. Then a
convolution of stride 1 over whole blocks of 16 channels, with its bias, sum and ReLU, becomes one
operator of ours, and its weights what Winograd's F(2x2, 3x3) takes: 16 numbers for each 9 (Lavin
and Gray, arXiv 1509.09308).
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from good_rt.engines.cpu.fusing import (
    DOMAIN,
    GraphValues,
    attributes,
    drop_unread,
    has_inner_graphs,
    put_nodes,
)

BLOCKED = "com.microsoft.nchwc"
"""The name of ONNX Runtime's own set of operators on channels in blocks."""
LANES, MOST_CHANNELS, LEAST_SIZE = 16, 256, 4
"""What the kernel takes: channels in blocks of so many, and at most so many of the input. The least
height and width at which it is faster: on smaller planes most of a tile is padding, which ONNX
Runtime's convolution leaves out."""
TAPS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""G: what a row of three weights is at the four places of a tile."""
DEFAULTS: Mapping[str, Any] = {
    "strides": [1, 1],
    "dilations": [1, 1],
    "pads": [0, 0, 0, 0],
    "group": 1,
    "auto_pad": b"NOTSET",
    "ceil_mode": 0,
}
"""What ONNX takes a convolution's attributes, or a pooling's, to be where they are not given."""
SAME_SIZE = {**DEFAULTS, "pads": [1, 1, 1, 1]}
"""Those of a convolution that there is a kernel for."""
SAME_PLANE = frozenset({"ReorderInput", "Add", "Concat", "Relu"})
"""What gives images of the height and width that it takes, and in whose output ONNX Runtime may not
tell them."""
Plane = tuple[int, int]
"""Height and width."""


def is_possible() -> bool:
    """Whether this processor is one that the kernel was written for, and ONNX Runtime's blocks are
    so many channels."""
    return platform.machine() in {"x86_64", "AMD64"} and block_size() == LANES


@cache
def block_size() -> int:
    """How many channels are a block on this processor: where the second pixel of the first channel
    goes to."""
    import onnxruntime as ort

    shape = (1, 64, 1, 2)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(BLOCKED, 1)]
    reorder = helper.make_node("ReorderInput", ["x"], ["y"], domain=BLOCKED)
    graph = helper.make_graph([reorder], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), _one_thread(), providers=["CPUExecutionProvider"]
    )
    (blocks,) = session.run(None, {"x": np.arange(128, dtype=np.float32).reshape(shape)})
    return int(np.flatnonzero(blocks.ravel() == 1)[0])


def with_convolutions(model: ModelProto, library: Path) -> tuple[ModelProto, int]:
    """The graph as ONNX Runtime optimises it, with convolutions of ours, and how many these are; 0
    where the graph is to run as it is.

    Args:
        model: A graph without inner graphs; it is not changed.
        library: The compiled kernels.
    """
    if not any(node.op_type == "Conv" for node in model.graph.node) or not is_possible():
        return model, 0
    found = optimised(model.SerializeToString(), library)
    if found is None or has_inner_graphs(found.graph):  # of a function, which is inlined by now
        return model, 0
    return found, put_convolutions(found.graph)


def optimised(model: bytes, library: Path) -> ModelProto | None:
    """The graph as ONNX Runtime's CPU provider runs it, or None where that cannot be had: what is
    wrong with a graph, ONNX Runtime says on opening it."""
    import onnxruntime as ort

    try:
        with tempfile.TemporaryDirectory() as folder:  # it is written to a file, or not at all
            options = _one_thread()
            options.register_custom_ops_library(str(library))
            options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)
    except (
        Exception
    ):  # onnxruntime's exceptions share no base class; no folder to write to is another reason
        return None


def _one_thread() -> Any:
    """Options of a session that starts no threads, which would not keep to this process's cores,
    and says nothing."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


def put_convolutions(graph: GraphProto) -> int:
    """Replaces the convolutions in blocks that there is a kernel for, in place, and returns how
    many these were."""
    values, planes = GraphValues(graph), dict[str, Plane]()
    nodes, count = list[NodeProto](), 0
    for node in graph.node:
        plane = _plane(values, planes, node)
        if plane is not None:
            planes[node.output[0]] = plane
        fits = (
            node.domain == BLOCKED
            and node.op_type == "Conv"
            and plane is not None
            and min(plane) >= LEAST_SIZE
        )
        found = _convolution(graph, values, node) if fits else None
        nodes.append(found or node)
        count += found is not None
    put_nodes(graph, nodes)
    drop_unread(graph)
    return count


def _plane(values: GraphValues, planes: Mapping[str, Plane], node: NodeProto) -> Plane | None:
    """Of what a node gives. ONNX Runtime does not tell the shapes of values in blocks."""
    if (known := _known_plane(values, node.output[0])) is not None:
        return known
    before = (
        planes.get(node.input[0]) or _known_plane(values, node.input[0]) if node.input else None
    )
    given = {**DEFAULTS, **attributes(node)}
    if before is None or given.get("channels_last"):
        return None
    if node.op_type in SAME_PLANE:
        return before
    if node.domain != BLOCKED:
        return None
    weight = values.constants.get(node.input[1]) if node.op_type == "Conv" else None
    kernel = given.get("kernel_shape") or (weight.dims[2:] if weight is not None else None)
    if kernel is None or given["auto_pad"] != b"NOTSET" or given["ceil_mode"]:
        return None
    down, across = (
        (
            size
            + given["pads"][axis]
            + given["pads"][axis + 2]
            - given["dilations"][axis] * (taps - 1)
            - 1
        )
        // given["strides"][axis]
        + 1
        for axis, (size, taps) in enumerate(zip(before, kernel, strict=True))
    )
    return down, across


def _known_plane(values: GraphValues, name: str) -> Plane | None:
    shape = (values.of(name) or (0, ()))[1]
    match shape[2:]:
        case (int(height), int(width)):
            return height, width
    return None


def _convolution(graph: GraphProto, values: GraphValues, node: NodeProto) -> NodeProto | None:
    given, weight = {**DEFAULTS, **attributes(node)}, values.array(node.input[1])
    if (
        weight is None
        or weight.shape[2:] != (3, 3)
        or any(given[name] != value for name, value in SAME_SIZE.items())
    ):
        return None
    out, channels = weight.shape[:2]
    if (
        out % LANES
        or channels % LANES
        or channels > MOST_CHANNELS
        or given.get("activation", b"Relu") != b"Relu"
    ):
        return None
    x, kernel, bias, added = (*node.input, "", "")[:4]
    if not bias:
        bias = f"{node.output[0]} bias"
        graph.initializer.append(numpy_helper.from_array(np.zeros(out, np.float32), bias))
    if (weights := f"{kernel} transformed") not in values.constants:
        values.constants[weights] = numpy_helper.from_array(transformed(weight), weights)
        graph.initializer.append(values.constants[weights])
    kind, sums = ("ConvolutionAdd", [added]) if added else ("Convolution", [])
    inputs, relu = [x, weights, bias, *sums], int("activation" in given)
    return helper.make_node(kind, inputs, node.output, node.name, domain=DOMAIN, relu=relu)


def transformed(weight: np.ndarray) -> np.ndarray:
    """G·g·Gᵀ of weights in blocks: (K, C, 3, 3), which lie in memory as (K / 16, C / 16, 3, 3, 16
    of C, 16 of K).

    Rows of pairs of K / 16 and perhaps a last one alone: each (16 places, C, K / 16 of the pair, 16
    of K).
    """
    out, channels = weight.shape[:2]
    blocks = weight.reshape(out // LANES, channels // LANES, 3, 3, LANES, LANES).astype(np.float64)
    found = np.einsum("ah,bw,kchwio->kabcio", TAPS, TAPS, blocks, optimize=True)
    found = found.reshape(out // LANES, 16, channels, LANES)
    pairs = [
        found[start : start + 2].transpose(1, 2, 0, 3).ravel() for start in range(0, len(found), 2)
    ]
    return np.concatenate(pairs).astype(np.float32)
