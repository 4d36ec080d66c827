"""Group norms as one operator each: found where they stand, and exact against double precision."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from good_rt.engines.base import Engine
from good_rt.engines.batch_splitting import vjp_pair
from good_rt.engines.cpu import acceleration
from good_rt.engines.cpu.fusing import DOMAIN, fuse
from good_rt.engines.cpu.library import SWITCH, kernel_library
from good_rt.engines.onnxruntime import OnnxRuntimeEngine, SessionGraph
from good_rt.engines.open import open_engine
from good_rt.errors import GoodRtError
from good_rt.export.parity import AutogradVjp
from good_rt.export.to_onnx import export_onnx
from good_rt.export.vjp import export_vjp_onnx
from good_rt.export.vjp.forward_backward import split_vjp

pytestmark = pytest.mark.skipif(
    kernel_library() is None, reason="no kernels: the package was installed without a C compiler"
)

NORM, GRADIENT = "GroupNorm", "GroupNormGradient"
OTHERS: dict[str, tuple[Callable[[], nn.Module], Counter[str], Counter[str]]] = {
    # what it is: the module, and what is one operator in its graph and in its VJP's
    "attention": (lambda: Attention(), Counter({"MultiHeadAttention": 1}), Counter()),
    "ReLUs": (
        lambda: nn.Sequential(convolution(), nn.ReLU(), convolution(), nn.ReLU()),
        Counter(),
        Counter({"ReluGradient": 2}),
    ),
    "enlarging": (
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), convolution(), nn.MaxPool2d(2)),
        Counter(),
        Counter({"Interleave": 1}),
    ),
    "strides": (
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 4, 2, 1)),
        Counter(),
        Counter({"Interleave": 2}),
    ),
    "strides past some pixels": (lambda: nn.Conv2d(8, 8, 1, 2), Counter(), Counter()),
    "strides of 3": (lambda: nn.Conv2d(8, 8, 3, 3), Counter(), Counter()),
    "strides over an edge": (lambda: nn.Conv2d(8, 8, 2, 2, 1), Counter(), Counter()),
}


class OverPixels(nn.Module):
    """A norm of (N, C, pixels), as before attention, and a product after it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.GroupNorm(2, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.flatten(2)).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class Both(nn.Module):
    """What the SiLU reads is read by another operation as well: the norm is one operator, and the
    SiLU none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.convolution = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        return self.convolution(nn.functional.silu(normal)) + normal


class Attention(nn.Module):
    """Self-attention with two heads over an image's pixels, as in diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        parts = [
            to(pixels).view(x.shape[0], -1, 2, 4).transpose(1, 2)
            for to in (self.query, self.key, self.value)
        ]
        found = nn.functional.scaled_dot_product_attention(*parts)
        return x + found.transpose(1, 2).reshape(pixels.shape).transpose(1, 2).reshape(x.shape)


