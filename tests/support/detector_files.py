"""Detector files that somebody changed and sealed again, so that only the change is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from good_rt.detector.onnx_content import HASH_DIGITS, content_hash
from good_rt.detector.runtime import DETECTOR_RECORD, METADATA_KEY

V3 = Path(__file__).parents[1] / "records" / "v3" / "detector.onnx"
PLACEHOLDER = "7ea1" * (HASH_DIGITS // 4)


def metadata_of(model: onnx.ModelProto) -> dict[str, Any]:
    """The record in a detector's metadata."""
    (text,) = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    record: dict[str, Any] = json.loads(text)
    return record


def write_sealed(model: onnx.ModelProto, path: Path, **changes: Any) -> Path:
    """Writes a detector of the current version whose hash is right.

    Args:
        model: The detector; one of version 3 becomes one of the current version.
        path: The file.
        changes: What the metadata say instead; ... takes a key away.
    """
    record = metadata_of(model) | {"version": DETECTOR_RECORD.version}
    record |= {"weights_sha256": PLACEHOLDER} | changes
    record = {key: value for key, value in record.items() if value is not ...}
    return write_text(model, path, json.dumps(record))


def write_text(model: onnx.ModelProto, path: Path, text: str) -> Path:
    """Writes a detector with that text as its metadata, and its hash in the placeholder's stead."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.metadata_props[:]
    changed.metadata_props.add(key=METADATA_KEY, value=text)
    path.write_bytes(changed.SerializeToString())  # onnx.save would look for external data
    digest = content_hash(path, PLACEHOLDER.encode())
    if digest is not None:
        path.write_bytes(path.read_bytes().replace(PLACEHOLDER.encode(), digest.encode()))
    return path


def in_front(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]
) -> onnx.ModelProto:
    """The detector with nodes before its first: they take "images", and give "checked" in its
    place."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        node.input[:] = ["checked" if name == "images" else name for name in node.input]
    others = list(changed.graph.node)
    del changed.graph.node[:]
    changed.graph.node.extend([*nodes, *others])
    changed.graph.initializer.extend(tensors)
    return changed


def float_weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The weights that hold floating-point numbers, largest first."""
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    yield from sorted(floats, key=lambda tensor: -len(tensor.raw_data))
