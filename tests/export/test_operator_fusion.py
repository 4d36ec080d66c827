"""Pairs of operations as one, against autograd through PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.export.vjp import vjp_module
from good_rt.export.vjp.operator_fusion import enlarged_convolution


def check_against_autograd(module: nn.Module, product: nn.Module, x: Tensor) -> None:
    expected = module(x)
    v = torch.randn_like(expected)
    y, gradient = product(v, x.detach())
    torch.testing.assert_close(y, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, v)[0])


class Enlarging(nn.Module):
    """An enlargement that a convolution reads, and with ``twice`` the output as well."""

    def __init__(self, scale: float, kernel: int, stride: int, twice: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, kernel, stride, kernel // 2)
        self.scale, self.twice = scale, twice

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        y = self.conv(large)
        return y + large.mean(dim=1, keepdim=True) if self.twice else y


CASES = [
    (2.0, 3, 1, False, True),
    (3.0, 3, 1, False, False),
    (2.0, 3, 2, False, False),
    (2.0, 1, 1, False, False),
    (2.0, 3, 1, True, False),
]


@pytest.mark.parametrize(("scale", "kernel", "stride", "twice", "joined"), CASES)
@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 2)])
def test_the_gradient_is_autograds_and_only_the_known_pair_is_joined(
    scale: float, kernel: int, stride: int, twice: bool, joined: bool, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    module = Enlarging(scale, kernel, stride, twice).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    product = vjp_module(module, {"x": x}, "x")
    assert joined == any(node.target is enlarged_convolution for node in product.primal.graph.nodes)
    x = torch.randn(3, 3, *size, dtype=torch.float64, requires_grad=True)
    check_against_autograd(module, product, x)


class Normalised(nn.Module):
    """Two convolutions with batch norm, the second without affine parameters; the first is read
    twice where asked."""

    def __init__(self, bias: bool, twice: bool) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(3, 4, 3, 2, 1, bias=bias),
            nn.Conv2d(4, 4, 1, bias=bias, groups=2),
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)])
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.norms[1](self.second(F.relu(self.norms[0](y))))
        return z + y if self.twice else z


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("twice", [True, False])
def test_batch_norms_are_folded_where_nothing_else_reads_the_convolution(
    bias: bool, twice: bool
) -> None:
    torch.manual_seed(0)
    module = Normalised(bias, twice).double()
    for _ in range(3):
        module(
            torch.randn(16, 3, 8, 8, dtype=torch.float64) * 2 + 1
        )  # statistics that are not 0 and 1
    module.eval()
    product = vjp_module(module, {"x": torch.randn(2, 3, 8, 8, dtype=torch.float64)}, "x")
    left = [node for node in product.primal.graph.nodes if "batch_norm" in str(node.target)]
    assert len(left) == (1 if twice else 0)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    check_against_autograd(module, product, x)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_batch_norms_are_folded_into_convolutions_of_any_number_of_axes(axes: int) -> None:
    torch.manual_seed(0)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](3, 5, 3)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1](5)
    module = nn.Sequential(convolution, norm)
    module(torch.randn(4, 3, *[5] * axes))  # statistics that are not 0 and 1
    module = module.double().eval()
    product = vjp_module(module, {"x": torch.randn(2, 3, *[5] * axes, dtype=torch.float64)}, "x")
    x = torch.randn(3, 3, *[5] * axes, dtype=torch.float64, requires_grad=True)
    check_against_autograd(module, product, x)
    assert not any("batch_norm" in str(node.target) for node in product.primal.graph.nodes)