class Branches(nn.Module):
    """Two norms of one x, which share mean and spread."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.convolution = (
            nn.GroupNorm(2, 8),
            nn.GroupNorm(2, 8),
            convolution(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        return self.convolution(nn.functional.silu(self.first(x))) + nn.functional.silu(
            self.second(x)
        )


def convolution() -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1)


MODULES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    # what it is: the module, how many norms are one operator in its graph, and how many gradients
    # in its VJP's
    "with a SiLU": (
        lambda: nn.Sequential(convolution(), nn.GroupNorm(2, 8), nn.SiLU(), convolution()),
        1,
        1,
    ),
    "alone": (lambda: nn.Sequential(convolution(), nn.GroupNorm(4, 8), convolution()), 1, 1),
    "two": (
        lambda: nn.Sequential(
            nn.GroupNorm(8, 8), nn.SiLU(), convolution(), nn.GroupNorm(1, 8), nn.SiLU()
        ),
        2,
        2,
    ),
    "over pixels": (OverPixels, 1, 1),
    "read twice": (Both, 1, 1),
    "two of one input": (Branches, 2, 2),
    "with another activation": (
        lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.GELU(), convolution()),
        1,
        1,
    ),
    "without weights": (
        lambda: nn.Sequential(nn.GroupNorm(2, 8, affine=False), nn.SiLU(), convolution()),
        0,
        0,
    ),
    "no norm": (lambda: nn.Sequential(convolution(), nn.SiLU(), convolution()), 0, 0),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = {**MODULES, **OTHERS}[name][0]().eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.GroupNorm) and part.affine:
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module


def operators(path: Path) -> Counter[str]:
    """How often each kernel stands in the graph that ONNX Runtime gets."""
    model = onnx.load(path)
    fuse(model)
    return Counter(node.op_type for node in model.graph.node if node.domain)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest expected; both finite."""
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def assert_exact(folder: Path, module: nn.Module, size: int, *products: Engine) -> None:
    """``folder``'s module.onnx, and engines of its VJP, compute what PyTorch does in double
    precision."""
    x = torch.randn(3, 8, size, size)
    arrays = {"x": x, "cotangent": torch.randn_like(module(x))}
    doubled = {name: array.double() for name, array in arrays.items()}
    y, gradient = AutogradVjp(copy.deepcopy(module).double(), 1, 0)(
        doubled["cotangent"], doubled["x"]
    )
    assert_near(open_engine(folder / "module.onnx")(x=arrays["x"])["y"], y)
    for engine in products:
        found = engine(**arrays)
        assert_near(found["y"], y)
        assert_near(found["gradient"], gradient)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", [8, 256], ids=["small groups", "large groups"])
def test_norms_are_one_operator_each(name: str, size: int, tmp_path: Path) -> None:
    """In a module's graph, its VJP's, and the two halves of that; as PyTorch in double precision
    has it."""
    module, (_, norms, gradients) = made(name), MODULES[name]
    example = {"x": torch.randn(2, 8, size, size)}
    export_onnx(module, example, ("y",), tmp_path / "module.onnx")
    export_vjp_onnx(module, example, "x", ("y",), tmp_path / "vjp.onnx")
    split_vjp(tmp_path / "vjp.onnx", tmp_path / "forward.onnx", tmp_path / "backward.onnx")
    if (
        size == 8
    ):  # of large groups PyTorch's exporter is given other operations, which are not looked for
        assert operators(tmp_path / "module.onnx")[NORM] == norms + (
            name == "without weights"
        )  # there they are ones
    found = operators(tmp_path / "vjp.onnx")
    assert (found[NORM], found[GRADIENT]) == (norms, gradients)
    assert operators(tmp_path / "forward.onnx")[NORM] == norms
    assert operators(tmp_path / "backward.onnx")[GRADIENT] == gradients
    pair = vjp_pair(*(open_engine(tmp_path / f"{half}.onnx") for half in ("forward", "backward")))
    assert_exact(tmp_path, module, size, open_engine(tmp_path / "vjp.onnx"), pair)


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_is_one_operator(name: str, tmp_path: Path) -> None:
    module, (_, expected, expected_in_vjp) = made(name), OTHERS[name]
    example = {"x": torch.randn(2, 8, 12, 12)}
    export_onnx(module, example, ("y",), tmp_path / "module.onnx")
    export_vjp_onnx(module, example, "x", ("y",), tmp_path / "vjp.onnx")
    assert operators(tmp_path / "module.onnx") == expected
    assert operators(tmp_path / "vjp.onnx") == expected_in_vjp
    assert_exact(tmp_path, module, 12, open_engine(tmp_path / "vjp.onnx"))


