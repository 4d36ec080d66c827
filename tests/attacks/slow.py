"""Small tensors, multiplied again and again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from attack import Attack
from detector_files import V3, in_front, write_sealed
from onnx import helper, numpy_helper

SIZE, TIMES = 1024, 5000


def attacks(folder: Path) -> Iterator[Attack]:
    node = helper.make_node
    nodes = [
        node("ConstantOfShape", ["size"], ["m0"]),
        *[node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(TIMES)],
        node("ReduceMax", [f"m{TIMES}"], ["largest"], keepdims=0),
        node("Add", ["images", "largest"], ["checked"]),
    ]
    size = numpy_helper.from_array(np.array([SIZE, SIZE]), "size")
    path = write_sealed(in_front(onnx.load(V3), nodes, [size]), folder / "slow.onnx")
    yield Attack("5,000 products", path, "takes more than 6 s for one image")
