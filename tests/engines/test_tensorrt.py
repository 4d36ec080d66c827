"""TensorRT plans: which are refused and how, and the engine's own steps on a stand-in for the
library.

What a GPU computes is tested where there is one; elsewhere the names that the engine calls are held
to the bindings.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from good_rt.engines import tensorrt
from good_rt.engines.base import TensorSpec
from good_rt.engines.tensorrt import (
    Library,
    PlanInfo,
    TensorRTEngine,
    check_plan,
    info_path,
    load_library,
)
from good_rt.errors import GoodRtError
from good_rt.files import write_json
from good_rt.testing.engine import ENGINE_CHECKS, EngineCase

RTX = Library(
    "tensorrt-rtx",
    SimpleNamespace(
        __version__="1.7", ComputeCapability=SimpleNamespace(__members__=["NONE", "SM86", "SM89"])
    ),
)
INFO = PlanInfo(
    graph="double.onnx",
    graph_sha256="g",
    plan_sha256=hashlib.sha256(b"plan").hexdigest(),
    plan_bytes=4,
    library="tensorrt-rtx",
    library_version="1.7",
    architectures=("sm89",),
    precision="fp16",
    profile={"batch": (1, 2, 4)},
    tf32=True,
    optimisation_level=2,
    layers=1,
    build_seconds=0.1,
    inputs={"x": TensorSpec("float32", ("batch", 2))},
    outputs={"y": TensorSpec("float32", ("batch", 2))},
    key="k",
)


def write_plan(folder: Path, info: PlanInfo = INFO, content: bytes = b"plan") -> Path:
    path = folder / "double.fp16.plan"
    path.write_bytes(content)
    write_json(info_path(path), info.to_json())
    return path


def test_there_and_back(tmp_path: Path) -> None:
    assert PlanInfo.read(write_plan(tmp_path)) == INFO


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "architectures": 3}',
        json.dumps({**INFO.to_json(), "plan_bytes": "4"}),
        json.dumps({**INFO.to_json(), "profile": {"batch": [1, 2]}}),
        json.dumps({**INFO.to_json(), "inputs": {"x": {"dtype": "float23", "shape": [1]}}}),
    ],
)
def test_a_damaged_description_is_one_error(tmp_path: Path, text: str) -> None:
    path = write_plan(tmp_path)
    info_path(path).write_text(text)
    with pytest.raises(GoodRtError, match=r"double\.fp16\.plan\.json"):
        PlanInfo.read(path)
    info_path(path).unlink()
    with pytest.raises(GoodRtError, match="beside it cannot be read"):
        PlanInfo.read(path)


def test_the_command_that_builds_it(tmp_path: Path) -> None:
    assert INFO.command(Path("a b")) == (
        "good-rt export --to tensorrt --onnx 'a b/double.onnx' -o 'a b' --library tensorrt-rtx "
        "--precision fp16 "
        "--profile batch=1/2/4 --arch sm89 --tf32 --optimisation-level 2"
    )


def test_refusals_name_the_command(tmp_path: Path) -> None:
    path = write_plan(tmp_path)
    check_plan(INFO, path, RTX, "sm89", "g")
    command = INFO.command(tmp_path)

    def refusal(info: PlanInfo, architecture: str = "sm89", graph: str = "g") -> str:
        with pytest.raises(GoodRtError) as error:
            check_plan(info, path, RTX, architecture, graph)
        return str(error.value)

    version = refusal(replace(INFO, library_version="1.6"))
    assert "1.6" in version and "1.7" in version and command in version
    other = refusal(INFO, "sm86")
    assert "the GPU here is sm86" in other and INFO.command(tmp_path, ["sm89", "sm86"]) in other
    assert "has no plans for it" in refusal(INFO, "sm90")
    graph = refusal(INFO, graph="h")
    assert "another double.onnx" in graph and command in graph
    path.write_bytes(b"plaN")
    assert "hash differs" in refusal(INFO)
    path.unlink()
    assert "cannot read" in refusal(INFO)


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(tensorrt.importlib, "import_module", missing)
    for name in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(GoodRtError, match=rf"pip install 'good-rt\[{name}\]'"):
            load_library(name)
    with pytest.raises(GoodRtError, match="tensorrt-rtx is missing"):
        load_library()
    with pytest.raises(GoodRtError, match="no TensorRT library 'trt'"):
        load_library("trt")


def test_without_a_gpu_there_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tensorrt, "load_library", lambda name: RTX)
    with pytest.raises(GoodRtError, match="needs an NVIDIA GPU"):
        TensorRTEngine(write_plan(tmp_path))


class Context:
    """Stands in for an execution context whose plan doubles a float32 tensor."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        size = int(torch.tensor(self.shapes["x"]).prod())
        x, y = ((ctypes.c_float * size).from_address(self.addresses[name]) for name in ("x", "y"))
        for i in range(size):
            y[i] = 2 * x[i]
        return self.works


