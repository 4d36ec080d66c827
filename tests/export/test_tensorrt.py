"""TensorRT plans by the real builder, which needs no GPU: every graph that we export, the cache,
and the refusals."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from good_rt.engines.tensorrt import PlanInfo, check_plan, info_path, load_library
from good_rt.errors import GoodRtError
from good_rt.export import tensorrt
from good_rt.export.manifest import graph_hash
from good_rt.export.tensorrt import PlanConfig, build_plan, build_plans, load_plan, plan_path
from good_rt.export.to_onnx import export_onnx
from good_rt.files import sha256

api = pytest.importorskip("tensorrt_rtx_bindings")

GRAPHS = ("classifier", "vae_encoder", "vae_decoder", "network")
GRADIENTS = (
    "network_vjp",
    "network_forward",
    "network_backward",
    "decoder_vjp",
    "decoder_forward",
    "decoder_backward",
    "guidance_vjp",
)
ARCHITECTURES = ("sm86", "sm89", "sm120")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's graph; built in a second."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    export_onnx(network.eval(), {"x": torch.randn(2, 1, 8, 8)}, ("y",), path)
    return path


def write_graph(
    path: Path,
    node: onnx.NodeProto,
    kind: int = TensorProto.FLOAT,
    rank: int = 3,
    **weights: np.ndarray,
) -> Path:
    """One operation on x (batch, 3, 3), giving y."""
    x = helper.make_tensor_value_info("x", kind, ["batch", 3, 3])
    y = helper.make_tensor_value_info("y", kind, ["batch", 3, 3][:rank])
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "g", [x], [y], tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    return path


def refusal(path: Path, config: PlanConfig = PlanConfig()) -> str:
    out = path.parent / "refused.plan"
    with pytest.raises(GoodRtError) as error:
        build_plan(path, config, out)
    assert not out.exists() and not info_path(out).exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", GRAPHS + GRADIENTS)
def test_every_graph_is_built(
    name: str, precision: str, gradient_engines_dir: Path, tmp_path: Path
) -> None:
    config = PlanConfig(ARCHITECTURES, precision)
    out = plan_path(tmp_path, name, config)
    info, built = build_plan(gradient_engines_dir / f"{name}.onnx", config, out)
    assert built and out.name == f"{name}.{precision}.plan"
    assert info.layers > 10 and info.plan_bytes == out.stat().st_size > 10_000
    assert info.architectures == ARCHITECTURES and info.profile == {"batch": (1, 8, 32)}
    assert info.inputs.keys() == {
        value.name for value in onnx.load(gradient_engines_dir / f"{name}.onnx").graph.input
    }
    assert all(spec.shape[0] == "batch" for spec in (*info.inputs.values(), *info.outputs.values()))


@pytest.mark.slow
def test_all_graphs_of_a_folder(engines_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(engines_dir, tmp_path / "engines")
    seen: list[str] = []
    plans = build_plans(folder, PlanConfig(("sm89",)), on_graph=seen.append)
    assert set(plans) == set(seen) == set(GRAPHS) and all(built for _, built in plans.values())
    assert not any(built for _, built in build_plans(folder, PlanConfig(("sm89",))).values())


def test_one_plan_holds_several_architectures(tiny: Path, tmp_path: Path) -> None:
    one, _ = build_plan(tiny, PlanConfig(("sm89",)), tmp_path / "one.plan")
    several, _ = build_plan(tiny, PlanConfig(ARCHITECTURES), tmp_path / "several.plan")
    assert several.plan_bytes < 1.1 * one.plan_bytes
    every, _ = build_plan(tiny, PlanConfig(), tmp_path / "every.plan")
    assert set(ARCHITECTURES) < set(every.architectures) and "sm75" not in every.architectures


def test_what_the_library_prints_stays_out_of_standard_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It warns, past its logger, of a number that is rounded; standard output may be a command's
    JSON."""

    class Clamped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clamp_min(1e-12) + x

    export_onnx(Clamped(), {"x": torch.randn(2, 8)}, ("y",), tmp_path / "clamped.onnx")
    capfd.readouterr()
    build_plan(tmp_path / "clamped.onnx", PlanConfig(("sm89",), "bf16"), tmp_path / "clamped.plan")
    printed = capfd.readouterr()
    assert printed.out == "" and "precision" in printed.err


