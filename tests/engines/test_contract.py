"""Every engine through the public contract, and each rule of the contract on an engine that breaks
it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from good_rt.engines.autograd import VjpPair
from good_rt.engines.base import Engine, TensorSpec, check_inputs
from good_rt.engines.onnxruntime import OnnxRuntimeEngine
from good_rt.engines.torch import TorchEngine
from good_rt.export.to_onnx import export_onnx
from good_rt.testing import ContractError, engine_checks
from good_rt.testing.engine import ENGINE_CHECKS, EngineCase

INPUTS = {
    "image": TensorSpec("float32", ("batch", 3, 8, 8)),
    "label": TensorSpec("int64", ("batch",)),
}
OUTPUTS = {
    "map": TensorSpec("float32", ("batch", 4, 8, 8)),
    "score": TensorSpec("float32", ("batch",)),
}


class LabelledMap(nn.Module):
    """A convolution with a label's embedding, and a number a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.embedding = nn.Embedding(5, 4)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        features = self.convolution(image) + self.embedding(label)[:, :, None, None]
        features = torch.nn.functional.silu(features)
        return features, features.mean(dim=(1, 2, 3))


class TanhForward(nn.Module):
    """y = tanh(x / 2), and what its backward half needs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(x / 2)
        return y, 1 - y * y


class TanhBackward(nn.Module):
    """Jᵀv."""

    def forward(self, cotangent: Tensor, kept: Tensor) -> Tensor:
        return cotangent * kept / 2


ROWS = TensorSpec("float32", ("batch", 6))


def labelled_map() -> LabelledMap:
    torch.manual_seed(0)
    return LabelledMap().eval()


def example(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "image": torch.randn(batch, 3, 8, 8, generator=generator),
        "label": torch.randint(5, (batch,), generator=generator),
    }


def pair_example(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {name: torch.randn(batch, 6, generator=generator) for name in ("cotangent", "x")}


def tanh_by_autograd(cotangent: Tensor, x: Tensor) -> dict[str, Tensor]:
    """The pair's reference: PyTorch's own gradient."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        y = torch.tanh(leaf / 2)
        (gradient,) = torch.autograd.grad(y, leaf, cotangent)
    return {"y": y.detach(), "gradient": gradient}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """map.onnx, forward.onnx and backward.onnx."""
    folder = tmp_path_factory.mktemp("graphs")
    export_onnx(labelled_map(), example(2), list(OUTPUTS), folder / "map.onnx")
    x, other = pair_example(2).values()  # the same tensor twice would be traced as one input
    export_onnx(TanhForward(), {"x": x}, ["y", "kept"], folder / "forward.onnx")
    halves = {"cotangent": x, "kept": other}
    export_onnx(TanhBackward(), halves, ["gradient"], folder / "backward.onnx")
    return folder


def torch_pair() -> VjpPair:
    return VjpPair(
        TorchEngine(TanhForward(), {"x": ROWS}, {"y": ROWS, "kept": ROWS}),
        TorchEngine(TanhBackward(), {"cotangent": ROWS, "kept": ROWS}, {"gradient": ROWS}),
    )


MAPS: dict[str, Callable[[Path], Engine]] = {
    "torch": lambda folder: TorchEngine(labelled_map(), INPUTS, OUTPUTS),
    "onnxruntime": lambda folder: OnnxRuntimeEngine(folder / "map.onnx"),
    "onnxruntime, 1 thread": lambda folder: OnnxRuntimeEngine(folder / "map.onnx", threads=1),
    "onnxruntime, bound": lambda folder: OnnxRuntimeEngine(folder / "map.onnx", bind=True),
}
PAIRS: dict[str, Callable[[Path], Engine]] = {
    "VJP pair, torch": lambda folder: torch_pair(),
    "VJP pair, onnxruntime": lambda folder: VjpPair(
        OnnxRuntimeEngine(folder / "forward.onnx"), OnnxRuntimeEngine(folder / "backward.onnx")
    ),
}


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("engine", [*MAPS, *PAIRS])
def test_every_engine_keeps_the_contract(
    graphs: Path, engine: str, check: Callable[[EngineCase], None]
) -> None:
    batches = (1, 2, 5, 9)
    if engine in MAPS:
        reference = TorchEngine(labelled_map(), INPUTS, OUTPUTS)
        check(EngineCase(lambda: MAPS[engine](graphs), reference, example, batches, 1e-3))
    else:
        make = PAIRS[engine]
        check(EngineCase(lambda: make(graphs), tanh_by_autograd, pair_example, batches, 1e-3))


class BreakableEngine:
    """Keeps every rule, as a base for engines that break one."""

    inputs: Mapping[str, TensorSpec] = INPUTS
    outputs: Mapping[str, TensorSpec] = OUTPUTS

    def __init__(self) -> None:
        self.module = labelled_map().requires_grad_(False)
        self.calls = 0

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        check_inputs(self, arrays)
        self.calls += 1
        return self.run(**arrays)

    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return dict(zip(OUTPUTS, self.module(image.detach(), label), strict=True))