class Runtime:
    loads = True

    def __init__(self, logger: object) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> object:
        return SimpleNamespace(create_execution_context=Context) if self.loads else None


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)
    logger = type("ILogger", (), {"Severity": severity, "__init__": lambda self: None})
    api = SimpleNamespace(__version__="1.7", Runtime=Runtime, ILogger=logger)
    monkeypatch.setattr(tensorrt, "load_library", lambda name: Library(name, api))
    monkeypatch.setattr(tensorrt, "present_architecture", lambda: "sm89")
    monkeypatch.setattr(tensorrt, "present_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return api


def test_the_engine_on_a_stand_in(tmp_path: Path, stand_in: Any) -> None:
    engine = TensorRTEngine(write_plan(tmp_path), graph_sha256="g")
    for batch in (1, 4, 3):
        x = torch.randn(2, batch).T  # not contiguous
        assert torch.equal(engine(x=x)["y"], 2 * x)
    with pytest.raises(
        GoodRtError, match=r"batch is 5, the plan takes 1 to 4; .* --profile batch=1/2/5"
    ):
        engine(x=torch.ones(5, 2))
    with pytest.raises(GoodRtError, match="must be float32"):
        engine(x=torch.ones(2, 2).double())
    engine._context.works = False
    with pytest.raises(GoodRtError, match="TensorRT failed"):
        engine(x=torch.ones(2, 2))


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_the_engine_on_a_stand_in_keeps_the_contract(
    tmp_path: Path, stand_in: Any, check: Callable[[EngineCase], None]
) -> None:
    path = write_plan(tmp_path)

    def inputs(batch: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(batch, 2, generator=torch.Generator().manual_seed(batch))}

    def reference(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": 2 * x}

    check(EngineCase(lambda: TensorRTEngine(path), reference, inputs, (1, 2, 4), 1e-6))


def test_a_plan_that_cannot_be_loaded(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "loads", False)
    with pytest.raises(GoodRtError, match="cannot be loaded"):
        TensorRTEngine(write_plan(tmp_path))


def test_the_bindings_have_what_the_engine_calls() -> None:
    api = pytest.importorskip("tensorrt_rtx_bindings")
    used = {
        api.Runtime: ["deserialize_cuda_engine"],
        api.ICudaEngine: ["create_execution_context", "create_runtime_config"],
        api.IRuntimeConfig: ["cuda_graph_strategy"],
        api.CudaGraphStrategy: ["WHOLE_GRAPH_CAPTURE"],
        api.IExecutionContext: [
            "set_input_shape",
            "get_tensor_shape",
            "set_tensor_address",
            "execute_async_v3",
        ],
    }
    assert [
        name for holder, names in used.items() for name in names if not hasattr(holder, name)
    ] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_plan_on_the_gpu(engines_dir: Path, tmp_path: Path, cuda_graphs: bool) -> None:
    from good_rt.engines.onnxruntime import OnnxRuntimeEngine
    from good_rt.export.tensorrt import PlanConfig, build_plan

    path = engines_dir / "classifier.onnx"
    info, _ = build_plan(path, PlanConfig(), tmp_path / "classifier.plan")
    engine = TensorRTEngine(
        tmp_path / "classifier.plan", graph_sha256=info.graph_sha256, cuda_graphs=cuda_graphs
    )
    for batch in (1, 8, 8, 32):
        images = torch.randn(batch, 1, 32, 32)
        expected, found = OnnxRuntimeEngine(path)(images=images), engine(images=images.cuda())
        for name in expected:
            torch.testing.assert_close(found[name].cpu(), expected[name], rtol=1e-3, atol=1e-4)