def test_nothing_is_built_twice(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "tiny.plan", PlanConfig(("sm89",))
    first, built = build_plan(tiny, config, out)
    assert built and PlanInfo.read(out) == first and first.plan_sha256 == sha256(out)
    content, calls = out.read_bytes(), []

    def build(*arguments: Any) -> tuple[bytes, int]:
        calls.append(arguments)
        return content, first.layers

    monkeypatch.setattr(tensorrt, "_build", build)
    assert build_plan(tiny, config, out) == (first, False) and not calls
    changes = [
        replace(config, architectures=("sm86",)),
        replace(config, precision="fp16"),
        replace(config, tf32=True),
        replace(config, profile={"batch": (1, 2, 3)}),
        replace(config, optimisation_level=1),
    ]
    for change in changes:
        assert build_plan(tiny, change, tmp_path / "other.plan")[1]
        assert not build_plan(tiny, change, tmp_path / "other.plan")[1]
    assert len(calls) == len(changes)
    # a dimension that the graph has not changes nothing; a damaged plan does, and --force
    assert not build_plan(
        tiny, replace(config, profile={**config.profile, "height": (1, 2, 3)}), out
    )[1]
    out.write_bytes(content[:-1])
    assert build_plan(tiny, config, out)[1]
    assert build_plan(tiny, config, out, force=True)[1]
    monkeypatch.setattr(tensorrt, "load_library", lambda name: FakeVersion())
    assert build_plan(tiny, config, out)[1]


class FakeVersion:
    name, version, targets = "tensorrt-rtx", "0", ("sm89",)


def test_what_tensorrt_cannot_take_is_named(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    det = refusal(write_graph(path, helper.make_node("Det", ["x"], ["y"], name="n"), rank=1))
    assert "cannot take operation Det, node 'n'" in det and api.__version__ in det
    node = helper.make_node("ScatterND", ["x", "i", "x"], ["y"], name="s", reduction="add")
    assert "ScatterND, node 's' (mode == " in refusal(
        write_graph(path, node, i=np.zeros((3, 1), np.int64))
    )
    add = helper.make_node("Add", ["x", "x"], ["y"])
    double = refusal(write_graph(path, add, TensorProto.DOUBLE))
    assert "'x' is double, which TensorRT does not take" in double


def test_settings_that_make_no_sense(tiny: Path) -> None:
    for settings, message in (
        ({"precision": "int8"}, "no precision 'int8'"),
        ({"profile": {"batch": (0, 1, 2)}}, "profile of 'batch'"),
        ({"profile": {"batch": (1, 4, 2)}}, "profile of 'batch'"),
        ({"optimisation_level": 9}, "from 0 to 5"),
    ):
        with pytest.raises(GoodRtError, match=message):
            PlanConfig(**settings)  # type: ignore[arg-type]
    assert "has no architecture 'sm90'; it has sm75" in refusal(tiny, PlanConfig(("sm90",)))
    assert "dimension 'batch' is dynamic; give its --profile" in refusal(
        tiny, PlanConfig(profile={})
    )
    assert "has no timing cache" in refusal(tiny, PlanConfig(timing_cache=tiny.parent / "cache"))
    assert "pip install 'good-rt[tensorrt]'" in refusal(tiny, PlanConfig(library="tensorrt"))


class Settings:
    """Stands in for a builder's settings of the TensorRT that times its kernels."""

    def __init__(self) -> None:
        self.taken: bytes | None = None

    def create_timing_cache(self, content: bytes) -> Any:
        return (
            None
            if content == b"damaged"
            else SimpleNamespace(content=content, serialize=lambda: content + b"+")
        )

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        fits = cache.content != b"another GPU's"
        self.taken = cache.content if fits else self.taken
        return fits

    def get_timing_cache(self) -> Any:
        return self.create_timing_cache(self.taken or b"")


def test_timings_are_kept_where_they_fit(tmp_path: Path) -> None:
    library: Any = SimpleNamespace(name="tensorrt", targets=())
    path = tmp_path / "timings"
    for before, taken in (
        (None, b""),
        (b"old", b"old"),
        (b"damaged", b""),
        (b"another GPU's", b""),
    ):
        if before is not None:
            path.write_bytes(before)
        settings = Settings()
        with tensorrt._timings(
            settings, PlanConfig(timing_cache=path), library, tmp_path / "x.plan"
        ):
            assert settings.taken == taken
        assert path.read_bytes() == taken + b"+"
    with tensorrt._timings(Settings(), PlanConfig(), library, tmp_path / "x.plan"):
        pass
    assert (tmp_path / "tensorrt.timings").exists()


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    assert "does not exist" in refusal(path)
    for content in (b"", b"no graph", bytes(1000)):
        path.write_bytes(content)
        assert "is not a valid ONNX file" in refusal(path)


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(30), id="a-few"),
        pytest.param(range(30, 400), id="many", marks=pytest.mark.slow),
    ],
)
def test_no_malformed_file_ends_the_process(
    seeds: range,
    tiny: Path,
    tmp_path: Path,
    mutated: Callable[[onnx.ModelProto, int], onnx.ModelProto],
) -> None:
    """Without the checks before it, TensorRT's parser does: a cycle in the graph is enough."""
    model, content, path, refused = onnx.load(tiny), tiny.read_bytes(), tmp_path / "graph.onnx", 0
    for seed in seeds:
        if seed % 3:
            onnx.save(mutated(model, seed), path)
        else:
            place = random.Random(seed).randrange(len(content))
            path.write_bytes(
                content[:place] + bytes([seed % 256]) * (seed % 5) + content[place + seed % 7 :]
            )
        try:
            build_plan(path, PlanConfig(("sm89",)), tmp_path / "graph.plan", force=True)
        except GoodRtError:
            refused += 1
    assert refused > len(seeds) / 2


