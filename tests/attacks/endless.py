"""Graphs within graphs, and functions: loops without end, and calls that multiply."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from attack import Attack
from detector_files import V3, in_front, write_sealed
from onnx import FunctionProto, GraphProto, TensorProto, helper, numpy_helper


def branch(name: str) -> GraphProto:
    node = helper.make_node("Identity", ["images"], [name])
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([node], name, [], [value])


def body() -> GraphProto:
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Identity", ["go_on"], ["again"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    inputs = [info("turn", TensorProto.INT64, []), info("go_on", TensorProto.BOOL, []),
              info("x", TensorProto.FLOAT, None)]  # fmt: skip
    outputs = [info("again", TensorProto.BOOL, []), info("y", TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, "body", inputs, outputs)


def functions(depth: int) -> list[FunctionProto]:
    """Each calls the one before twice."""
    opset, found = [helper.make_opsetid("", 20)], []
    for level in range(depth):
        called = ("Relu", "") if level == 0 else (f"f{level - 1}", "own")
        nodes = [
            helper.make_node(called[0], [source], [target], domain=called[1])
            for source, target in (("a", "b"), ("b", "c"))
        ]
        imports = [*opset, helper.make_opsetid("own", 1)]
        found.append(helper.make_function("own", f"f{level}", ["a"], ["c"], nodes, imports))
    return found


def attacks(folder: Path) -> Iterator[Attack]:
    message = r"holds (the operator '\w+'|a graph within its graph .*), which a detector may not"
    yes = numpy_helper.from_array(np.array(True), "yes")
    turns = numpy_helper.from_array(np.array(2**62), "turns")
    loop = helper.make_node("Loop", ["turns", "yes", "images"], ["checked"], body=body())
    model = in_front(onnx.load(V3), [loop], [yes, turns])
    yield Attack("an endless loop", write_sealed(model, folder / "loop.onnx"), message)

    loop = helper.make_node("Loop", ["", "yes", "images"], ["checked"], body=body())
    model = in_front(onnx.load(V3), [loop], [yes])
    yield Attack("a loop without a bound", write_sealed(model, folder / "free.onnx"), message)

    condition = helper.make_node(
        "If", ["yes"], ["checked"], then_branch=branch("t"), else_branch=branch("e")
    )
    model = in_front(onnx.load(V3), [condition], [yes])
    yield Attack("a condition", write_sealed(model, folder / "if.onnx"), message)

    scan = helper.make_node("Scan", ["images"], ["checked"], num_scan_inputs=1, body=branch("s"))
    model = in_front(onnx.load(V3), [scan], [])
    yield Attack("a scan", write_sealed(model, folder / "scan.onnx"), message)

    model = in_front(onnx.load(V3), [helper.make_node("Loop", ["images"], ["checked"])], [])
    message = "the operator 'Loop', which a detector may not"
    yield Attack("a loop without a body", write_sealed(model, folder / "bare.onnx"), message)

    call = helper.make_node("f30", ["images"], ["checked"], domain="own")
    model = in_front(onnx.load(V3), [call], [])
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.extend(functions(31))
    message = "holds (functions|operators of 'own', not of ONNX), which a detector may not"
    yield Attack("2^30 calls", write_sealed(model, folder / "calls.onnx"), message)

    model = onnx.load(V3)
    model.functions.extend(functions(1))
    yield Attack("a function", write_sealed(model, folder / "function.onnx"), "holds functions")

    model = onnx.load(V3)
    model.training_info.add().algorithm.CopyFrom(body())
    yield Attack("training", write_sealed(model, folder / "train.onnx"), "holds training steps")
