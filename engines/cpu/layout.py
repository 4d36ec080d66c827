"""The layout in which ONNX Runtime convolves on the CPU, kept by what stands between two
convolutions.

Its convolutions take channels in blocks, (N, C / block, H, W, block), and wherever an operator that
does not know them stands between two, as our kernels do, ONNX Runtime puts a `ReorderOutput` before
it and a `ReorderInput` after it. But our kernels, sums and concatenations can compute in that
layout as well. So a graph is optimised by ONNX Runtime first, which shows where it reorders, and is
run once that is taken out.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from good_rt.engines.cpu.fusing import DOMAIN, GraphValues, put_nodes
from good_rt.engines.onnx_file import STANDARD

BLOCKED = "com.microsoft.nchwc"
"""The name of ONNX Runtime's own set of operators on channels in blocks."""
BEFORE, AFTER = "ReorderInput", "ReorderOutput"
IN_BLOCKS = " in blocks"
"""How the name of a value ends that lies in blocks where it did not before."""
BLOCKED_INPUTS: dict[tuple[str, str], tuple[int, ...]] = {
    (DOMAIN, "GroupNorm"): (0,),
    (DOMAIN, "GroupNormGradient"): (0, 5),
    (DOMAIN, "ReluGradient"): (0, 1),
    (DOMAIN, "Interleave"): (0, 1, 2, 3),
    (DOMAIN, "AddChannels"): (0,),
    ("", "Relu"): (0,),
    ("", "Add"): (0, 1),
    ("", "Concat"): (),
}
"""What computes in either layout, and which of its inputs are images (none: all), as its first
output is one."""


def optimised(model: bytes, kernels: Path) -> ModelProto | None:
    """The graph as ONNX Runtime's CPU provider runs it, or None where that cannot be had."""
    import onnxruntime as ort

    try:
        with tempfile.TemporaryDirectory() as folder:  # it is written to a file, or not at all
            options = _one_thread()
            options.register_custom_ops_library(str(kernels))
            options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)
    except (
        Exception
    ):  # onnxruntime's exceptions share no base class; no folder to write to is another reason
        return None


def keep_blocks(model: ModelProto) -> int:
    """Takes out of an optimised graph, in place, what reorders more than it has to; returns how
    many operators these were."""
    graph = model.graph
    if not (count := _reorders(graph)):
        return 0  # nothing is convolved, or on this processor not in blocks
    block, values = block_size(), GraphValues(graph)
    chosen = _choose(graph, values, block)
    nodes = list[NodeProto]()
    blocked = dict[str, str]()  # names of values -> those of the same in blocks
    same = dict[str, str]()  # what a ReorderInput that is taken out gave -> what is read instead
    for place, node in enumerate(graph.node):
        if _goes_out(node, block):
            blocked[node.output[0]] = node.input[0]
        elif _goes_in(node) and node.input[0] in blocked:
            same[node.output[0]] = blocked[node.input[0]]
        elif place in chosen:
            for name in (node.input[image] for image in chosen[place]):
                if name not in blocked:
                    blocked[name] = f"{name}{IN_BLOCKS}"
                    nodes.append(_reorder(BEFORE, name, blocked[name]))
            plain = node.output[0]
            _put_in_blocks(node, chosen[place], blocked, block)
            blocked[plain] = node.output[0]
            nodes.append(node)
            _, channels, *_ = values.floats(plain) or ()
            nodes.append(_reorder(AFTER, blocked[plain], plain, channels=int(channels)))
            continue
        nodes.append(node)
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    put_nodes(graph, nodes)
    return max(count - _reorders(graph), 0)


