"""Convolutions by 3x3 with fewer products: PyTorch's in double precision, whatever their shape and
what is added."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from torch import Tensor, nn

from good_rt.engines.base import Engine
from good_rt.engines.cpu import accelerate
from good_rt.engines.cpu.fusing import DOMAIN
from good_rt.engines.cpu.library import SWITCH, kernel_library
from good_rt.engines.cpu.winograd import LANES, LEAST_SIZE, MOST_CHANNELS, is_possible, transformed
from good_rt.engines.open import open_engine
from good_rt.export.parity import AutogradVjp
from good_rt.export.to_onnx import export_onnx
from good_rt.export.vjp import export_vjp_onnx

KINDS = {"Convolution", "ConvolutionAdd"}


def graph_of(path: Path) -> ModelProto:
    """What an engine of the file runs."""
    return accelerate(onnx.load(path)).model


def kinds(path: Path) -> list[str]:
    """Of the convolutions in an engine of the file: those with kernels, in order."""
    return [
        node.op_type
        for node in graph_of(path).graph.node
        if node.domain == DOMAIN and node.op_type in KINDS
    ]


pytestmark = pytest.mark.skipif(
    kernel_library() is None or not is_possible(),
    reason="no kernels, or a processor without AVX-512",
)


class Block(nn.Module):
    """A convolution, and what may follow it: a sum with another's result, and a ReLU."""

    def __init__(self, channels: int, out: int, bias: bool, added: bool, relu: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, 3, padding=1, bias=bias)
        self.other = nn.Conv2d(channels, out, 1) if added else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        found = self.convolution(x)
        found = found if self.other is None else found + self.other(x)
        return F.relu(found) if self.relu else found


