"""Names that would clear the screen, hide text or start a line of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from attack import Attack
from detector_files import V3, in_front, write_sealed
from onnx import helper

HIDDEN = "\x1b[2J\x1b]0;owned\x07\r\n\u202e"


def attacks(folder: Path) -> Iterator[Attack]:
    node = helper.make_node("Add", ["images", HIDDEN], ["checked"], name=HIDDEN)
    path = write_sealed(in_front(onnx.load(V3), [node], []), folder / "node.onnx")
    yield Attack("a node's name", path, "damaged or not an ONNX file")

    model = onnx.load(V3)
    model.graph.output[0].name = HIDDEN
    yield Attack("an output's name", write_sealed(model, folder / "output.onnx"), "damaged")

    path = write_sealed(onnx.load(V3), folder / "key.onnx", **{HIDDEN: 1})
    yield Attack("a key", path, r"damaged .*is not a known key")

    path = write_sealed(onnx.load(V3), folder / "type.onnx", type=HIDDEN)
    yield Attack("a type", path, "is a record of type")

    path = write_sealed(onnx.load(V3), folder / "writer.onnx", version=9, written_by=HIDDEN)
    yield Attack("a writer", path, "written by a newer good-rt")

    path = write_sealed(onnx.load(V3), folder / f"{HIDDEN.replace('/', '')}.onnx", alpha=9)
    yield Attack("the file's own name", path, r"x1b\[2J.* is damaged")
