"""Metadata that do not fit the graph, or are no record at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from attack import Attack
from detector_files import V3, metadata_of, write_sealed, write_text

from good_rt.detector.onnx_content import LARGEST_METADATA

NAMES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker"]
CHANGES: dict[str, Any] = {
    "classes": [
        NAMES[:7], [*NAMES, "more"], [], "eight", [1] * 8, [None] * 8, [["a"]] * 8,
        [*NAMES[:7], "x" * 1001], {}, 8,
    ],
    "channels": [0, -1, 2, 4, 3, 1.0, "1", None, True, 10**30],
    "image_size": [0, -32, 33, 31, 50_000, 2**31, 2**63, 10**400, 32.0, "32", None, [32, 32]],
    "alpha": [0, 1, -0.5, 1e-9, math.nan, math.inf, "0.1", None, True, [0.1]],
    "calibration_size": [0, -1, 2399, 2401, 10**12, 2**70, 1e3, "2400", None],
    "training": [1, None, []],
    "versions": [None, [], {"torch": 2}, "2"],
    "weights_sha256": ["", "x" * 64, "0" * 64, "A" * 64, None, 5, ["0" * 64]],
    "type": [None, "splits", 3, ..., {}],
    "version": [0, -1, 5, 10**9, "4", None, 4.0, [], True],
    "unknown": [1],
}  # fmt: skip
"""By key: values that are wrong; ... is no value at all."""
SCORES: dict[str, Any] = {
    "nothing": {},
    "no combination": {"combination": ...},
    "no discrepancies": {"discrepancies": ...},
    "empty discrepancies": {"discrepancies": {}},
    "an unknown combination": {"combination": {"name": "own"}},
    "a combination that is a text": {"combination": "sum"},
    "a name that is a list": {"combination": {"name": ["sum"]}},
    "infinite weights": {"combination": {"name": "sum", "weights": [math.inf, 0.5]}},
    "weights of text": {"combination": {"name": "sum", "weights": ["a", "b"]}},
    "an unknown discrepancy": {"discrepancies": {"own": {}, "mahalanobis": {}}},
    "another order": {"discrepancies": {"relative_mahalanobis": {}, "mahalanobis": {}}},
    "one discrepancy": {"discrepancies": {"mahalanobis": {}}},
    "medians of three classes": {"discrepancies": {"mahalanobis": {"medians": [1, 2, 3]}}},
    "spreads below zero": {"discrepancies": {"mahalanobis": {"spreads": [-1.0] * 8}}},
    "NaN": {"discrepancies": {"mahalanobis": {"medians": [math.nan] * 8}}},
    "an unknown key": {"discrepancies": {"mahalanobis": {"own": 1}}},
    "k of zero": {"discrepancies": {"knn_distance": {"k": 0}}},
    "temperature of zero": {"discrepancies": {"energy": {"temperature": 0}}},
    "a list": {"discrepancies": ["mahalanobis", "relative_mahalanobis"]},
}
TEXTS = {
    "empty": "", "no JSON": "{", "a list": "[]", "null": "null", "deep": "[" * 100_000,
    "a number": "9" * 5000, "NaN": "NaN", "two": "{}{}",
}  # fmt: skip
MESSAGE = (
    r"is damaged \(.*\); build it again|is not valid JSON|must hold a JSON object|upgrade|type"
)


def attacks(folder: Path) -> Iterator[Attack]:
    model = onnx.load(V3)
    score = metadata_of(model)["score"]
    for key, values in CHANGES.items():
        for number, value in enumerate(values):
            path = write_sealed(model, folder / f"{key}-{number}.onnx", **{key: value})
            yield Attack(f"{key} {str(value)[:40]}", path, MESSAGE)
    for number, (name, change) in enumerate(SCORES.items()):
        wrong = {k: v for k, v in {**score, **change}.items() if v is not ...} if change else {}
        path = write_sealed(model, folder / f"score-{number}.onnx", score=wrong)
        yield Attack(f"score: {name}", path, MESSAGE)
    for key in metadata_of(model):
        if key not in CHANGES and key != "written_by":  # which is only quoted
            path = write_sealed(model, folder / f"no-{key}.onnx", **{key: ...})
            yield Attack(f"no {key}", path, MESSAGE)
    for number, (name, text) in enumerate(TEXTS.items()):
        yield Attack(name, write_text(model, folder / f"text-{number}.onnx", text), MESSAGE)

    padded = json.dumps(metadata_of(model)) + " " * LARGEST_METADATA
    path = write_text(model, folder / "large.onnx", padded)
    yield Attack("8 MiB", path, r"damaged .*bytes")

    path = folder / "twice.onnx"
    twice = onnx.load(V3)
    twice.metadata_props.add(key="good_rt", value=twice.metadata_props[0].value)
    path.write_bytes(twice.SerializeToString())
    yield Attack("twice", path, "has the metadata property 'good_rt' twice")

    path = folder / "utf-8.onnx"
    path.write_bytes(V3.read_bytes().replace(b'"sandal"', b'"s\xff\xfe\xfel"'))
    yield Attack("bytes that are no text", path, "damaged or not an ONNX file")
