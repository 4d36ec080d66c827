"""Operators that are not ONNX's, and those of texts and lists, whose memory no limit holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from attack import Attack
from detector_files import V3, in_front, write_sealed
from onnx import helper

FOREIGN = {
    "com.microsoft": "EPContext",
    "ai.onnx.ml": "TreeEnsembleRegressor",
    "ai.onnx.preview.training": "Gradient",
    "com.microsoft.extensions": "PyCustomOp",
    "own": "Own",
    "\x1b[2J": "Own",
    "ai.onnx\0": "Relu",
}
UNBOUNDED = (
    "StringConcat", "StringSplit", "RegexFullMatch", "SequenceConstruct", "SequenceInsert",
    "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "TfIdfVectorizer",
    "ImageDecoder", "StringNormalizer", "SequenceMap",
)  # fmt: skip


def attacks(folder: Path) -> Iterator[Attack]:
    for number, (domain, name) in enumerate(FOREIGN.items()):
        node = helper.make_node(name, ["images"], ["checked"], domain=domain)
        model = in_front(onnx.load(V3), [node], [])
        model.opset_import.append(helper.make_opsetid(domain, 1))
        path = write_sealed(model, folder / f"{number}.onnx")
        yield Attack(f"of {domain!r}", path, r"operators of '.*', not of ONNX, which a detector")
    for name in UNBOUNDED:
        model = in_front(onnx.load(V3), [helper.make_node(name, ["images"], ["checked"])], [])
        path = write_sealed(model, folder / f"{name}.onnx")
        yield Attack(name, path, f"the operator '{name}', which a detector may not")
    model = in_front(onnx.load(V3), [helper.make_node("Frobnicate", ["images"], ["checked"])], [])
    yield Attack("unknown", write_sealed(model, folder / "unknown.onnx"), "Frobnicate")
