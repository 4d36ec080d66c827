"""The comparison with PyTorch: its figures by hand, and that nothing wrong passes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from good_rt.engines.base import TensorSpec
from good_rt.engines.torch import TorchEngine
from good_rt.export.parity import COMPARED_BATCHES, AutogradVjp, compare
from good_rt.export.vjp import GRADIENT


class Affine(nn.Module):
    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


def engine(module: nn.Module) -> TorchEngine:
    return TorchEngine(
        module,
        {"x": TensorSpec("float32", ("batch", 4))},
        {"y": TensorSpec("float32", ("batch", 4))},
    )


def ramp(n: int) -> Mapping[str, Tensor]:
    return {"x": torch.arange(1.0, 4 * n + 1).reshape(n, 4)}


def test_figures_by_hand() -> None:
    rows = compare(
        "g",
        engine(Affine(2, 0.5)),
        Affine(2),
        {"real": ramp},
        batches=[2],
        relative=0.01,
        absolute=0.1,
    )
    (row,) = rows
    assert (row.graph, row.output, row.inputs, row.batch) == ("g", "y", "real", 2)
    assert row.max_absolute == pytest.approx(0.5)
    rms = (sum((2 * v) ** 2 for v in range(1, 9)) / 8) ** 0.5
    assert row.max_relative == pytest.approx(0.5 / rms)
    assert row.excess == pytest.approx(0.5 / (0.1 + 0.01 * 2))  # worst at the smallest element
    assert not row.ok


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(1e-4, 0.1), st.floats(1e-4, 0.1))
def test_it_passes_exactly_within_the_tolerance(
    shift: float, relative: float, absolute: float
) -> None:
    (row,) = compare(
        "g",
        engine(Affine(1, shift)),
        Affine(1),
        {"real": ramp},
        batches=[2],
        relative=relative,
        absolute=absolute,
    )
    allowed = absolute + relative * 1  # the smallest element is 1
    if abs(abs(shift) - allowed) > 1e-5:
        assert row.ok == (abs(shift) < allowed)


def test_every_kind_and_batch_is_compared() -> None:
    rows = compare("g", engine(Affine(1)), Affine(1), {"real": ramp, "random": ramp})
    assert [(row.inputs, row.batch) for row in rows] == [
        (kind, n) for kind in ("real", "random") for n in COMPARED_BATCHES
    ]
    assert all(row.ok and row.max_absolute == 0 for row in rows)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_pass(bad: float) -> None:
    for ours, reference in ((bad, 1.0), (1.0, bad), (bad, bad)):
        rows = compare("g", engine(Affine(ours)), Affine(reference), {"real": ramp})
        assert not any(row.ok for row in rows)


class Kinks(nn.Module):
    """ReLUs of inputs of 1, less a shift that is nothing or so small that it gets lost in
    rounding."""

    def __init__(self, slope: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.slope, self.shift = slope, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * torch.relu(x - (1 + self.shift))


def kinks(n: int) -> Mapping[str, Tensor]:
    return {"cotangent": torch.ones(n, 4), "x": torch.tensor([[1.0, 2, 3, 4]]).repeat(n, 1)}


def vjp_engine(module: nn.Module) -> TorchEngine:
    spec = TensorSpec("float32", ("batch", 4))
    return TorchEngine(
        AutogradVjp(module, 1, 0), {"cotangent": spec, "x": spec}, {"y": spec, GRADIENT: spec}
    )


@pytest.mark.parametrize(
    ("ours", "passes"),
    [
        (Kinks(), True),
        (Kinks(shift=-2e-7), True),
        (Kinks(shift=1.5), False),
        (Kinks(slope=1.01), False),
    ],
)
def test_a_gradient_may_be_of_either_side_of_a_kink(ours: nn.Module, passes: bool) -> None:
    rows = compare(
        "g", vjp_engine(ours), AutogradVjp(Kinks(), 1, 0), {"real": kinks}, absolute=2e-3
    )
    assert all(row.ok == passes for row in rows if row.output == GRADIENT)


class Switch(nn.Module):
    """A slope of 2 where a difference is positive of which float32 keeps nothing: there it is 1, in
    float64 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.where(x * (1 + 3e-8) - x > 0, x, 0)


class Float32Switch(Switch):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("expected float32")
        return super().forward(x)


@pytest.mark.parametrize(
    ("module", "slope", "passes"),
    [
        (Switch(), 2.0, True),
        (Switch(), 1.0, True),
        (Switch(), 1.5, False),
        (Float32Switch(), 2.0, False),
    ],
)
def test_where_float32_is_on_the_other_side_of_a_kink_float64_counts(
    module: nn.Module, slope: float, passes: bool
) -> None:
    rows = compare(
        "g", vjp_engine(Affine(slope)), AutogradVjp(module, 1, 0), {"real": kinks}, relative=2e-3
    )
    assert all(row.ok == passes for row in rows if row.output == GRADIENT)