@pytest.mark.parametrize(
    ("grouped", "scale", "axes"),
    [
        ((2, 4, 36), (1, 1, 4, 1), (2, 3)),  # one number a place in a group, not a channel
        ((2, 4, 36), (1, 2, 1, 36), (2, 3)),
        ((2, 4, 36), (1, 1, 1, 1), (2, 3)),
        ((2, 4, 6, 6), (1, 2, 4, 1, 1), (2, 3)),  # a mean over a part of the group
        ((2, 8, 18), (1, 2, 8, 1), (2, 3)),  # parts of channels, with a number each
        ((2, 4, 36), (1, 2, 4, 1), (2, 3)),  # a group norm, for comparison
    ],
)
def test_what_is_no_group_norm_is_left(
    grouped: tuple[int, ...], scale: tuple[int, ...], axes: tuple[int, ...], tmp_path: Path
) -> None:
    """Graphs of the same operators that compute something else: never another result."""
    generator = torch.Generator().manual_seed(0)

    def constant(name: str, value: Tensor) -> TensorProto:
        return onnx.numpy_helper.from_array(value.numpy(), name)

    constants = [
        constant("shape", torch.tensor([0, *grouped])),
        constant("axes", torch.tensor(axes)),
        constant("eps", torch.tensor(1e-5)),
        constant("gamma", torch.randn(scale, generator=generator)),
        constant("beta", torch.randn(scale, generator=generator)),
        constant("back", torch.tensor([-1, 8, 6, 6])),
    ]
    nodes = [
        helper.make_node(
            kind, inputs, [output], **({"keepdims": 1} if kind == "ReduceMean" else {})
        )
        for kind, inputs, output in (
            ("Reshape", ["x", "shape"], "grouped"),
            ("ReduceMean", ["grouped", "axes"], "mean"),
            ("Sub", ["grouped", "mean"], "centred"),
            ("Mul", ["centred", "centred"], "squares"),
            ("ReduceMean", ["squares", "axes"], "variance"),
            ("Add", ["variance", "eps"], "sum"),
            ("Sqrt", ["sum"], "std"),
            ("Reciprocal", ["std"], "rstd"),
            ("Mul", ["rstd", "gamma"], "factor"),
            ("Mul", ["centred", "factor"], "scaled"),
            ("Add", ["scaled", "beta"], "shifted"),
            ("Reshape", ["shifted", "back"], "y"),
        )
    ]
    image = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 8, 6, 6))
        for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "norm", image[:1], image[1:], constants)
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    onnx.save(model, tmp_path / "norm.onnx")
    x = torch.randn(3, 8, 6, 6, generator=generator)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    assert_near(open_engine(tmp_path / "norm.onnx")(x=x)["y"], torch.from_numpy(expected))
    assert operators(tmp_path / "norm.onnx")[NORM] == (scale == (1, 2, 4, 1))


def test_the_backward_half_gets_a_norms_input_and_not_what_follows_of_it(tmp_path: Path) -> None:
    export_vjp_onnx(
        made("with a SiLU"), {"x": torch.randn(2, 8, 8, 8)}, "x", ("y",), tmp_path / "vjp.onnx"
    )
    split_vjp(tmp_path / "vjp.onnx", tmp_path / "forward.onnx", tmp_path / "backward.onnx")
    found = [
        value
        for value in onnx.load(tmp_path / "backward.onnx").graph.input
        if value.name != "cotangent"
    ]
    shapes = sorted(
        tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]) for value in found
    )
    assert shapes == [(2, 1, 1), (2, 1, 1), (8, 8, 8)]  # mean, 1 / std, input


def test_a_graph_that_is_half_precision_is_left_as_it_is(tmp_path: Path) -> None:
    export_onnx(
        made("alone").half(), {"x": torch.randn(2, 8, 8, 8).half()}, ("y",), tmp_path / "half.onnx"
    )
    assert not operators(tmp_path / "half.onnx")


def test_without_kernels_the_graph_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(made("two"), {"x": torch.randn(2, 8, 8, 8)}, ("y",), tmp_path / "module.onnx")
    x = torch.randn(3, 8, 8, 8)
    fused = open_engine(tmp_path / "module.onnx")(x=x)["y"]
    monkeypatch.setattr(acceleration, "kernel_library", lambda: None)
    plain = open_engine(tmp_path / "module.onnx")(x=x)["y"]
    assert_near(fused, plain)
    assert not torch.equal(fused, plain)  # other roundings: it was another graph