def test_a_cycle(tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny)
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]
    onnx.save(model, tmp_path / "cycle.onnx")
    assert "is not a valid ONNX file" in refusal(tmp_path / "cycle.onnx")


def test_external_data(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path, data = folder / "graph.onnx", folder / "weights"
    onnx.save(
        onnx.load(tiny), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    before = graph_hash(path, ["weights"])
    for precision in ("fp32", "fp16"):
        info, _ = build_plan(path, PlanConfig(("sm89",), precision), tmp_path / f"{precision}.plan")
        assert info.graph == "model/graph.onnx" and info.graph_sha256 == before
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert graph_hash(path, ["weights"]) != before
    data.rename(tmp_path / "weights")
    assert "are missing (weights)" in refusal(path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights"
    path.write_bytes(model.SerializeToString())
    assert "lie outside its folder (../weights)" in refusal(path)


def test_the_command(tiny: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    out = tmp_path / "plans"
    arguments = (
        "export",
        "--to",
        "tensorrt",
        "--onnx",
        tiny,
        "-o",
        out,
        "--arch",
        "SM89",
        "--profile",
        "1/2/4",
    )
    found = run(*arguments, "--json").json["plans"]["tiny"]
    assert (
        found["built"]
        and found["architectures"] == ["sm89"]
        and found["profile"] == {"batch": [1, 2, 4]}
    )
    assert not run(*arguments, "--json").json["plans"]["tiny"]["built"]
    assert "unchanged" in run(*arguments).out
    # the command that a refusal gives finds nothing to do either
    command = PlanInfo.read(out / "tiny.fp32.plan").command(out).split()[1:]
    assert not run(*command, "--json").json["plans"]["tiny"]["built"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sm89"), "--arch is for plans: add --to tensorrt"),
        (("--precision", "fp16"), "--precision is for plans"),
        (("--to", "tensorrt", "--profile", "8"), "not of the form"),
        (("--to", "tensorrt", "--profile", "4/2/1", "--onnx", __file__), "profile of 'batch'"),
        (("--to", "tensorrt", "--onnx", "missing.onnx"), "missing.onnx does not exist"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str, run: Callable[..., Any]) -> None:
    ran = run("export", *arguments)
    assert ran.code == 2 and message in " ".join(ran.err.split()) and "Traceback" not in ran.err


def test_a_plan_that_fits_is_taken(
    engines_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another is built, by the real builder; no GPU is here to run them."""

    class Opened:
        def __init__(self, path: Path, *, graph_sha256: str, cuda_graphs: bool) -> None:
            self.info = PlanInfo.read(path)
            check_plan(self.info, path, load_library(), "sm89", graph_sha256)

    graph = Path(shutil.copy(engines_dir / "classifier.onnx", tmp_path))
    small = PlanConfig(profile={"batch": (1, 4, 8)})
    plan = plan_path(tmp_path, "classifier", small)
    if not torch.cuda.is_available():
        with pytest.raises(GoodRtError, match="PyTorch sees none here"):
            load_plan(graph, small, plan)
    monkeypatch.setattr(tensorrt, "present_architecture", lambda: "sm89")
    monkeypatch.setattr(tensorrt, "TensorRTEngine", Opened)

    def loaded(config: PlanConfig) -> tuple[PlanInfo, int]:
        return load_plan(graph, config, plan).info, plan.stat().st_mtime_ns

    first = loaded(small)
    assert first[0].profile == {"batch": (1, 4, 8)} and first[0].architectures == ("sm89",)
    assert (
        loaded(small) == first == loaded(PlanConfig(profile={"batch": (2, 2, 6)}))
    )  # held by the one that is there
    assert loaded(PlanConfig(profile={"batch": (1, 4, 16)}))[0].profile == {"batch": (1, 4, 16)}
    build_plan(graph, replace(small, architectures=("sm86", "sm89"), tf32=True), plan)
    assert not loaded(small)[0].tf32  # less precise than what is asked for
    info_path(plan).write_text("damaged")
    assert loaded(small)[0].profile == {"batch": (1, 4, 8)}


def test_a_library_without_plans_for_the_gpu_is_passed_over() -> None:
    with pytest.raises(
        GoodRtError,
        match=r"tensorrt is missing \(.*tensorrt-rtx .* has no plans for sm90; "
        r".*good-rt\[tensorrt\]",
    ):
        load_library(architecture="sm90")
    assert load_library(architecture="sm89").name == "tensorrt-rtx"
