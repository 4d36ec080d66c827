"""Both engines on the same graph: the same specs, the same values, the same refusals."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from good_rt.engines.base import Engine, TensorSpec, check_inputs
from good_rt.engines.batch_splitting import LEAST, PART, BatchSplitter, SplitEngine
from good_rt.engines.onnxruntime import OnnxRuntimeEngine, providers_for
from good_rt.engines.open import open_engine
from good_rt.engines.threads import thread_pool
from good_rt.engines.torch import TorchEngine
from good_rt.errors import GoodRtError
from good_rt.export.to_onnx import export_onnx

INPUTS = {
    "image": TensorSpec("float32", ("batch", 3, 8, 8)),
    "label": TensorSpec("int64", ("batch",)),
}
OUTPUTS = {
    "map": TensorSpec("float32", ("batch", 4, 4, 4)),
    "positive": TensorSpec("bool", ("batch",)),
}


class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, 2, 1)
        self.embedding = nn.Embedding(5, 4)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        found = self.convolution(image) + self.embedding(label)[:, :, None, None]
        return found, found.mean(dim=(1, 2, 3)) > 0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "two.onnx"
    export_onnx(module(), example(2), list(OUTPUTS), path)
    return path


def module() -> TwoInTwoOut:
    torch.manual_seed(0)
    return TwoInTwoOut().eval()


def example(batch: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(batch, 3, 8, 8, generator=rng),
        "label": torch.randint(5, (batch,), generator=rng),
    }


@pytest.fixture(params=["onnxruntime", "onnxruntime, bound", "onnxruntime, split", "torch"])
def engine(request: pytest.FixtureRequest, path: Path) -> Engine:
    if request.param == "torch":
        return TorchEngine(module(), INPUTS, OUTPUTS)
    if "split" in request.param:
        engine = open_engine(path, threads=2)
        assert isinstance(engine, SplitEngine)
        return engine
    return OnnxRuntimeEngine(path, bind="bound" in request.param)


def test_specs(engine: Engine) -> None:
    assert dict(engine.inputs) == INPUTS
    assert dict(engine.outputs) == OUTPUTS


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batch=st.integers(1, 9), threads=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_the_engines_agree(path: Path, batch: int, threads: int, seed: int) -> None:
    arrays = example(batch, seed)
    with torch.no_grad():
        expected = TorchEngine(module(), INPUTS, OUTPUTS)(**arrays)
    found = open_engine(path, threads=threads)(**arrays)
    torch.testing.assert_close(found["map"], expected["map"], rtol=1e-4, atol=1e-5)
    assert torch.equal(found["positive"], expected["positive"])
    assert {name: value.dtype for name, value in found.items()} == {
        "map": torch.float32,
        "positive": torch.bool,
    }


def test_a_batch_gives_the_same_bytes_on_any_number_of_threads(path: Path) -> None:
    first = open_engine(path, threads=1)(**example(9))
    for threads in (2, 3):
        engine = open_engine(path, threads=threads)
        for _ in range(10):
            again = engine(**example(9))
            assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities here")
def test_as_many_threads_as_there_are_cores_to_run_on(path: Path) -> None:
    """Which ONNX Runtime does not see: by itself it starts one for each core of the machine."""
    cores = os.sched_getaffinity(0)
    before = thread_count()
    os.sched_setaffinity(0, {min(cores)})
    try:
        engine = open_engine(path)
        assert isinstance(engine, SplitEngine) and engine.splitter.threads == 1
        assert thread_count() == before
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities here")
@pytest.mark.parametrize("allowed", [True, False])
def test_threads_that_are_as_many_as_cores_have_one_each(
    path: Path, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a sandbox does not allow it, they run all the same."""
    cores, settled = os.sched_getaffinity(0), list[set[int]]()

    def settle(process: int, to: set[int]) -> None:
        settled.append(to)
        if not allowed:
            raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", settle)
    thread_pool.cache_clear()
    arrays = example(8 * len(cores))
    expected = open_engine(path, threads=1)(**arrays)
    open_engine(path, threads=len(cores) + 1)(**arrays)
    assert not settled
    found = open_engine(path)(**arrays)
    torch.testing.assert_close(found, expected)
    together = threading.Barrier(len(cores))  # or one thread that is fast does the work of the next
    list(thread_pool(len(cores), tuple(sorted(cores))).map(lambda core: together.wait(10), cores))
    assert sorted(settled, key=min) == [{core} for core in sorted(cores)]
    thread_pool.cache_clear()


def thread_count() -> int:
    """All threads of this process, those that Python does not know of among them."""
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_parts_are_the_batch_in_its_order_and_as_many_for_every_thread(threads: int) -> None:
    splitter = BatchSplitter(threads)
    for count in range(1, 100):
        parts = splitter.parts(count)
        assert [row for part in parts for row in range(count)[part]] == list(range(count))
        lengths = [len(range(count)[part]) for part in parts]
        if count < LEAST * threads:
            assert lengths == [count]
        else:
            assert len(parts) == threads * math.ceil(count / (threads * PART))
            assert (
                max(lengths) - min(lengths) <= 1 and min(lengths) >= LEAST and max(lengths) <= PART
            )


