"""Small files that make large tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from attack import Attack
from detector_files import V3, in_front, write_sealed
from onnx import NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

MESSAGE = "takes more than 512 MiB for one image"
node = helper.make_node


def whole(name: str, *numbers: int) -> TensorProto:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def one(name: str, number: float, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(number, dtype), name)


def summed(large: str) -> list[NodeProto]:
    """images plus 0 times the sum of what is large."""
    return [
        node("ReduceMax", [large], ["largest"], keepdims=0),
        node("Mul", ["largest", "zero"], ["nothing"]),
        node("Add", ["images", "nothing"], ["checked"]),
    ]


GRAPHS: dict[str, tuple[list[NodeProto], list[TensorProto]]] = {
    "ConstantOfShape": ([node("ConstantOfShape", ["s"], ["w"])], [whole("s", 2**31)]),
    "Expand": ([node("Expand", ["images", "s"], ["w"])], [whole("s", 2**20, 1, 32, 32)]),
    "Tile": ([node("Tile", ["images", "s"], ["w"])], [whole("s", 1, 2**20, 1, 1)]),
    "Range": (
        [node("Range", ["low", "high", "step"], ["w"])],
        [one("low", 0), one("high", 2**31), one("step", 1)],
    ),
    "Pad": ([node("Pad", ["images", "s"], ["w"])], [whole("s", 0, 0, 0, 0, 0, 0, 2**14, 2**14)]),
    "Resize": (
        [node("Resize", ["images", "", "", "s"], ["w"])],
        [whole("s", 1, 1, 2**15, 2**15)],
    ),
    "OneHot": (
        [
            node("Cast", ["images"], ["places"], to=TensorProto.INT64),
            node("OneHot", ["places", "depth", "values"], ["w"]),
        ],
        [whole("depth", 2**22), numpy_helper.from_array(np.float32([0, 1]), "values")],
    ),
    "RandomNormal": ([node("RandomNormal", [], ["w"], shape=[2**15, 2**15])], []),
    "doubling": (
        [
            *[node("Concat", [f"w{i}" if i else "images"] * 2, [f"w{i + 1}"], axis=1)
              for i in range(31)],
            node("Identity", ["w31"], ["w"]),
        ],
        [],
    ),
    "every pair": (
        [
            node("ConstantOfShape", ["s"], ["column"]),
            node("Reshape", ["column", "row"], ["r"]),
            node("Add", ["column", "r"], ["w"]),
        ],
        [whole("s", 2**17, 1), whole("row", 1, -1)],
    ),
}  # fmt: skip
"""By name: nodes that make w, and the constants that they need."""


def attacks(folder: Path) -> Iterator[Attack]:
    for name, (nodes, tensors) in GRAPHS.items():
        tensors = [*tensors, one("zero", 0)]
        model = in_front(onnx.load(V3), [*nodes, *summed("w")], tensors)
        yield Attack(name, write_sealed(model, folder / f"{name}.onnx"), MESSAGE)

    # what no output needs, but the runtime would compute as a constant
    nodes, tensors = GRAPHS["ConstantOfShape"]
    model = in_front(onnx.load(V3), [*nodes, node("Identity", ["images"], ["checked"])], tensors)
    path = write_sealed(model, folder / "dead.onnx")
    yield Attack("unused", path, MESSAGE)

    model = onnx.load(V3)
    sparse = SparseTensorProto(dims=[2**15, 2**15])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1]), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([5]), "sparse_indices"))
    model.graph.sparse_initializer.append(sparse)
    yield Attack("sparse", write_sealed(model, folder / "sparse.onnx"), "holds sparse weights")

    constant = node("Constant", [], ["w"], sparse_value=sparse)
    model = in_front(onnx.load(V3), [constant, *summed("w")], [one("zero", 0)])
    yield Attack("sparse node", write_sealed(model, folder / "s.onnx"), "holds sparse weights")

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**20, 2**20])
    model = in_front(onnx.load(V3), summed("w"), [weight, one("zero", 0)])
    path = write_sealed(model, folder / "hollow.onnx")
    yield Attack("a weight without data", path, r"damaged|fails on an image")