class Residual(nn.Module):
    """A residual block with a skip into a concatenation, as in a UNet: convolutions between group
    norms, a sum and a conditioning."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()

        def convolution(inputs: int) -> nn.Module:
            return nn.Conv2d(inputs, channels, 3, padding=1)

        def norm(inputs: int) -> nn.Module:
            return nn.Sequential(nn.GroupNorm(8, inputs), nn.SiLU())

        self.first, self.linear = convolution(channels), nn.Linear(channels, channels)
        self.block = nn.Sequential(norm(channels), convolution(channels), norm(channels))
        self.last = nn.Sequential(norm(2 * channels), convolution(2 * channels))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        hidden = self.block(skip + self.linear(x.mean((2, 3)))[:, :, None, None])
        return self.last(torch.cat([hidden + skip, skip], 1))


def engine_of(module: nn.Module, x: Tensor, path: Path, threads: int = 1) -> Engine:
    export_onnx(module.eval().requires_grad_(False), {"x": x[:1].repeat(2, 1, 1, 1)}, ("y",), path)
    return open_engine(path, threads=threads)


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).abs().max() / exact.abs().max())


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(4, 19), st.integers(4, 19),
    st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3),
)  # fmt: skip
def test_any_shape(
    tmp_path: Path, blocks: int, outs: int, samples: int, height: int, width: int,
    bias: bool, added: bool, relu: bool, threads: int,
) -> None:  # fmt: skip
    """Odd heights and widths, pairs of blocks and a last one alone, more tiles than a task
    takes."""
    torch.manual_seed(blocks + 7 * height)
    module = Block(LANES * blocks, LANES * outs, bias, added, relu)
    x = torch.randn(samples, LANES * blocks, height, width)
    engine = engine_of(module, x, tmp_path / "block.onnx", threads)
    assert kinds(tmp_path / "block.onnx") == ["ConvolutionAdd" if added else "Convolution"]
    exact = copy.deepcopy(module).double()(x.double())
    assert relative(engine(x=x)["y"], exact) < 2e-6


@pytest.mark.parametrize("channels", [MOST_CHANNELS, 2 * LANES])
def test_many_channels_and_tiles(channels: int, tmp_path: Path) -> None:
    module, x = Block(channels, 48, True, True, True), torch.randn(7, channels, 33, 21)
    engine = engine_of(module, x, tmp_path / "block.onnx")
    assert kinds(tmp_path / "block.onnx") == ["ConvolutionAdd"]
    assert relative(engine(x=x)["y"], copy.deepcopy(module).double()(x.double())) < 2e-6


def test_channels_that_are_no_whole_blocks_are_filled_up(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(20, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 20, 3, padding=1)
    )
    x = torch.randn(3, 20, 8, 8)
    engine = engine_of(module, x, tmp_path / "module.onnx")
    assert len(kinds(tmp_path / "module.onnx")) == 2
    assert relative(engine(x=x)["y"], copy.deepcopy(module).double()(x.double())) < 2e-6


def test_an_image_is_the_same_to_the_byte_in_any_batch_and_on_any_threads(tmp_path: Path) -> None:
    module, x = Block(32, 80, True, True, False), torch.randn(23, 32, 9, 14)
    whole = engine_of(module, x, tmp_path / "block.onnx")(x=x)["y"]
    for threads in (1, 2, 3):
        engine = open_engine(tmp_path / "block.onnx", threads=threads)
        assert kinds(tmp_path / "block.onnx") == ["ConvolutionAdd"]
        for batch in (1, 2, 5, 8):
            assert torch.equal(torch.cat([engine(x=part)["y"] for part in x.split(batch)]), whole)


def test_a_residual_block_is_the_same_in_any_batch_and_on_any_threads(tmp_path: Path) -> None:
    module, x = Residual(), torch.randn(9, 32, 6, 6)
    whole = engine_of(module, x, tmp_path / "block.onnx")(x=x)["y"]
    for threads in (1, 2, 3):
        engine = open_engine(tmp_path / "block.onnx", threads=threads)
        for batch in (1, 2, 4, 9):
            assert torch.equal(torch.cat([engine(x=part)["y"] for part in x.split(batch)]), whole)


def test_the_gradient_of_a_residual_block(tmp_path: Path) -> None:
    module, x = Residual().eval().requires_grad_(False), torch.randn(3, 32, 6, 6)
    export_vjp_onnx(module, {"x": x[:2]}, "x", ("y",), tmp_path / "vjp.onnx")
    assert kinds(tmp_path / "vjp.onnx")
    arrays = {"cotangent": torch.randn_like(x), "x": x}
    expected = AutogradVjp(copy.deepcopy(module).double(), 1, 0)(
        *(array.double() for array in arrays.values())
    )
    found = open_engine(tmp_path / "vjp.onnx")(**arrays)
    for name, exact in zip(("y", "gradient"), expected, strict=True):
        assert relative(found[name], exact) < 1e-5


def test_without_a_folder_to_write_to_the_graph_runs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = Residual(), torch.randn(3, 32, 6, 6)
    engine_of(module, x, tmp_path / "block.onnx")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert relative(open_engine(tmp_path / "block.onnx")(x=x)["y"], module(x)) < 1e-5


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_nan_propagates_through_a_convolution(relu: bool, added: bool, tmp_path: Path) -> None:
    module, x = Block(16, 16, True, added, relu), torch.randn(1, 16, 8, 8)
    engine = engine_of(module, x, tmp_path / "block.onnx")
    assert kinds(tmp_path / "block.onnx") == ["ConvolutionAdd" if added else "Convolution"]
    x[0, 3, 4, 4] = float("nan")
    found = engine(x=x)["y"].isnan()
    assert bool(found[:, :, 3:6, 3:6].all()) and not bool(found[:, :, 7].any())


@pytest.mark.parametrize(
    ("module", "channels", "size"),
    [
        (nn.Conv2d(16, 16, 3, padding=1, stride=2), 16, 8),
        (nn.Conv2d(16, 16, 3, padding=2, dilation=2), 16, 8),
        (nn.Conv2d(16, 16, 3), 16, 8),
        (nn.Conv2d(16, 16, 5, padding=2), 16, 8),
        (nn.Conv2d(32, 32, 3, padding=1, groups=2), 32, 8),
        (nn.Conv2d(MOST_CHANNELS + LANES, 16, 3, padding=1), MOST_CHANNELS + LANES, 8),
        (nn.Conv2d(16, 16, 3, padding=1), 16, LEAST_SIZE - 1),
        (nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Sigmoid()), 16, 8),
        (nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.Conv2d(16, 16, 3)), 16, 8),
    ],
    ids=[
        "stride",
        "dilation",
        "no padding",
        "5x5",
        "groups",
        "most",
        "small",
        "activation",
        "one side",
    ],
)
def test_other_convolutions_stay_as_they_are(
    module: nn.Module, channels: int, size: int, tmp_path: Path
) -> None:
    x = torch.randn(3, channels, size, size)
    engine = engine_of(module, x, tmp_path / "module.onnx")
    assert not kinds(tmp_path / "module.onnx")
    assert relative(engine(x=x)["y"], module(x)) < 1e-5


def test_planes_are_known_behind_what_tells_no_shape(tmp_path: Path) -> None:
    """ONNX Runtime gives no shapes of values in blocks: they follow from what convolves and pools
    before them."""

    def convolution(stride: int = 1) -> nn.Module:
        return nn.Conv2d(16, 16, 3, padding=1, stride=stride)

    module = nn.Sequential(
        convolution(),
        nn.ReLU(),
        convolution(2),
        nn.ReLU(),
        convolution(),
        nn.MaxPool2d(3, 2, 1),
        convolution(),
        nn.AvgPool2d(2),
        convolution(),
    )
    x = torch.randn(2, 16, 32, 32)
    engine = engine_of(module, x, tmp_path / "module.onnx")
    assert (
        len(kinds(tmp_path / "module.onnx")) == 4
    )  # 32, 16, 8 and 4 pixels wide; not the one of stride 2
    assert relative(engine(x=x)["y"], copy.deepcopy(module).double()(x.double())) < 5e-6
    smaller = torch.randn(2, 16, 16, 16)
    engine = engine_of(module, smaller, tmp_path / "smaller.onnx")
    assert len(kinds(tmp_path / "smaller.onnx")) == 3  # 16, 8 and 4; 2 is too small
    assert relative(engine(x=smaller)["y"], copy.deepcopy(module).double()(smaller.double())) < 5e-6


def test_a_choice_inside_of_a_function_is_left(tmp_path: Path) -> None:
    """ONNX Runtime puts the function's nodes in the graph, and a branch reads what no other node
    does."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]

    def branch(number: float) -> onnx.GraphProto:
        value = helper.make_tensor("value", kind, [1], [number])
        nodes = [
            helper.make_node("Constant", [], ["number"], value=value),
            helper.make_node("Mul", ["less", "number"], ["of"]),
        ]
        return helper.make_graph(
            nodes, "branch", [], [helper.make_tensor_value_info("of", kind, None)]
        )

    chosen = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["some"], to=9),
        helper.make_node("Neg", ["x"], ["less"]),
        helper.make_node("If", ["some"], ["y"], then_branch=branch(2.0), else_branch=branch(3.0)),
    ]
    function = helper.make_function("local", "choose", ["x"], ["y"], chosen, opsets[:1])
    weight = np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("choose", ["c"], ["y"], domain="local"),
    ]
    shape = ["batch", 16, 8, 8]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    x = torch.randn(2, 16, 8, 8)
    expected = -2 * F.conv2d(x.double(), torch.from_numpy(weight).double(), padding=1)
    assert relative(open_engine(tmp_path / "model.onnx")(x=x)["y"], expected) < 1e-5


