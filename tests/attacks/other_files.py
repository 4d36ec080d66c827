"""Weights that lie elsewhere: the runtime would read any file, and put its bytes into outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from attack import Attack
from detector_files import V3, float_weights, in_front, write_sealed
from onnx import TensorProto, helper

LOCATIONS = {
    "a file of the system": "/etc/passwd",
    "a file above": "../secret",
    "a file beside": "weights.bin",
    "an endless device": "/dev/zero",
    "memory": "*/_ORT_MEM_ADDR_/*",
    "no location": "",
}
MESSAGE = "weights in another file, which a detector may not"


def external(tensor: TensorProto, location: str | None) -> TensorProto:
    """The tensor with its data elsewhere; None leaves out where."""
    moved = TensorProto()
    moved.CopyFrom(tensor)
    moved.ClearField("raw_data")
    moved.data_location = TensorProto.EXTERNAL
    if location is not None:
        for key, value in (("location", location), ("offset", "0")):
            moved.external_data.add(key=key, value=value)
    return moved


def attacks(folder: Path) -> Iterator[Attack]:
    for name, location in LOCATIONS.items():
        model = onnx.load(V3)
        weight = next(float_weights(model))
        weight.CopyFrom(external(weight, location))
        yield Attack(name, write_sealed(model, folder / f"{len(name)}.onnx"), MESSAGE)

    model = onnx.load(V3)
    weight = next(float_weights(model))
    weight.CopyFrom(external(weight, None))
    yield Attack("no entry", write_sealed(model, folder / "none.onnx"), MESSAGE)

    # the data are here as well: what counts is that the file names another
    model = onnx.load(V3)
    next(float_weights(model)).external_data.add(key="location", value="/etc/passwd")
    yield Attack("both", write_sealed(model, folder / "both.onnx"), MESSAGE)

    value = external(TensorProto(name="v", data_type=1, dims=[1, 1, 32, 32]), "/etc/passwd")
    nodes = [
        helper.make_node("Constant", [], ["v"], value=value),
        helper.make_node("Add", ["images", "v"], ["checked"]),
    ]
    model = in_front(onnx.load(V3), nodes, [])
    yield Attack("in a node", write_sealed(model, folder / "node.onnx"), MESSAGE)

    model = onnx.load(V3)
    model.graph.initializer.append(external(TensorProto(name="u", data_type=1, dims=[4]), "gone"))
    yield Attack("unused", write_sealed(model, folder / "unused.onnx"), MESSAGE)

    # protobuf merges a second graph into the first
    extra = onnx.ModelProto()
    extra.graph.initializer.append(external(TensorProto(name="u", data_type=1, dims=[4]), "gone"))
    path = write_sealed(onnx.load(V3), folder / "second.onnx")
    path.write_bytes(path.read_bytes() + extra.SerializeToString())
    yield Attack("in a second graph", path, MESSAGE)
