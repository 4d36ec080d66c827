"""Replaces 3x3 convolutions by Winograd convolutions of `kernels.c`, on processors with AVX-512.

Winograd's F(2x2, 3x3) needs 16 products where a plain convolution needs 36, and stores 16 numbers
for each 9 weights (Lavin and Gray, arXiv 1509.09308).

ONNX Runtime's convolutions on the CPU keep channels in blocks, (N, C / block, H, W, block). So the
graph is first optimised by ONNX Runtime, which chooses that layout and inserts the operators that
reorder channels. Then each convolution with stride 1 and a multiple of 16 channels becomes one
operator of ours, together with its bias, sum and ReLU.
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
"""The ONNX domain of ONNX Runtime's operators on channels in blocks."""
LANES, MOST_CHANNELS, LEAST_SIZE = 16, 256, 4
"""Limits of the kernel: channels per block; the most input channels; the least height and width at
which it is faster (on smaller planes most of a tile is padding, which ONNX Runtime's convolution
leaves out)."""
TAPS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""G, which turns a row of three weights into the four numbers of a tile's row."""
DEFAULTS: Mapping[str, Any] = {
    "strides": [1, 1],
    "dilations": [1, 1],
    "pads": [0, 0, 0, 0],
    "group": 1,
    "auto_pad": b"NOTSET",
    "ceil_mode": 0,
}
"""ONNX's defaults of the attributes of a convolution or pooling."""
SAME_SIZE = {**DEFAULTS, "pads": [1, 1, 1, 1]}
"""The attributes that a convolution must have for the kernel."""
SAME_PLANE = frozenset({"ReorderInput", "Add", "Concat", "Relu"})
"""Operators whose output has the height and width of their input, although ONNX Runtime may not
declare its shape."""
Plane = tuple[int, int]
"""Height and width."""


def is_possible() -> bool:
    """Whether the kernel runs here: on x86, where ONNX Runtime's blocks have `LANES` channels."""
    return platform.machine() in {"x86_64", "AMD64"} and block_size() == LANES


@cache
def block_size() -> int:
    """The number of channels in ONNX Runtime's blocks on this processor.

    It is the position to which ReorderInput moves the second pixel of the first channel.
    """
    import onnxruntime as ort

    shape = (1, 64, 1, 2)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(BLOCKED, 1)]
    reorder = helper.make_node("ReorderInput", ["x"], ["y"], domain=BLOCKED)
    graph = helper.make_graph([reorder], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"]
    )
    (blocks,) = session.run(None, {"x": np.arange(128, dtype=np.float32).reshape(shape)})
    return int(np.flatnonzero(blocks.ravel() == 1)[0])


def with_convolutions(model: ModelProto, library: Path) -> tuple[ModelProto, int]:
    """The graph as ONNX Runtime optimises it, with Winograd convolutions, and their number.

    Args:
        model: A graph without inner graphs; it is not changed.
        library: The compiled kernels.

    Returns:
        The new graph and the number of convolutions replaced; ``model`` itself and 0 if it cannot
        be optimised, or has no convolutions to replace.
    """
    if not any(node.op_type == "Conv" for node in model.graph.node) or not is_possible():
        return model, 0
    optimised_model = optimised(model.SerializeToString(), library)
    # inner graphs may come from functions, which ONNX Runtime has inlined
    if optimised_model is None or has_inner_graphs(optimised_model.graph):
        return model, 0
    return optimised_model, put_convolutions(optimised_model.graph)


def optimised(model: bytes, library: Path) -> ModelProto | None:
    """The graph after ONNX Runtime's optimisations for its CPU provider.

    None if ONNX Runtime cannot open the graph (opening the engine then gives the error), or there
    is no folder to write to.
    """
    import onnxruntime as ort

    try:
        # ONNX Runtime only gives the optimised graph as a file
        with tempfile.TemporaryDirectory() as folder:
            options = quiet_options(library)
            options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)
    # onnxruntime's exceptions share no base class
    except Exception:
        return None


def quiet_options(library: Path | None = None) -> Any:
    """Options of an ONNX Runtime session that runs on the calling thread and logs nothing.

    ONNX Runtime's own threads would not keep to the cores that this process may use.

    Args:
        library: Compiled kernels to register.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return options


def put_convolutions(graph: GraphProto) -> int:
    """Replaces the convolutions that the kernel can compute, in place; returns their number."""
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
        replacement = _convolution(graph, values, node) if fits else None
        nodes.append(replacement or node)
        count += replacement is not None
    put_nodes(graph, nodes)
    drop_unread(graph)
    return count


def _plane(values: GraphValues, planes: Mapping[str, Plane], node: NodeProto) -> Plane | None:
    """Height and width of a node's output; None if they are unknown.

    ONNX Runtime does not declare the shapes of values in blocks, so they follow from the planes of
    the nodes before.

    Args:
        values: The graph's values.
        planes: Height and width of the outputs of earlier nodes, by name.
        node: The node.
    """
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
    """Height and width of a value whose shape the graph declares; else None."""
    shape = (values.of(name) or (0, ()))[1]
    match shape[2:]:
        case (int(height), int(width)):
            return height, width
    return None


def _convolution(graph: GraphProto, values: GraphValues, node: NodeProto) -> NodeProto | None:
    """The Winograd convolution that replaces a node, with its weights added to the graph; None if
    the kernel cannot compute the node."""
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
    """The weights of a 3x3 convolution in Winograd's form G·g·Gᵀ, in the kernel's order.

    Args:
        weight: K output and C input channels, multiples of 16. Its shape is (K, C, 3, 3), but its
            memory is in ONNX Runtime's order: (K / 16, C / 16, 3, 3, 16 of C, 16 of K).

    Returns:
        Flat float32. The K / 16 blocks of output channels are taken two at a time, the last one
        alone if their number is odd. Each pair is (16 numbers of a tile, C, blocks of the pair, 16
        of K).
    """
    out, channels = weight.shape[:2]
    blocks = weight.reshape(out // LANES, channels // LANES, 3, 3, LANES, LANES).astype(np.float64)
    tiles = np.einsum("ah,bw,kchwio->kabcio", TAPS, TAPS, blocks, optimize=True)
    tiles = tiles.reshape(out // LANES, 16, channels, LANES)
    pairs = [
        tiles[start : start + 2].transpose(1, 2, 0, 3).ravel() for start in range(0, len(tiles), 2)
    ]
    return np.concatenate(pairs).astype(np.float32)
