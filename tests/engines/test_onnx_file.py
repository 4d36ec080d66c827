"""ONNX files that a runtime must not get: one clear line each, and no file ends the process."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from good_rt.engines.onnx_file import data_files, read_graph
from good_rt.engines.onnxruntime import OnnxRuntimeEngine
from good_rt.errors import GoodRtError
from good_rt.export.to_onnx import export_onnx

FUZZED = 400


def write(
    path: Path,
    *nodes: NodeProto,
    opset: int = 20,
    ir: int = 10,
    tensors: list[TensorProto] | None = None,
) -> Path:
    """A graph of the nodes, from x (batch, 3) to y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["any", "size"])
    graph = helper.make_graph(list(nodes), "g", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    path.write_bytes(model.SerializeToString())  # onnx.save would look for external data
    return path


def refusal(path: Path) -> str:
    """What both who read a graph say of it: one line that names the file."""
    found = []
    for read in (read_graph, OnnxRuntimeEngine):
        with pytest.raises(GoodRtError) as error:
            read(path)
        found.append(str(error.value))
    assert found[0] == found[1]
    assert found[0].startswith(str(path)) and "\n" not in found[0] and len(found[0]) < 400
    return found[0]


RELU = helper.make_node("Relu", ["x"], ["y"])
ADD = helper.make_node("Add", ["x", "w"], ["y"])
IF = helper.make_node(
    "If",
    ["c"],
    ["y"],
    then_branch=helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["z"], name="inner")],
        "t",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    ),
    else_branch=helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])],
        "e",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    ),
)


