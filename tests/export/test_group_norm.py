"""Group norms of a million elements a group on pictures with flat areas: as exact as PyTorch's,
against float64."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from good_rt.engines.open import open_engine
from good_rt.export.group_norm import stage_large_groups
from good_rt.export.parity import AutogradVjp
from good_rt.export.to_onnx import export_onnx, trace
from good_rt.export.vjp import export_vjp_onnx


@pytest.fixture(scope="module")
def norm() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    module = nn.GroupNorm(2, 8)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return (
        nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), module, nn.SiLU()).eval().requires_grad_(False)
    )


@pytest.fixture(scope="module")
def flat() -> Tensor:
    """A picture that is flat but for a corner."""
    picture = torch.full((1, 2, 512, 512), 0.3)
    picture[:, :, :100, :100] = torch.randn(
        1, 2, 100, 100, generator=torch.Generator().manual_seed(1)
    )
    return picture


def test_the_output_keeps_its_digits(norm: nn.Module, flat: Tensor, tmp_path: Path) -> None:
    export_onnx(norm, {"x": flat.repeat(2, 1, 1, 1)}, ("y",), tmp_path / "norm.onnx")
    found = open_engine(tmp_path / "norm.onnx")(x=flat)["y"]
    expected = copy.deepcopy(norm).double()(flat.double())
    assert float((found - expected).abs().max()) < 3e-4  # one long sum is 1e-2 off


def test_the_gradient_keeps_its_digits(norm: nn.Module, flat: Tensor, tmp_path: Path) -> None:
    export_vjp_onnx(norm, {"x": flat.repeat(2, 1, 1, 1)}, "x", ("y",), tmp_path / "norm_vjp.onnx")
    cotangent = torch.randn(1, 8, 512, 512, generator=torch.Generator().manual_seed(2))
    found = open_engine(tmp_path / "norm_vjp.onnx")(cotangent=cotangent, x=flat)
    expected = AutogradVjp(copy.deepcopy(norm).double(), 1, 0)(cotangent.double(), flat.double())
    for ours, reference in zip(found.values(), expected, strict=True):
        assert float((ours - reference).abs().max() / reference.square().mean().sqrt()) < 1e-3


def test_large_groups_alone_are_staged(tmp_path: Path) -> None:
    both = nn.Sequential(nn.GroupNorm(2, 8), nn.AvgPool2d(16), nn.GroupNorm(2, 8)).eval()
    x = torch.randn(3, 8, 256, 256, generator=torch.Generator().manual_seed(3))
    export_onnx(both, {"x": x[:2]}, ("y",), tmp_path / "both.onnx")
    operations = [node.op_type for node in onnx.load(tmp_path / "both.onnx").graph.node]
    assert operations.count("InstanceNormalization") == 1
    torch.testing.assert_close(
        open_engine(tmp_path / "both.onnx")(x=x)["y"], both(x).detach(), rtol=0, atol=1e-4
    )


def test_small_groups_are_left_as_they_are(norm: nn.Module) -> None:
    program = trace(norm, {"x": torch.zeros(2, 2, 32, 32)})
    assert stage_large_groups(program) is program