def test_a_split_batch_has_the_outputs_that_its_samples_have_alone(path: Path) -> None:
    engine = open_engine(path, threads=2)
    assert isinstance(engine, SplitEngine)
    arrays = example(9)
    together = engine(**arrays)
    for row in range(9):
        alone = engine.single(**{name: array[row : row + 1] for name, array in arrays.items()})
        assert all(torch.equal(together[name][row : row + 1], alone[name]) for name in OUTPUTS)
    with pytest.raises(GoodRtError, match="engine input 'label' is missing"):
        engine(image=arrays["image"])


def test_an_engine_whose_first_axis_is_not_one_batch_is_not_split(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(0)

    export_onnx(Sum(), {"x": torch.randn(2, 3)}, ("y",), tmp_path / "sum.onnx")
    engine = open_engine(tmp_path / "sum.onnx", threads=2)
    assert not isinstance(engine, SplitEngine)
    torch.testing.assert_close(engine(x=torch.ones(9, 3))["y"], torch.full((3,), 9.0))


def test_outputs_may_stay_arrays_of_the_runtime(path: Path) -> None:
    engine, arrays = OnnxRuntimeEngine(path), example(2)
    outputs = engine.run(arrays, native=["map"])
    assert isinstance(outputs["map"], np.ndarray) and isinstance(outputs["positive"], Tensor)
    again = engine.run({**arrays, "image": arrays["image"].numpy()})
    assert torch.equal(again["map"], torch.from_numpy(outputs["map"]))


def test_inputs_in_any_order_and_layout(engine: Engine) -> None:
    arrays = example(4)
    shuffled = {
        "label": arrays["label"],
        "image": arrays["image"].to(memory_format=torch.channels_last),
    }
    torch.testing.assert_close(engine(**shuffled)["map"], engine(**arrays)["map"])
    needs_gradient = {**arrays, "image": arrays["image"].requires_grad_(True)}
    torch.testing.assert_close(
        engine(**needs_gradient)["map"].detach(), engine(**arrays)["map"].detach()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "engine input 'image' is missing"),
        (
            {"extra": torch.zeros(2)},
            "engine input 'extra' is unknown; the engine takes image, label",
        ),
        (
            {"image": torch.zeros(2, 3, 8, 8, dtype=torch.float64)},
            "'image' must be float32 batchx3x8x8, not float64 2x3x8x8",
        ),
        (
            {"image": torch.zeros(2, 1, 8, 8)},
            "'image' must be float32 batchx3x8x8, not float32 2x1x8x8",
        ),
        ({"image": torch.zeros(2, 3, 8)}, "not float32 2x3x8"),
        ({"label": torch.zeros(2)}, "'label' must be int64 batch, not float32 2"),
        ({"label": torch.zeros(3, dtype=torch.int64)}, "'label' must be int64 batch, not int64 3"),
        (
            {"image": torch.zeros(9, 3, 8, 8)},
            "'label' must be int64 batch, not int64 2",
        ),  # where it is divided
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    engine: Engine, change: dict[str, Tensor | None], message: str
) -> None:
    arrays = {name: value for name, value in {**example(2), **change}.items() if value is not None}
    with pytest.raises(GoodRtError, match=message):
        engine(**arrays)


def test_checking_lets_what_fits_pass(engine: Engine) -> None:
    check_inputs(engine, example(7))


def test_a_failure_while_running_is_one_line(path: Path) -> None:
    arrays = {**example(2), "label": torch.tensor([0, 99])}  # no such row in the embedding
    with pytest.raises(GoodRtError, match=r"ONNX Runtime failed: .+") as caught:
        OnnxRuntimeEngine(path)(**arrays)
    assert "\n" not in str(caught.value)


def test_a_provider_that_is_not_installed_is_named(path: Path) -> None:
    missing = next(
        name
        for name in onnxruntime.get_all_providers()
        if name not in onnxruntime.get_available_providers()
    )
    with pytest.raises(GoodRtError, match=rf"ONNX Runtime has no {missing} here: its GPU build"):
        OnnxRuntimeEngine(path, [missing, "CPUExecutionProvider"])


def test_a_provider_that_falls_back_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = providers_for(torch.device("cuda", 1))
    assert wanted[0] == ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0})
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    with pytest.raises(
        GoodRtError, match="took CPUExecutionProvider in the place of CUDAExecutionProvider"
    ):
        OnnxRuntimeEngine(path, wanted)


def test_files_that_are_no_graph_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        GoodRtError, match=r"gone\.onnx does not exist; make it with `good-rt export`"
    ):
        OnnxRuntimeEngine(tmp_path / "gone.onnx")
    whole = path.read_bytes()
    for content in (b"hello", whole[: len(whole) // 2], whole[:50]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(GoodRtError, match=r"bad\.onnx is not a valid ONNX file") as caught:
            OnnxRuntimeEngine(tmp_path / "bad.onnx")
        assert "\n" not in str(caught.value)