@pytest.mark.parametrize(
    ("nodes", "settings", "message"),
    [
        (
            [helper.make_node("Frobnicate", ["x"], ["y"], name="n")],
            {},
            "operation Frobnicate, node 'n', is not in",
        ),
        (
            [IF],
            {"tensors": [numpy_helper.from_array(np.array(True), "c")]},
            "operation Frobnicate, node 'inner'",
        ),
        (
            [helper.make_node("Gelu", ["x"], ["y"])],
            {"opset": 13},
            "operation Gelu, node '', is not in ONNX's opset 13",
        ),
        ([RELU], {"opset": 99}, "has opset 99, and onnx "),
        ([RELU], {"opset": 0}, "has opset 0, and onnx "),
        ([RELU], {"ir": 99}, "is not a valid ONNX file (Your model ir_version 99"),
        (
            [helper.make_node("Relu", ["z"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
            {},
            "is not a valid",
        ),
        ([helper.make_node("Add", ["x", "nowhere"], ["y"])], {}, "is not a valid ONNX file"),
        (
            [ADD],
            {"tensors": [TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8))]},
            "is not a valid",
        ),
        (
            [ADD],
            {"tensors": [TensorProto(name="w", data_type=1, dims=[-3], raw_data=bytes(12))]},
            "is not a valid",
        ),
        (
            [helper.make_node("ConstantOfShape", ["s"], ["w"]), ADD],
            {"tensors": [numpy_helper.from_array(np.array([2**36, 3]), "s")]},
            f"tensor 'w' would have {2**36 * 3} elements",
        ),
    ],
)
def test_what_is_wrong_is_said(
    nodes: list[NodeProto], settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    assert message in refusal(write(tmp_path / "g.onnx", *nodes, **settings))  # type: ignore[arg-type]


def test_what_the_runtime_alone_does_not_know(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", helper.make_node("Own", ["x"], ["y"], domain="elsewhere"))
    with pytest.raises(GoodRtError, match=r"g\.onnx ") as error:
        OnnxRuntimeEngine(path)
    assert "\n" not in str(error.value) and "elsewhere" in str(error.value)


def external(path: Path, location: str, **entries: int | str) -> Path:
    """x + w with w in another file."""
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return write(path, ADD, tensors=[tensor])


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    (folder / "within").mkdir(parents=True)
    weights = np.arange(3, dtype=np.float32)
    for place in (folder / "w", folder / "within" / "w", tmp_path / "w"):
        place.write_bytes(weights.tobytes())
    (folder / "link").symlink_to(tmp_path / "w")
    path = folder / "g.onnx"
    for location in ("w", "within/w"):
        assert data_files(read_graph(external(path, location))) == [location]
        found = OnnxRuntimeEngine(path)(x=torch.zeros(2, 3))["y"]
        assert torch.equal(found, torch.from_numpy(weights).repeat(2, 1))
    for location in ("../w", str(tmp_path / "w"), "link", "within/../../w", "/dev/zero", ""):
        assert f"the data of 'w' lie outside its folder ({location})" in refusal(
            external(path, location)
        )
    for location in ("gone", ".", "within"):
        assert f"the data of 'w' are missing ({location})" in refusal(external(path, location))
    for entries in (
        {"offset": 2**62},
        {"offset": -5},
        {"length": 2**62},
        {"length": -1},
        {"offset": "x"},
    ):
        refusal(external(path, "w", **entries))


def test_data_of_a_node_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(12))
    tensor = TensorProto(
        name="value", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="../w")
    folder = tmp_path / "engines"
    folder.mkdir()
    path = write(folder / "g.onnx", helper.make_node("Constant", [], ["w"], value=tensor), ADD)
    assert "lie outside its folder" in refusal(path)


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    assert "does not exist" in refusal(path)
    path.mkdir()
    assert "does not exist" in refusal(path)
    path.rmdir()
    for content in (b"", b"no graph", bytes(1000)):
        path.write_bytes(content)
        assert "is not a valid ONNX file" in refusal(path)


def damaged(content: bytes, seed: int) -> bytes:
    """The file with bytes changed, lost, doubled or put in, anywhere: half of them in what is not
    weights."""
    chance, found = random.Random(seed), bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(len(found))
        match chance.randrange(5):
            case 0:
                found[place] ^= 1 << chance.randrange(8)
            case 1:
                found[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:
                del found[place : place + chance.randrange(1, 40)]
            case 3:
                found[place:place] = found[chance.randrange(len(found)) :][
                    : chance.randrange(1, 40)
                ]
            case _:
                found[place:place] = chance.choice([b"\xff" * 9 + b"\x01", b"\x80", bytes(4)])
    return bytes(found[: chance.randrange(len(found))] if chance.randrange(8) == 0 else found)


LOADER = """
import sys
from pathlib import Path
import torch
from good_rt.engines.onnxruntime import OnnxRuntimeEngine
from good_rt.errors import GoodRtError

torch.set_num_threads(1)
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, end=" ", flush=True)
    try:
        engine = OnnxRuntimeEngine(path, threads=1)
        engine(images=torch.zeros(2, 1, 8, 8))
        print("loaded", flush=True)
    except GoodRtError as error:
        assert "\\n" not in str(error)
        print("refused", flush=True)
"""


@pytest.mark.slow
def test_no_damaged_file_ends_the_process(
    tmp_path: Path, mutated: Callable[[onnx.ModelProto, int], onnx.ModelProto]
) -> None:
    """Loaded and run in a process of its own: a crash, a hang or an error of another kind fails the
    test."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 4),
    )
    export_onnx(
        network.eval(), {"images": torch.randn(2, 1, 8, 8)}, ("y",), tmp_path / "whole.onnx"
    )
    content, model, folder = (
        (tmp_path / "whole.onnx").read_bytes(),
        onnx.load(tmp_path / "whole.onnx"),
        tmp_path / "f",
    )
    folder.mkdir()
    for seed in range(FUZZED):
        made = mutated(model, seed).SerializeToString() if seed % 2 else damaged(content, seed)
        (folder / f"{seed:04}.onnx").write_bytes(made)
    ran = subprocess.run(
        [sys.executable, "-c", LOADER, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, f"{lines[-1:]} ended it with {ran.returncode}: {ran.stderr[-500:]}"
    assert len(lines) == FUZZED
    refused = sum(line.endswith("refused") for line in lines)
    assert FUZZED / 4 < refused < FUZZED  # some are damaged in a weight's value alone
