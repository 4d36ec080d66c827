"""Half precision: which parts of a graph it takes, which it leaves, and how far its results are
off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from half_precision import as_computed, rounding_error
from onnx import TensorProto, helper, numpy_helper

from good_rt.classifier import Classifier
from good_rt.diffusion import load_diffusion
from good_rt.export.graphs import graphs_of
from good_rt.export.manifest import load_engines
from good_rt.export.precision import HALF, to_half

GRAPHS = ("network", "vae_encoder", "vae_decoder", "classifier")


def graph(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], output: str = "y"
) -> onnx.ModelProto:
    """x (batch, 4) -> y (batch, 4), float32."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
        for name in ("x", output)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    found = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def kinds(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Operation -> the precisions that it is computed in: of its first input."""
    found: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.input:
            found.setdefault(node.op_type, set()).add(
                node.input[0].rpartition("/")[2] if "/fp16" in node.input[0] else "fp32"
            )
    return found  # fmt: skip


def weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer if len(tensor.dims) > 1)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_keep_their_face_and_lose_little(
    name: str, engines_dir: Path, model_dir: Path, classifier: Classifier
) -> None:
    model = onnx.load(engines_dir / f"{name}.onnx")
    inputs = graphs_of(load_diffusion(model_dir), classifier, None)[name].inputs["random"](3)
    arrays = {key: value.numpy() for key, value in inputs.items()}
    for precision, bound in (("fp16", 4e-3), ("bf16", 4e-2)):
        half = to_half(model, precision)
        assert list(half.graph.input) == list(model.graph.input)
        assert list(half.graph.output) == list(model.graph.output)
        assert weight_bytes(half) < 0.7 * weight_bytes(model)
        for error in rounding_error(model, precision, arrays).values():
            assert 0 < error["rms"] < bound and error["max"] < 10 * bound
    onnx.checker.check_model(to_half(model, "fp16"))


def test_sums_and_the_timestep_stay_float32(engines_dir: Path) -> None:
    found = kinds(to_half(onnx.load(engines_dir / "network.onnx"), "fp16"))
    for name in ("InstanceNormalization", "Sin", "Cos", "Softmax"):
        assert found[name] == {"fp32"}, name
    for name in ("Conv", "MatMul", "Sigmoid"):
        assert found[name] == {"fp16"}, name


def test_an_epsilon_stays_one() -> None:
    """1e-12 is 0 in fp16, and 0 / 0 is no feature."""
    nodes = [
        helper.make_node("ReduceL2", ["x", "axes"], ["norm"]),
        helper.make_node("Max", ["norm", "eps"], ["guarded"]),
        helper.make_node("Div", ["x", "guarded"], ["y"]),
    ]
    model = graph(nodes, {"axes": np.array([1]), "eps": np.array(1e-12, np.float32)})
    half = as_computed(to_half(model, "bf16"), "bf16")
    assert "eps" in {tensor.name for tensor in to_half(model, "fp16").graph.initializer}
    assert "eps/bf16" in {
        tensor.name for tensor in half.graph.initializer
    }  # bf16 has float32's range


def test_a_mask_stays_within_range() -> None:
    mask = np.array([0, -3.4e38, -np.inf, 1], np.float32)
    half = to_half(graph([helper.make_node("Add", ["x", "mask"], ["y"])], {"mask": mask}), "fp16")
    (tensor,) = half.graph.initializer
    assert numpy_helper.to_array(tensor).tolist() == [0, -65504, -np.inf, 1]


@pytest.mark.parametrize("precision", HALF)
def test_every_operation_rounds(precision: str) -> None:
    """(x + 2⁻¹³) − x is 0 in half precision, and 2⁻¹³ where the sum is kept in float32."""
    nodes = [
        helper.make_node("Add", ["x", "small"], ["sum"]),
        helper.make_node("Sub", ["sum", "x"], ["y"]),
    ]
    model = graph(nodes, {"small": np.array(2**-13, np.float32)})
    error = rounding_error(model, precision, {"x": np.ones((2, 4), np.float32)})["y"]
    assert error == {"max": 1, "rms": 1}


def test_a_tensor_that_is_used_both_ways_and_put_out() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["y"]),
        helper.make_node("Softmax", ["y"], ["s"]),
        helper.make_node("Relu", ["y"], ["r"]),
    ]
    model = graph(nodes, {"two": np.array(2, np.float32)})
    half = to_half(model, "fp16")
    assert [node.op_type for node in half.graph.node] == ["Cast", "Mul", "Cast", "Softmax", "Relu"]
    onnx.checker.check_model(half, full_check=True)


def test_inner_graphs_are_left_alone() -> None:
    def branch(operation: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["batch", 4])
        return helper.make_graph(
            [helper.make_node(operation, ["m"], ["inner"])], operation, [], [value]
        )

    nodes = [
        helper.make_node("Mul", ["x", "two"], ["m"]),
        helper.make_node(
            "If", ["flag"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")
        ),
    ]
    model = graph(nodes, {"two": np.array(2, np.float32), "flag": np.array(True)})
    half = to_half(model, "fp16")
    onnx.checker.check_model(half, full_check=True)
    assert [node.op_type for node in half.graph.node] == ["Cast", "Mul", "Cast", "If"]
    assert rounding_error(model, "fp16", {"x": torch.ones(2, 4).numpy()})["y"]["max"] == 0


def test_engines_in_half_precision_are_the_half_graphs(engines_dir: Path, model_dir: Path) -> None:
    """On the CPU, where ONNX Runtime takes fp16 as storage and computes in float32 between."""
    names = ("network", "vae_decoder")
    exact, half = (
        load_engines(engines_dir, names=names, precisions=kind)
        for kind in ({}, {"vae_decoder": "fp16"})
    )
    latents = torch.randn(
        5, *load_diffusion(model_dir).sample_shape, generator=torch.Generator().manual_seed(0)
    )
    expected, found = (
        engines["vae_decoder"](latents=latents)["images"] for engines in (exact, half)
    )
    assert found.dtype == torch.float32
    assert 0 < (found - expected).square().mean().sqrt() < 4e-3 * expected.square().mean().sqrt()
    assert half["vae_decoder"].inputs == exact["vae_decoder"].inputs
