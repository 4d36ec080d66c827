"""Inputs and outputs that are not a detector's: as they are declared, or only when they run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from attack import Attack
from detector_files import V3, write_sealed
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def renamed(model: onnx.ModelProto, old: str, new: str) -> None:
    """Gives an output another name inside, so that a node can make the output."""
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]


def with_output(name: str, *nodes: onnx.NodeProto, shape: object = None) -> onnx.ModelProto:
    """The detector with an output that nodes make of ``own``, which it was before."""
    model = onnx.load(V3)
    renamed(model, name, "own")
    model.graph.node.extend(nodes)
    for value in model.graph.output:
        if value.name == name:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(name, kind, shape))
    for name, values in {"row": [1, -1], "first": [0]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    return model


def attacks(folder: Path) -> Iterator[Attack]:
    node, damaged = helper.make_node, r"is damaged \(.*\); build it again"
    files: dict[str, tuple[onnx.ModelProto, str]] = {}

    model = onnx.load(V3)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    files["batches of one"] = model, damaged
    model = onnx.load(V3)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    files["images of uint8"] = model, "is damaged or not an ONNX file"
    model = onnx.load(V3)
    model.graph.input.append(helper.make_tensor_value_info("more", FLOAT, [1]))
    files["two inputs"] = model, r"is damaged \(its inputs are"
    model = onnx.load(V3)
    del model.graph.output[-1]
    files["no decision"] = model, r"is damaged \(its outputs are"
    model = onnx.load(V3)
    model.graph.output.append(model.graph.output[0])
    files["an output twice"] = model, damaged

    files["a score of shape (1, N)"] = (
        with_output("score", node("Reshape", ["own", "row"], ["score"])),
        r"is damaged \(its output score is float32 \(1, 1\), not float32 \(1,\)\)",
    )
    files["logits without a class"] = (
        with_output("logits", node("Gather", ["own", "first"], ["logits"], axis=1)),
        r"is damaged \(its output logits is float32 \(1, 1\), not float32 \(1, 8\)\)",
    )
    files["a decision of numbers"] = (
        with_output("p_value", node("Cast", ["own"], ["p_value"], to=TensorProto.DOUBLE)),
        "is damaged or not an ONNX file",
    )
    for number, (name, (model, message)) in enumerate(files.items()):
        yield Attack(name, write_sealed(model, folder / f"{number}.onnx"), message)

    # only wrong for more than one image
    model = with_output("score", node("ReduceMax", ["own"], ["score"], keepdims=1))
    message = "damaged .it does not give one score for each of 2 images"
    yield Attack("one score for all", write_sealed(model, folder / "one.onnx"), message)
