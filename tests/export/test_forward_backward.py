"""A VJP graph cut in two: the halves compute what the whole does, and hand on tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

from good_rt.engines.batch_splitting import PART, SplitVjpPair, vjp_pair
from good_rt.engines.open import open_engine
from good_rt.errors import GoodRtError
from good_rt.export.vjp import export_vjp_onnx
from good_rt.export.vjp.forward_backward import split_vjp


class Attention(nn.Module):
    """Self-attention with heads over an image's pixels, as in diffusers: its backward half needs
    the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        query, key, value = (
            self.to_qkv(x.flatten(2).transpose(1, 2)).view(n, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        )
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, 16, 8)
        return x + self.out(found).transpose(1, 2).reshape(x.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("split")
    export_vjp_onnx(
        Attention().eval(), {"x": torch.randn(2, 8, 4, 4)}, "x", ("y",), folder / "vjp.onnx"
    )
    split_vjp(folder / "vjp.onnx", folder / "forward.onnx", folder / "backward.onnx")
    return folder


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_halves_are_the_whole(folder: Path, threads: int) -> None:
    """In parts as well, of which the whole, on one thread and of at most `PART` samples, has
    none."""
    whole = open_engine(folder / "vjp.onnx", threads=1)
    pair = vjp_pair(
        *(open_engine(folder / f"{half}.onnx", threads=threads) for half in ("forward", "backward"))
    )
    assert isinstance(pair, SplitVjpPair)
    for batch in (1, 2, 5, PART):
        arrays = {"x": torch.randn(batch, 8, 4, 4), "cotangent": torch.randn(batch, 8, 4, 4)}
        expected, found = whole(**arrays), pair(**arrays)
        assert found.keys() == expected.keys() == {"y", "gradient"}
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [2, 8], ids=["whole", "in parts"])
def test_inputs_of_other_lengths_are_refused(folder: Path, batch: int) -> None:
    pair = vjp_pair(
        *(open_engine(folder / f"{half}.onnx", threads=2) for half in ("forward", "backward"))
    )
    for more in (-1, 1):
        arrays = {"x": torch.randn(batch, 8, 4, 4), "cotangent": torch.randn(batch + more, 8, 4, 4)}
        with pytest.raises(
            GoodRtError, match=r"engine input '.*' must be float32 batchx8x4x4, not"
        ):
            pair(**arrays)


@pytest.mark.parametrize("batch", [1, 9])
def test_a_cotangent_of_another_length_than_the_forward_half_had_is_refused(
    folder: Path, batch: int
) -> None:
    pair = vjp_pair(
        *(open_engine(folder / f"{half}.onnx", threads=2) for half in ("forward", "backward"))
    )
    _, residuals = pair.forward(x=torch.randn(batch, 8, 4, 4))
    for more in (-1, 1, 2):
        with pytest.raises(
            GoodRtError, match=f"there are {batch + more} cotangents for {batch} samples"
        ):
            pair.backward(torch.randn(batch + more, 8, 4, 4), residuals)


def test_a_pair_of_other_engines_is_left_whole(folder: Path) -> None:
    """Of engines bound to a device, of ones that have nothing but the members of `Engine`, and of
    two kinds."""

    class Plain:
        def __init__(self, path: Path) -> None:
            self._engine = open_engine(path, threads=2)
            self.inputs, self.outputs = self._engine.inputs, self._engine.outputs

        def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
            return self._engine(**arrays)

    arrays = {"x": torch.randn(9, 8, 4, 4), "cotangent": torch.randn(9, 8, 4, 4)}
    expected = open_engine(folder / "vjp.onnx", threads=1)(**arrays)
    bound = partial(open_engine, bind=True)
    plain: Callable[[Path], Any] = open_engine
    for kinds in (
        (Plain, Plain),
        (bound, bound),
        (plain, Plain),
        (Plain, plain),
        (plain, bound),
        (bound, plain),
    ):
        halves = (
            make(folder / f"{half}.onnx")
            for make, half in zip(kinds, ("forward", "backward"), strict=True)
        )
        found = vjp_pair(*halves)(**arrays)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_the_backward_half_takes_tensors_of_the_batch_alone(folder: Path) -> None:
    """Shapes among them would be inputs whose values TensorRT wants to know when it builds the
    plan."""
    kinds = {
        value.name: value.type.tensor_type
        for value in onnx.load(folder / "backward.onnx").graph.input
    }
    assert len(kinds) > 3
    assert {kind.elem_type for kind in kinds.values()} == {TensorProto.FLOAT}
    assert {kind.shape.dim[0].dim_param for kind in kinds.values()} == {"batch"}


def test_a_gradient_that_depends_on_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "vjp.onnx")
    for node in model.graph.node:
        node.input[:] = ["x" if name == "cotangent" else name for name in node.input]
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(
        GoodRtError, match=r"odd\.onnx cannot be split: its gradient does not depend"
    ):
        split_vjp(tmp_path / "odd.onnx", tmp_path / "forward.onnx", tmp_path / "backward.onnx")
