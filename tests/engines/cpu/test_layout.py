"""Channels in blocks from one convolution to the next: nothing is reordered between, and the result
is the same."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from good_rt.engines.cpu import acceleration
from good_rt.engines.cpu.fusing import DOMAIN, fuse
from good_rt.engines.cpu.layout import AFTER, BEFORE, BLOCKED, keep_blocks, optimised
from good_rt.engines.cpu.library import kernel_library
from good_rt.engines.open import open_engine
from good_rt.export.parity import AutogradVjp
from good_rt.export.to_onnx import export_onnx
from good_rt.export.vjp import export_vjp_onnx

pytestmark = pytest.mark.skipif(
    kernel_library() is None, reason="no kernels: the package was installed without a C compiler"
)

WIDTH = 32


def convolution(inputs: int = WIDTH, outputs: int = WIDTH) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def normal(channels: int = WIDTH, groups: int = 8) -> nn.Module:
    return nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU())


class Residual(nn.Module):
    """A residual block that is told something, which skips into a concatenation, as a UNet's do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = convolution(), nn.Linear(WIDTH, WIDTH)
        self.block = nn.Sequential(normal(), convolution(), normal())
        self.last = nn.Sequential(normal(2 * WIDTH), convolution(2 * WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        hidden = self.block(skip + self.linear(x.mean((2, 3)))[:, :, None, None])
        return self.last(torch.cat([hidden + skip, skip], 1))


MODULES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    # what it is: the module, and what of it computes in blocks in its VJP
    "a norm": (
        lambda: nn.Sequential(convolution(), normal(), convolution()),
        {"GroupNorm", "GroupNormGradient"},
    ),
    "groups across blocks": (
        lambda: nn.Sequential(convolution(WIDTH, 48), normal(48, 2), convolution(48)),
        {"GroupNorm", "GroupNormGradient"},
    ),
    "ReLUs": (
        lambda: nn.Sequential(convolution(), nn.ReLU(), convolution(), nn.ReLU(), convolution()),
        {"ReluGradient"},
    ),
    "enlarging": (
        lambda: nn.Sequential(
            convolution(), nn.Upsample(scale_factor=2), convolution(), normal(), convolution()
        ),
        {"Interleave", "GroupNorm", "GroupNormGradient"},
    ),
    "a residual block": (
        Residual,
        {"GroupNorm", "GroupNormGradient", "AddChannels", "Add", "Concat"},
    ),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = MODULES[name][0]().eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module


def graphs(path: Path) -> tuple[ModelProto, ModelProto]:
    """What ONNX Runtime makes of a file's graph with kernels, and that with its blocks kept."""
    kernels, model = kernel_library(), onnx.load(path)
    assert kernels is not None
    fuse(model)
    before = optimised(model.SerializeToString(), kernels)
    assert before is not None
    if not any(node.domain == BLOCKED for node in before.graph.node):
        pytest.skip("ONNX Runtime convolves in no blocks on this processor")
    after = copy.deepcopy(before)
    keep_blocks(after)
    return before, after


def reorders(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.op_type in {BEFORE, AFTER})


def in_blocks(model: ModelProto) -> set[str]:
    """What reads or writes values whose name says that they are in blocks."""
    return {
        node.op_type
        for node in model.graph.node
        if node.domain != BLOCKED
        and any(name.endswith(" in blocks") for name in (*node.input, *node.output))
    }


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("name", MODULES)
def test_only_what_comes_and_goes_is_reordered(name: str, tmp_path: Path) -> None:
    """Of a chain of convolutions, its input and its output; and its VJP is PyTorch's in double
    precision."""
    module, size = made(name), 6
    export_vjp_onnx(
        module, {"x": torch.randn(2, WIDTH, size, size)}, "x", ("y",), tmp_path / "vjp.onnx"
    )
    before, after = graphs(tmp_path / "vjp.onnx")
    assert in_blocks(after) == MODULES[name][1]
    assert reorders(after).total() < reorders(before).total()
    if name != "a residual block":  # which hands means, too, to what is not convolved
        assert reorders(after) == Counter(
            {BEFORE: 2, AFTER: 2}
        )  # x and the cotangent, y and the gradient
    x = torch.randn(3, WIDTH, size, size)
    y = module(x)
    arrays = {"cotangent": torch.randn_like(y), "x": x}
    expected = AutogradVjp(copy.deepcopy(module).double(), 1, 0)(
        *(array.double() for array in arrays.values())
    )
    for found, exact in zip(
        open_engine(tmp_path / "vjp.onnx")(**arrays).values(), expected, strict=True
    ):
        assert_near(found, exact)


@pytest.mark.parametrize("name", MODULES)
def test_a_graph_with_blocks_is_the_same_graph(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any batch and on any number of threads to the byte; without blocks to rounding."""
    export_onnx(made(name), {"x": torch.randn(2, WIDTH, 6, 6)}, ("y",), tmp_path / "module.onnx")
    x = torch.randn(9, WIDTH, 6, 6)
    whole = open_engine(tmp_path / "module.onnx", threads=1)(x=x)["y"]
    for threads in (1, 2, 3):
        engine = open_engine(tmp_path / "module.onnx", threads=threads)
        for batch in (1, 2, 4, 9):
            assert torch.equal(torch.cat([engine(x=part)["y"] for part in x.split(batch)]), whole)
    monkeypatch.setattr(acceleration, "keep_blocks", lambda model: 0)
    assert_near(open_engine(tmp_path / "module.onnx")(x=x)["y"], whole)


def test_channels_that_are_no_whole_blocks_stay_as_they_are(tmp_path: Path) -> None:
    """Convolutions fill up their last block, and what is filled up must not count in a norm."""
    module = (
        nn.Sequential(convolution(WIDTH, 20), normal(20, 2), convolution(20))
        .eval()
        .requires_grad_(False)
    )
    export_onnx(module, {"x": torch.randn(2, WIDTH, 6, 6)}, ("y",), tmp_path / "module.onnx")
    before, after = graphs(tmp_path / "module.onnx")
    assert before == after
    x = torch.randn(3, WIDTH, 6, 6)
    assert_near(open_engine(tmp_path / "module.onnx")(x=x)["y"], module(x))


def test_what_would_reorder_more_is_left(tmp_path: Path) -> None:
    """A sum of which one half comes from a convolution, and which none reads: in blocks, it had to
    be reordered too."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.convolution = nn.GroupNorm(2, WIDTH), convolution()

        def forward(self, x: Tensor) -> Tensor:
            return (self.convolution(self.norm(x)) + x.flip(2)).sigmoid()

    export_onnx(
        Sum().eval().requires_grad_(False),
        {"x": torch.randn(2, WIDTH, 6, 6)},
        ("y",),
        tmp_path / "sum.onnx",
    )
    before, after = graphs(tmp_path / "sum.onnx")
    assert before == after
    assert any(node.domain == DOMAIN for node in after.graph.node)


def test_a_graph_without_convolutions_is_left(tmp_path: Path) -> None:
    module = nn.Sequential(nn.GroupNorm(2, WIDTH), nn.SiLU()).eval().requires_grad_(False)
    export_onnx(module, {"x": torch.randn(2, WIDTH, 6, 6)}, ("y",), tmp_path / "norm.onnx")
    kernels, model = kernel_library(), onnx.load(tmp_path / "norm.onnx")
    assert kernels is not None and fuse(model)
    found = optimised(model.SerializeToString(), kernels)
    assert found is not None and not keep_blocks(found)


def test_a_concatenation_of_any_number(tmp_path: Path) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Sequential(convolution(), normal()), convolution(4 * WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            found = self.first(x)
            return self.last(torch.cat([found, x, found * 2, found], 1))

    module = Joined().eval().requires_grad_(False)
    export_onnx(module, {"x": torch.randn(2, WIDTH, 6, 6)}, ("y",), tmp_path / "module.onnx")
    model = onnx.load(tmp_path / "module.onnx")
    (joined,) = (node for node in model.graph.node if node.op_type == "Concat")
    x = torch.randn(3, WIDTH, 6, 6)
    assert_near(open_engine(tmp_path / "module.onnx")(x=x)["y"], module(x))
    del joined.input[1:]
    (weight,) = (
        tensor for tensor in model.graph.initializer if tuple(tensor.dims[:2]) == (WIDTH, 4 * WIDTH)
    )
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[:, :WIDTH], weight.name)
    )
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "one.onnx")
    expected = nn.functional.conv2d(
        module.first(x), module.last.weight[:, :WIDTH], module.last.bias, padding=1
    )
    assert_near(open_engine(tmp_path / "one.onnx")(x=x)["y"], expected)


def test_without_a_folder_to_write_to_the_graph_runs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = made("a norm")
    export_onnx(module, {"x": torch.randn(2, WIDTH, 6, 6)}, ("y",), tmp_path / "module.onnx")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    x = torch.randn(3, WIDTH, 6, 6)
    assert_near(open_engine(tmp_path / "module.onnx")(x=x)["y"], module(x))