def test_the_kernels_can_be_switched_off(tmp_path: Path) -> None:
    code = "from good_rt.engines.cpu.library import kernel_library; print(kernel_library())"
    environment = {**os.environ, SWITCH: "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.stdout == "None\n"


def test_weights_in_a_file_of_their_own_are_found(tmp_path: Path) -> None:
    export_onnx(made("two"), {"x": torch.randn(2, 8, 8, 8)}, ("y",), tmp_path / "module.onnx")
    x = torch.randn(3, 8, 8, 8)
    expected = open_engine(tmp_path / "module.onnx")(x=x)["y"]
    model = onnx.load(tmp_path / "module.onnx")
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "module.onnx"
    onnx.save(
        model, path, save_as_external_data=True, location="module.onnx.data", size_threshold=128
    )
    assert (tmp_path / "elsewhere" / "module.onnx.data").stat().st_size > 2000
    assert operators(path)[NORM] == 2
    assert torch.equal(open_engine(path)(x=x)["y"], expected)


@pytest.mark.parametrize("name", ["attention", "two"])
def test_a_sample_is_the_same_in_any_batch_and_on_any_threads(name: str, tmp_path: Path) -> None:
    export_onnx(made(name), {"x": torch.randn(2, 8, 8, 8)}, ("y",), tmp_path / "module.onnx")
    x = torch.randn(9, 8, 8, 8)
    whole = open_engine(tmp_path / "module.onnx", threads=1)(x=x)["y"]
    for threads in (1, 2, 3):
        engine = open_engine(tmp_path / "module.onnx", threads=threads)
        for batch in (1, 2, 4, 9):
            assert torch.equal(torch.cat([engine(x=part)["y"] for part in x.split(batch)]), whole)


# --- the kernels by themselves
# ----------------------------------------------------------------------------------------


def kernel(
    folder: Path,
    groups: int,
    channels: int,
    pixels: int,
    silu: bool,
    scales: int | None = None,
) -> Engine:
    """(x, gamma, beta, cotangent) -> (y, dx), of x (N, channels, pixels): both kernels in one
    graph."""

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    attributes = {"domain": DOMAIN, "groups": groups, "silu": int(silu)}
    nodes = [
        helper.make_node(
            NORM, ["x", "gamma", "beta"], ["y", "mean", "rstd"], axes=4, eps=1e-5, **attributes
        ),
        helper.make_node(
            GRADIENT, ["x", "gamma", "beta", "mean", "rstd", "cotangent"], ["dx"], **attributes
        ),
    ]
    image = ("batch", channels, pixels)
    inputs = [value("x", *image), value("cotangent", *image)]
    inputs += [value(name, scales or channels) for name in ("gamma", "beta")]
    graph = helper.make_graph(nodes, "kernels", inputs, [value("y", *image), value("dx", *image)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    path = folder / "kernels.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return with_kernels(path)


def with_kernels(path: Path) -> Engine:
    """An engine of a graph that has kernels already."""
    graph = SessionGraph(custom_operators=kernel_library())
    return OnnxRuntimeEngine(path, threads=2, graph=graph)


def reference(arrays: dict[str, Tensor], groups: int, silu: bool) -> tuple[Tensor, Tensor]:
    """y and dx by PyTorch's autograd, in double precision."""
    x, gamma, beta, cotangent = (
        arrays[name].double() for name in ("x", "gamma", "beta", "cotangent")
    )
    x.requires_grad_()
    y = nn.functional.group_norm(x, groups, gamma, beta)
    y = nn.functional.silu(y) if silu else y
    return y.detach(), torch.autograd.grad(y, x, cotangent)[0]


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 5),
    groups=st.integers(1, 8),
    channels=st.integers(1, 8) | st.sampled_from([16, 24]),
    pixels=st.integers(2, 70) | st.sampled_from([4095, 4096, 4097, 10000]),
    silu=st.booleans(),
    offset=st.sampled_from([0.0, 3.0, -30.0]),
    scale=st.sampled_from([1e-2, 1.0, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_they_are_pytorchs_group_norm(
    tmp_path_factory: pytest.TempPathFactory,
    samples: int,
    groups: int,
    channels: int,
    pixels: int,
    silu: bool,
    offset: float,
    scale: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    shape = (samples, groups * channels, pixels)
    arrays = {
        "x": offset + torch.randn(shape) * scale, "cotangent": torch.randn(shape),
        "gamma": torch.randn(shape[1]), "beta": torch.randn(shape[1]),
    }  # fmt: skip
    found = kernel(tmp_path_factory.mktemp("kernels"), groups, *shape[1:], silu)(**arrays)
    y, dx = reference(arrays, groups, silu)
    # what rounding of x less its mean, in single precision, may come to over a small spread
    spread = float(
        (arrays["x"].reshape(samples, groups, -1).double().var(-1, correction=0) + 1e-5)
        .sqrt()
        .min()
    )
    rounding = 1e-5 + 1e-6 * float(arrays["x"].abs().max()) / spread
    assert float((found["y"] - y).abs().max()) <= rounding * float(y.abs().max() + 1)
    assert float((found["dx"] - dx).abs().max()) <= 10 * rounding * float(
        dx.abs().max() + 1 / spread
    )


def test_a_sigmoid_far_out_is_still_one(tmp_path: Path) -> None:
    """γ of a thousand: activations from -2000 to 2000, where exp alone would be 0 or infinite.

    It also scales the rounding of activations near 0, where the SiLU bends.
    """
    torch.manual_seed(0)
    arrays = {"x": torch.randn(2, 4, 64), "cotangent": torch.randn(2, 4, 64)}
    arrays |= {"gamma": torch.full((4,), 1000.0), "beta": torch.zeros(4)}
    found, (y, dx) = kernel(tmp_path, 2, 4, 64, True)(**arrays), reference(arrays, 2, True)
    assert_near(found["y"], y)
    assert_near(found["dx"], dx, 1e-4)


def test_a_group_of_one_value_is_not_divided_by_zero(tmp_path: Path) -> None:
    arrays = {"x": torch.full((1, 4, 9), 5.0), "cotangent": torch.randn(1, 4, 9)}
    arrays |= {"gamma": torch.ones(4), "beta": torch.arange(4.0)}
    found, (y, dx) = kernel(tmp_path, 2, 4, 9, False)(**arrays), reference(arrays, 2, False)
    assert_near(found["y"], y)
    assert_near(found["dx"], dx, 1e-4)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_propagates_through_group_norm_and_its_gradient(
    tmp_path: Path, silu: bool, bad: float
) -> None:
    """In its own group, which shares its sums, and in no other."""
    arrays = {"x": torch.randn(2, 4, 33), "cotangent": torch.randn(2, 4, 33)}
    arrays["x"][1, 3, 7] = bad
    arrays |= {"gamma": torch.ones(4), "beta": torch.zeros(4)}
    found = kernel(tmp_path, 2, 4, 33, silu)(**arrays)
    for array in found.values():
        assert array[1, 2:].isnan().all()
        assert array[0].isfinite().all() and array[1, :2].isfinite().all()


def interleave(tmp_path: Path, shape: tuple[int, int, int]) -> Engine:
    """("image 0", ..., "image 3") -> whole."""
    channels, height, width = shape
    images = [f"image {place}" for place in range(4)]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *shape)) for name in images
    ]
    whole = helper.make_tensor_value_info(
        "whole", TensorProto.FLOAT, ("batch", channels, 2 * height, 2 * width)
    )
    node = helper.make_node("Interleave", images, ["whole"], domain=DOMAIN)
    graph = helper.make_graph([node], "interleave", inputs, [whole])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "interleave.onnx"
    )
    return with_kernels(tmp_path / "interleave.onnx")


def test_interleave_is_pixel_shuffle(tmp_path: Path) -> None:
    """To the last bit."""
    images = {f"image {place}": torch.randn(3, 32, 5, 7) for place in range(4)}
    whole = nn.functional.pixel_shuffle(torch.stack(list(images.values()), 2).flatten(1, 2), 2)
    assert torch.equal(interleave(tmp_path, (32, 5, 7))(**images)["whole"], whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_propagates_through_interleave(tmp_path: Path, bad: float) -> None:
    """To its own pixel, and to no others."""
    images = {f"image {place}": torch.zeros(2, 32, 3, 5) for place in range(4)}
    images["image 2"][1, 9, 2, 4] = bad
    finite = interleave(tmp_path, (32, 3, 5))(**images)["whole"].isfinite()
    assert int((~finite).sum()) == 1 and not bool(finite[1, 9, 5, 8])


@pytest.mark.parametrize("name", ["cotangent", "y"])
def test_nan_propagates_through_the_gradient_of_a_relu(tmp_path: Path, name: str) -> None:
    """Of either input, where it is, even where the ReLU's other side would give 0."""
    node = helper.make_node("ReluGradient", ["cotangent", "y"], ["dx"], domain=DOMAIN)
    values = [
        helper.make_tensor_value_info(each, TensorProto.FLOAT, (2, 4, 33))
        for each in ("cotangent", "y", "dx")
    ]
    graph = helper.make_graph([node], "relu", values[:2], values[2:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "relu.onnx")
    arrays = {each: torch.full((2, 4, 33), -1.0) for each in ("cotangent", "y")}
    arrays[name][1, 2, 32] = float("nan")
    nans = with_kernels(tmp_path / "relu.onnx")(**arrays)["dx"].isnan()
    assert int(nans.sum()) == 1 and bool(nans[1, 2, 32])


def test_a_sample_is_the_same_in_any_batch(tmp_path: Path) -> None:
    arrays = {"x": torch.randn(7, 6, 50), "cotangent": torch.randn(7, 6, 50)}
    weights = {"gamma": torch.randn(6), "beta": torch.randn(6)}
    engine = kernel(tmp_path, 3, 6, 50, True)
    whole = engine(**arrays, **weights)
    for place in range(7):
        alone = engine(
            **{name: array[place : place + 1] for name, array in arrays.items()}, **weights
        )
        assert all(torch.equal(alone[name][0], whole[name][place]) for name in whole)


def test_an_empty_batch_is_empty(tmp_path: Path) -> None:
    arrays = {"x": torch.zeros(0, 4, 9), "cotangent": torch.zeros(0, 4, 9)}
    found = kernel(tmp_path, 2, 4, 9, True)(**arrays, gamma=torch.ones(4), beta=torch.ones(4))
    assert found["y"].shape == found["dx"].shape == (0, 4, 9)


@pytest.mark.parametrize(
    ("groups", "channels", "scales"),
    [(3, 4, None), (2, 4, 6)],
    ids=["groups of the channels", "numbers of gamma"],
)
def test_what_does_not_fit_is_an_error_and_no_crash(
    tmp_path: Path, groups: int, channels: int, scales: int | None
) -> None:
    engine = kernel(tmp_path, groups, channels, 5, True, scales)
    arrays = {"x": torch.zeros(2, channels, 5), "cotangent": torch.zeros(2, channels, 5)}
    with pytest.raises(GoodRtError, match="groups must divide the channels"):
        engine(**arrays, gamma=torch.ones(scales or channels), beta=torch.ones(scales or channels))


def test_no_groups_are_an_error_when_the_graph_is_opened(tmp_path: Path) -> None:
    with pytest.raises(GoodRtError, match="groups must be positive"):
        kernel(tmp_path, 0, 4, 5, True)