def _choose(graph: GraphProto, values: GraphValues, block: int) -> dict[int, tuple[int, ...]]:
    """Places of the nodes that are to compute in blocks, and of their images: those for which less
    is reordered."""
    readers = defaultdict[str, list[int]](list)
    for place, node in enumerate(graph.node):
        for name in node.input:
            readers[name].append(place)
    outputs = {value.name for value in graph.output}
    fit = {
        place: images
        for place, node in enumerate(graph.node)
        if (images := _images(node, values, block))
    }
    while True:
        blocked, chosen = set[str](), dict[int, tuple[int, ...]]()
        for place, node in enumerate(graph.node):
            images = fit.get(place, ())
            if _goes_out(node, block):
                blocked.add(node.output[0])
            elif images and 2 * sum(node.input[image] in blocked for image in images) >= len(
                images
            ):
                chosen[place] = images
                blocked.add(node.output[0])
        reads_blocks = {
            place for place, node in enumerate(graph.node) if place in chosen or _goes_in(node)
        }
        read_plain = {
            name
            for name in blocked
            if name in outputs or not reads_blocks.issuperset(readers[name])
        }
        for place, images in chosen.items():
            node = graph.node[place]
            names, output = [node.input[image] for image in images], node.output[0]
            missing = sum(name not in blocked for name in names)
            saved = sum(name in blocked and name not in read_plain for name in names)
            if missing + (output in read_plain) >= saved + (
                not reads_blocks.isdisjoint(readers[output])
            ):
                del fit[place]
        if chosen.keys() <= fit.keys():
            return chosen


def _images(node: NodeProto, values: GraphValues, block: int) -> tuple[int, ...]:
    """Which inputs of a node are images, if it computes in either layout and all of their channels
    are whole blocks."""
    images = BLOCKED_INPUTS.get(("" if node.domain in STANDARD else node.domain, node.op_type))
    shape = values.floats(node.output[0])
    if images is None or shape is None or len(shape) != 4 or _partial(shape[1], block):
        return ()
    images = images or tuple(range(len(node.input)))
    shapes = [values.floats(node.input[image]) for image in images]
    if node.op_type == "Concat":
        along = helper.get_node_attr_value(node, "axis") in {1, -3}
        return (
            images
            if along and not any(found is None or _partial(found[1], block) for found in shapes)
            else ()
        )
    # of an Interleave, four equal ones of half the height and width
    return images if node.op_type == "Interleave" or all(found == shape for found in shapes) else ()


def _partial(channels: int | str, block: int) -> bool:
    return isinstance(channels, str) or channels % block != 0


def _put_in_blocks(
    node: NodeProto, images: tuple[int, ...], blocked: Mapping[str, str], block: int
) -> None:
    """Has the node compute in blocks, and its output named so."""
    for image in images:
        node.input[image] = blocked[node.input[image]]
    node.output[0] = f"{node.output[0]}{IN_BLOCKS}"
    for attribute in node.attribute:
        if attribute.name == "block":
            attribute.i = block


def _goes_in(node: NodeProto) -> bool:
    return node.op_type == BEFORE and not channels_last(node)


def _goes_out(node: NodeProto, block: int) -> bool:
    """Whether what it reorders is whole blocks, and so nothing is cut off."""
    whole = node.op_type == AFTER and helper.get_node_attr_value(node, "channels") % block == 0
    return whole and not channels_last(node)


def channels_last(node: NodeProto) -> bool:
    """Whether what is reordered has its channels at the end, where it is not in blocks."""
    return any(attribute.name == "channels_last" and attribute.i for attribute in node.attribute)


def _reorder(kind: str, name: str, output: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, [name], [output], domain=BLOCKED, **attributes)


def _reorders(graph: GraphProto) -> int:
    return sum(node.op_type in {BEFORE, AFTER} for node in graph.node)


def _one_thread() -> Any:
    """Options of a session that starts no threads, which would not keep to this process's cores,
    and says nothing."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


@cache
def block_size() -> int:
    """How many channels are a block on this processor: where the second pixel of the first channel
    goes to."""
    import onnxruntime as ort

    shape = (1, 64, 1, 2)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(BLOCKED, 1)]
    graph = helper.make_graph([_reorder(BEFORE, "x", "y")], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), _one_thread(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.arange(128, dtype=np.float32).reshape(shape)})
    return int(np.flatnonzero(found.ravel() == 1)[0])