def no_blocks() -> int:
    raise AssertionError("ONNX Runtime has no operators in blocks on other processors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("good_rt.engines.cpu.winograd.block_size", lambda: 8),
        ("platform.machine", lambda: "aarch64"),
    ],
)
def test_on_other_processors_there_are_none(
    name: str, value: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = Block(16, 16, True, True, True), torch.randn(2, 16, 8, 8)
    whole = engine_of(module, x, tmp_path / "block.onnx")(x=x)["y"]
    monkeypatch.setattr("good_rt.engines.cpu.winograd.block_size", no_blocks)
    monkeypatch.setattr(name, value)
    engine = open_engine(tmp_path / "block.onnx")
    assert not kinds(tmp_path / "block.onnx")
    assert relative(engine(x=x)["y"], whole) < 1e-5


def test_weights_that_two_convolutions_share_are_there_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.convolution(self.convolution(x).relu())

    module, x = Twice(), torch.randn(2, 16, 8, 8)
    engine = engine_of(module, x, tmp_path / "twice.onnx")
    assert len(kinds(tmp_path / "twice.onnx")) == 2
    assert (
        sum(
            tensor.dims[0] == 16**3
            for tensor in graph_of(tmp_path / "twice.onnx").graph.initializer
        )
        == 1
    )
    assert relative(engine(x=x)["y"], copy.deepcopy(module).double()(x.double())) < 2e-6


@pytest.mark.parametrize("values", [(3e38, -3e38), (float("inf"), float("-inf"))])
def test_large_numbers_are_what_a_relu_makes_of_them(
    values: tuple[float, float], tmp_path: Path
) -> None:
    """Through the sum: in a tile of the convolution, an infinite pixel is none."""
    module, x = Block(16, 16, True, True, True).requires_grad_(False), torch.zeros(1, 16, 8, 8)
    for part in (module.convolution, module.other):
        assert part is not None
        part.weight.zero_()
        part.bias = None if part is module.convolution else part.bias
    assert module.other is not None and module.other.bias is not None
    module.other.bias.copy_(torch.tensor(values * 8))
    engine = engine_of(module, x, tmp_path / "block.onnx")
    assert torch.equal(engine(x=x)["y"], module(x))


def test_weights_that_no_one_reads_are_gone(tmp_path: Path) -> None:
    module, x = Block(16, 16, False, False, False), torch.randn(1, 16, 8, 8)
    engine_of(module, x, tmp_path / "block.onnx")
    graph = graph_of(tmp_path / "block.onnx").graph
    assert {tuple(tensor.dims) for tensor in graph.initializer} == {(16 * 16 * 16,), (16,)}


def test_weights_at_the_places_of_a_tile_by_hand() -> None:
    """The first place of a tile is a weight as it is, and the second half the sum of its row's."""
    weight = torch.randn(32, 16, 3, 3)
    blocked = weight.reshape(2, 16, 1, 16, 3, 3).permute(0, 2, 4, 5, 3, 1).reshape(32, 16, 3, 3)
    found = torch.from_numpy(transformed(blocked.numpy())).reshape(
        4, 4, 16, 32
    )  # rows, columns, C, K
    expected = weight.permute(2, 3, 1, 0)
    torch.testing.assert_close(found[0, 0], expected[0, 0])
    torch.testing.assert_close(found[3, 3], expected[2, 2])
    torch.testing.assert_close(found[0, 1], expected[0].sum(0) / 2)
    torch.testing.assert_close(found[2, 0], (expected[0, 0] - expected[1, 0] + expected[2, 0]) / 2)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"x": (1, 20, 8, 8)}, "a multiple of 16"),
        ({"x": (1, 272, 8, 8)}, "up to 256"),
        ({"x": (1, 16, 8)}, "x must be"),
        ({"b": (8,)}, "whole blocks"),
        ({"w": (100,)}, "do not fit"),
        ({"z": (1, 16, 4, 8)}, "do not fit"),
    ],
)
def test_a_node_that_does_not_fit_is_an_error(
    shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    import onnxruntime as ort

    sizes = {"x": (1, 16, 8, 8), "w": (16 * 16 * 16,), "b": (16,), "z": (1, 16, 8, 8)} | shapes
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape)
        for n, shape in sizes.items()
    ]
    node = onnx.helper.make_node("ConvolutionAdd", list(sizes), ["y"], domain=DOMAIN, relu=0)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(DOMAIN, 1)]
    graph = onnx.helper.make_graph([node], "g", values, [output])
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(kernel_library()))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    with pytest.raises(Exception, match=words):
        session.run(None, {name: np.zeros(shape, np.float32) for name, shape in sizes.items()})


def test_with_avx512_switched_off_onnx_runtime_convolves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = Block(32, 32, True, False, True), torch.randn(2, 32, 8, 8)
    whole = engine_of(module, x, tmp_path / "block.onnx")(x=x)["y"]
    assert kinds(tmp_path / "block.onnx")
    monkeypatch.setenv(SWITCH, "avx2")
    assert not kinds(tmp_path / "block.onnx")
    assert relative(open_engine(tmp_path / "block.onnx")(x=x)["y"], whole) < 1e-5
