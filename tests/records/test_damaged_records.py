"""A damaged record is read or refused in one line that names its file; nothing else comes up."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from good_rt.classifier import load_classifier
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.splits import Splits
from good_rt.detector.runtime import METADATA_KEY, DetectorInfo
from good_rt.engines.base import TensorSpec
from good_rt.engines.tensorrt import PlanInfo
from good_rt.errors import GoodRtError
from good_rt.evaluation.results import Evaluation
from good_rt.export.manifest import Manifest
from good_rt.files import read_json
from good_rt.workflow.resume import JobState
from good_rt.workflow.train import training_record

V1 = Path(__file__).parent / "v1"
VALUES = (None, -1, "x", [], {}, math.inf, math.nan, True, 10**30, "../x")
SHOWN = 2
"""Items of a list or table that are damaged, from its front."""
CONTENTS = (
    b"",
    b"{",
    b"3",
    b"[]",
    b"null",
    b"\xff\xfe{",
    b"\x80",
    b"\0",
    b"[" * 100_000,
    b'{"a": ',
)
PLAN = PlanInfo(
    graph="network.onnx",
    graph_sha256="g",
    plan_sha256="p",
    plan_bytes=4,
    library="tensorrt",
    library_version="10",
    architectures=("sm89",),
    precision="fp16",
    profile={"batch": (1, 2, 4)},
    tf32=True,
    optimisation_level=None,
    layers=1,
    build_seconds=0.1,
    inputs={"x": TensorSpec("float32", ("batch", 2))},
    outputs={"y": TensorSpec("float32", ("batch", 2))},
    key="k",
)


def read_state(path: Path) -> None:
    state = JobState(path.parent)
    key = json.loads((V1 / "state.json").read_text())["steps"]["split"]["key"]
    state.is_done("split", key)
    state.begin("split", "another key")


def read_set(path: Path) -> None:
    generated = GeneratedSet(path.parent)
    generated.begun()
    generated.differences({})
    generated.rows()


READERS: dict[str, Callable[[Path], object]] = {
    "engines/manifest.json": lambda path: Manifest.read(path.parent),
    "engines/network.plan.json": lambda path: PlanInfo.read(path.with_suffix("")),
    "trained/classifier/classifier.json": lambda path: load_classifier(path.parent),
    "trained/training.json": lambda path: training_record(path.parent / "classifier"),
    "generated/img/job.json": read_set,
    "generated/img/manifest.jsonl": lambda path: GeneratedSet(path.parent).images(),
    "splits.json": Splits.read,
    "state.json": read_state,
    "evaluation.json": lambda path: Evaluation.from_json(read_json(path), path),
    "detector.json": lambda path: DetectorInfo.from_json(path.read_text(errors="replace"), path),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of version 1 and a plan's, and a detector's metadata as a file."""
    folder = shutil.copytree(V1, tmp_path_factory.mktemp("damaged") / "records")
    (folder / "engines" / "network.plan.json").write_text(json.dumps(PLAN.to_json()))
    metadata = {entry.key: entry.value for entry in onnx.load(V1 / "detector.onnx").metadata_props}
    (folder / "detector.json").write_text(metadata[METADATA_KEY])
    return folder


def places(value: Any) -> Iterator[tuple[str | int, ...]]:
    """The keys that lead to each value in a JSON document."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys if isinstance(value, dict) and len(keys) < 20 else keys[:SHOWN]:
        yield (key,)
        if isinstance(value[key], (dict, list)):
            yield from ((key, *place) for place in places(value[key]))


def mutations(record: Any) -> Iterator[tuple[str, Any]]:
    """The record with each value dropped or replaced, and with a key more; and what was done."""
    yield "unknown key", {**record, "unknown": 1}
    for place in places(record):
        for new in (*VALUES, ...):
            damaged = copy.deepcopy(record)
            inner = damaged
            for key in place[:-1]:
                inner = inner[key]
            if new is ...:
                del inner[place[-1]]
            else:
                inner[place[-1]] = new
            yield f"{'.'.join(map(str, place))} = {new!r}", damaged


def read_damaged(path: Path, content: bytes, change: str, read: Callable[[Path], object]) -> bool:
    """Whether the damaged record was refused; it fails for any other error."""
    path.write_bytes(content)
    try:
        read(path)
    except GoodRtError as error:
        message = str(error)
        assert path.name in message and "\n" not in message and len(message) < 1000, change
        return True
    except Exception as error:
        pytest.fail(f"{path.name} with {change}: {type(error).__name__}: {error}")
    return False


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_record_is_read_or_refused_by_name(records: Path, name: str) -> None:
    path = records / name
    whole = path.read_bytes()
    READERS[name](path)
    first, *others = whole.splitlines(keepends=True) if name.endswith("jsonl") else [whole]
    try:
        for change, damaged in mutations(json.loads(first)):
            content = json.dumps(damaged).encode() + b"\n" + b"".join(others)
            read_damaged(path, content, change, READERS[name])
        for content in CONTENTS:
            damaged_text = content + b"\n" + b"".join(others)
            assert read_damaged(path, damaged_text, repr(content[:20]), READERS[name])
    finally:
        path.write_bytes(whole)
