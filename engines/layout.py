"""The layout in which ONNX Runtime convolves on the CPU, kept by what stands between two convolutions.

Its convolutions take channels in blocks, (N, C / block, H, W, block), and wherever an operator that does not know them
stands between two, as our kernels do, ONNX Runtime puts a `ReorderOutput` before it and a `ReorderInput` after it. But
our kernels, sums and concatenations can compute in that layout as well. So a graph is optimised by ONNX Runtime first,
which shows where it reorders, and is run once that is taken out.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from good_rt.engines.fusing import DOMAIN, Values, put_nodes
from good_rt.engines.onnx_file import STANDARD

BLOCKED = "com.microsoft.nchwc"
"""The name of ONNX Runtime's own set of operators on channels in blocks."""
BEFORE, AFTER = "ReorderInput", "ReorderOutput"
IMAGES = {
    (DOMAIN, "GroupNorm"): (0,), (DOMAIN, "GroupNormGradient"): (0, 5), (DOMAIN, "ReluGradient"): (0, 1),
    (DOMAIN, "Interleave"): (0, 1, 2, 3), (DOMAIN, "AddChannels"): (0,), ("", "Relu"): (0,), ("", "Add"): (0, 1),
    ("", "Concat"): (0, 1),
}  # fmt: skip
"""What computes in either layout, and which of its inputs are images, as its first output is one."""


def optimised(model: bytes, kernels: Path) -> ModelProto:
    """The graph as ONNX Runtime's CPU provider would run it."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(str(kernels))
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def keep_blocks(model: ModelProto) -> int:
    """Takes out of an optimised graph, in place, what reorders more than it has to; returns how many nodes fewer."""
    graph = model.graph
    count = _reorders(graph)
    if not count:
        return 0  # nothing is convolved, or on this processor not in blocks
    block = block_size()
    values, chosen = Values(graph), _choose(graph, block)
    nodes = list[NodeProto]()
    blocked = dict[str, str]()  # names of values -> those of the same in blocks
    same = dict[str, str]()  # what a ReorderInput that is taken out gave -> what is read instead
    for place, node in enumerate(graph.node):
        if _goes_out(node, block):
            blocked[node.output[0]] = node.input[0]
        elif _goes_in(node) and node.input[0] in blocked:
            same[node.output[0]] = blocked[node.input[0]]
        elif place in chosen:
            for name in chosen[place]:
                if name not in blocked:
                    blocked[name] = f"{name} in blocks"
                    nodes.append(_reorder(BEFORE, name, blocked[name]))
            nodes.append(_in_blocks(node, blocked, block))
            plain = node.output[0]
            blocked[plain] = nodes[-1].output[0]
            nodes.append(_reorder(AFTER, blocked[plain], plain, channels=values.channels(plain)))
            continue
        nodes.append(node)
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    put_nodes(graph, nodes)
    return count - _reorders(graph)


def _choose(graph: GraphProto, block: int) -> dict[int, list[str]]:
    """Places of the nodes that are to compute in blocks, and their images: those for which less is reordered."""
    values, readers = Values(graph), defaultdict[str, list[int]](list)
    for place, node in enumerate(graph.node):
        for name in node.input:
            readers[name].append(place)
    outputs = {value.name for value in graph.output}
    fit = {place: images for place, node in enumerate(graph.node) if (images := _images(node, values, block))}
    while True:
        blocked, chosen = set[str](), dict[int, list[str]]()
        for place, node in enumerate(graph.node):
            images = fit.get(place, [])
            if _goes_out(node, block):
                blocked.add(node.output[0])
            elif images and 2 * sum(name in blocked for name in images) >= len(images):
                chosen[place] = images
                blocked.add(node.output[0])
        for place, images in chosen.items():
            output = graph.node[place].output[0]
            read_in_blocks = [reader in chosen or _goes_in(graph.node[reader]) for reader in readers[output]]
            read_plain = output in outputs or not all(read_in_blocks)
            given = sum(name in blocked for name in images)
            if len(images) - given + read_plain >= given + any(read_in_blocks):
                del fit[place]
        if chosen.keys() <= fit.keys():
            return chosen


def _images(node: NodeProto, values: Values, block: int) -> list[str]:
    """The images that a node reads, if it computes in either layout, and all channels are whole blocks."""
    places = IMAGES.get(("" if node.domain in STANDARD else node.domain, node.op_type), ())
    images = [node.input[place] for place in places]
    shape = values.floats(node.output[0])
    if shape is None or len(shape) != 4 or _partial(shape[1], block):
        return []
    shapes = [values.floats(name) for name in images]
    if node.op_type == "Add" and any(found != shape for found in shapes):
        return []
    if node.op_type == "Concat":
        along = len(node.input) == len(places) and helper.get_node_attr_value(node, "axis") == 1
        if not along or any(found is None or _partial(found[1], block) for found in shapes):
            return []
    return images


def _partial(channels: int | str, block: int) -> bool:
    return isinstance(channels, str) or channels % block != 0


def _in_blocks(node: NodeProto, blocked: Mapping[str, str], block: int) -> NodeProto:
    """The same node on blocks, and with the name of its output in blocks."""
    node = NodeProto.FromString(node.SerializeToString())
    for place in IMAGES["" if node.domain in STANDARD else node.domain, node.op_type]:
        node.input[place] = blocked[node.input[place]]
    node.output[0] = f"{node.output[0]} in blocks"
    for attribute in node.attribute:
        if attribute.name == "block":
            attribute.i = block
    return node


def _goes_in(node: NodeProto) -> bool:
    return node.op_type == BEFORE and not _channels_last(node)


def _goes_out(node: NodeProto, block: int) -> bool:
    """Whether what it reorders is whole blocks, and so nothing is cut off."""
    whole = node.op_type == AFTER and helper.get_node_attr_value(node, "channels") % block == 0
    return whole and not _channels_last(node)


def _channels_last(node: NodeProto) -> bool:
    return any(attribute.name == "channels_last" and attribute.i for attribute in node.attribute)


def _reorder(kind: str, name: str, output: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, [name], [output], domain=BLOCKED, **attributes)


def _reorders(graph: GraphProto) -> int:
    return sum(node.op_type in {BEFORE, AFTER} for node in graph.node)


@cache
def block_size() -> int:
    """How many channels are a block on this processor: where the second pixel of the first channel goes to."""
    import onnxruntime as ort

    shape = (1, 64, 1, 2)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(BLOCKED, 1)]
    graph = helper.make_graph([_reorder(BEFORE, "x", "y")], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.arange(128, dtype=np.float32).reshape(shape)})
    return int(np.flatnonzero(found.ravel() == 1)[0])
