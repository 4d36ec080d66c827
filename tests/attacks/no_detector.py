"""Files of other formats, and bytes that pretend to be ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
from attack import Attack
from detector_files import V3

BYTES = {
    "empty": b"",
    "a text": b"hello",
    "field 0, of no bytes": bytes(10_000),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "a number without an end": b"\xff" * 10_000,
    "a length beyond the end": b"\x3a\xff\xff\xff\xff\x07x",
    "a length of 2^63": b"\x3a" + b"\xff" * 9 + b"\x7f",
    "groups within groups": b"\x3b" * 100_000,
    "field 0": b"\x02\x00",
    "half a detector": V3.read_bytes()[:100_000],
}


def attacks(folder: Path) -> Iterator[Attack]:
    for number, (name, content) in enumerate(BYTES.items()):
        path = folder / f"{number}.onnx"
        path.write_bytes(content)
        yield Attack(name, path, "damaged or not an ONNX file")

    options = onnxruntime.SessionOptions()
    path = folder / "detector.ort"
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(V3, options, providers=["CPUExecutionProvider"])
    yield Attack("a file of ONNX Runtime's format", path, "damaged or not an ONNX file")

    model = onnx.load(V3)
    model.opset_import[0].version = 99
    path = folder / "opset.onnx"
    path.write_bytes(model.SerializeToString())
    yield Attack("operators of the future", path, "damaged or not an ONNX file")

    yield Attack("a folder", folder, "is a folder; give a detector.onnx")
    yield Attack("a device", Path("/dev/zero"), "is not a regular file; give a detector.onnx")
    yield Attack("nothing", folder / "gone.onnx", "does not exist; give a detector.onnx")