class CallsItFloat64(BreakableEngine):
    outputs = {**OUTPUTS, "score": TensorSpec("float64", ("batch",))}


class IsInexact(BreakableEngine):
    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return super().run(image=1.05 * image, label=label)


class DropsTheBatchAxis(BreakableEngine):
    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        outputs = super().run(image=image, label=label)
        return {**outputs, "score": outputs["score"].squeeze()}


class KeepsTheLargestBatch(BreakableEngine):
    largest = 0

    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        self.largest = max(self.largest, len(image))
        padded = torch.cat([image, image.new_zeros(self.largest - len(image), 3, 8, 8)])
        more = torch.cat([label, label.new_zeros(self.largest - len(label))])
        return super().run(image=padded, label=more)


class ChecksNothing(BreakableEngine):
    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        image = arrays.get("image", torch.zeros(5, 3, 8, 8)).float().reshape(-1)
        image = image[: 5 * 3 * 64].reshape(5, 3, 8, 8)
        label = arrays.get("label", torch.zeros(5, dtype=torch.long)).long()
        return self.run(image, label.reshape(-1)[:5])


class WithBuffer(BreakableEngine):
    buffer: dict[str, Tensor] | None = None

    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        outputs = super().run(image=image, label=label)
        if self.buffer is None or len(self.buffer["map"]) != len(image):
            self.buffer = outputs
        for name, value in outputs.items():
            self.buffer[name].copy_(value)
        return self.buffer


class GivesAnInputBack(BreakableEngine):
    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        outputs = super().run(image=image, label=label)
        return {**outputs, "score": image[:, 0, 0, 0]}


class WritesIntoInputs(BreakableEngine):
    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        outputs = super().run(image=image, label=label)
        image.detach().mul_(2)
        return outputs


class Drifts(BreakableEngine):
    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        outputs = super().run(image=image, label=label)
        return {name: value + 1e-6 * self.calls for name, value in outputs.items()}


class SharesState(BreakableEngine):
    open: list[BreakableEngine] = []

    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        self.open[:] = [other for other in self.open if other is not self] + [self]
        scale = float(len(self.open))
        outputs = super().run(image=image, label=label)
        return {name: scale * value for name, value in outputs.items()}


class HidesNan(BreakableEngine):
    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return super().run(image=image.nan_to_num(), label=label)


class GoesByOrder(BreakableEngine):
    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        first, second = arrays.values()
        if first.ndim == 1:
            first, second = torch.zeros(len(first), 3, 8, 8), first
        return self.run(first, second)


class ReadsMemoryAsItLies(BreakableEngine):
    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        flat = torch.as_strided(image, (image.numel(),), (1,))
        return super().run(image=flat.view(image.shape), label=label)


class NeedsNoGradient(BreakableEngine):
    def run(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return super().run(image=torch.from_numpy(image.numpy()) if not image.requires_grad
                           else torch.zeros_like(image), label=label)  # fmt: skip


BROKEN: dict[str, Callable[[], Engine]] = {
    "check_engine_specs": CallsItFloat64,
    "check_engine_parity": IsInexact,
    "check_engine_batch_of_one": DropsTheBatchAxis,
    "check_engine_changing_batches": KeepsTheLargestBatch,
    "check_engine_refuses_missing_input": ChecksNothing,
    "check_engine_refuses_unknown_input": ChecksNothing,
    "check_engine_refuses_other_dtype": ChecksNothing,
    "check_engine_refuses_other_shape": ChecksNothing,
    "check_engine_outputs_not_reused": WithBuffer,
    "check_engine_outputs_not_inputs": GivesAnInputBack,
    "check_engine_inputs_unchanged": WritesIntoInputs,
    "check_engine_repeated_calls": Drifts,
    "check_engine_opens_twice": SharesState,
    "check_engine_nan_propagates": HidesNan,
    "check_engine_input_order": GoesByOrder,
    "check_engine_memory_layout": ReadsMemoryAsItLies,
    "check_engine_inputs_with_gradient": NeedsNoGradient,
}


def contract(make: Callable[[], Engine]) -> dict[str, Any]:
    reference = TorchEngine(labelled_map(), INPUTS, OUTPUTS)
    return {check.name: check for check in engine_checks(make, reference, example)}


def test_every_check_is_seen_to_fail() -> None:
    assert set(BROKEN) == {check.__name__ for check in ENGINE_CHECKS}


def test_the_unbroken_engine_passes() -> None:
    for check in contract(BreakableEngine).values():
        check()


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_engine_fails(name: str) -> None:
    SharesState.open.clear()
    with pytest.raises(ContractError) as broken:
        contract(BROKEN[name])[name]()
    assert "\n" not in str(broken.value)
