"""ONNX operations in PyTorch: one function an operation, for the forms in which image classifiers
use them.

`good_rt.classifier.sources.onnx` compares every converted file with ONNX Runtime before it is used;
an operation or a form that is not here leaves the file as it is. Another operation is one more
function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Operation = Callable[..., Any]
"""(*inputs, **attributes) -> output. Constant shapes and axes are lists of integers."""
OPERATIONS: dict[str, Operation] = {
    "Constant": lambda: None,  # taken out when the graph is read
    "Identity": lambda x: x,
    "Dropout": lambda x, *_, **__: x,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Sqrt": torch.sqrt,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Reciprocal": torch.reciprocal,
    "HardSwish": F.hardswish,
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "Pow": lambda x, y: x**y,
    "MatMul": torch.matmul,
    "GlobalAveragePool": lambda x: x.mean(dim=(2, 3), keepdim=True),
    "Softmax": lambda x, axis=-1: F.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: F.log_softmax(x, axis),
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (x * alpha + beta).clamp(0, 1),
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Transpose": lambda x, perm: x.permute(perm),
}
SHAPES = {
    "Reshape": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1,),
    "Split": (1,),
    "Clip": (1, 2),
}
"""The inputs that are numbers or lists of them, not tensors: constants, or computed from a tensor's
shape."""


def operation(name: str) -> Callable[[Operation], Operation]:
    """Registers a function under an operation's name."""

    def register(function: Operation) -> Operation:
        OPERATIONS[name] = function
        return function

    return register


def _symmetric(pads: Sequence[int], auto_pad: str) -> tuple[int, int]:
    if auto_pad not in {"NOTSET", "VALID"} or list(pads[:2]) != list(pads[2:]):
        raise NotImplementedError(f"padding {list(pads)} {auto_pad}")
    return pads[0], pads[1]


@operation("Conv")
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Any = None,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    if auto_pad == "NOTSET" and list(pads[:2]) != list(pads[2:]):
        x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2])), (0, 0, 0, 0)
    return F.conv2d(
        x, weight, bias, tuple(strides), _symmetric(pads, auto_pad), tuple(dilations), group
    )


@operation("Gemm")
def _gemm(
    x: Tensor,
    y: Tensor,
    z: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    if transA or alpha != 1 or beta != 1:
        raise NotImplementedError("Gemm with factors")
    return F.linear(x, y if transB else y.T, z)


@operation("BatchNormalization")
def _onnx_batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    if training_mode:
        raise NotImplementedError("BatchNormalization in training mode")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.1, epsilon)


@operation("LayerNormalization")
def _onnx_layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    return F.layer_norm(
        x, x.shape[axis:] if axis < 0 else x.shape[axis - x.ndim :], scale, bias, epsilon
    )


@operation("MaxPool")
def _onnx_max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> Tensor:
    padding = _symmetric(pads, auto_pad)
    return F.max_pool2d(
        x, tuple(kernel_shape), tuple(strides), padding, tuple(dilations), bool(ceil_mode)
    )


@operation("AveragePool")
def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (1, 1),
) -> Tensor:
    padding = _symmetric(pads, auto_pad)
    return F.avg_pool2d(
        x, tuple(kernel_shape), tuple(strides), padding, bool(ceil_mode), bool(count_include_pad)
    )


@operation("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    if axis != 1:
        raise NotImplementedError(f"Flatten from axis {axis}")
    return x.flatten(1)


@operation("Reshape")
def _onnx_reshape(x: Tensor, shape: Sequence[int], *, allowzero: int = 0) -> Tensor:
    wanted: list[Any] = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    if wanted[0] not in (-1,) and -1 not in wanted[1:] and shape[0] != 0:
        raise NotImplementedError("Reshape to a fixed batch")
    return x.reshape(wanted)


@operation("Squeeze")
def _onnx_squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    if axes is None:
        raise NotImplementedError("Squeeze of every axis")
    return x.squeeze(tuple(axes))


@operation("Unsqueeze")
def _onnx_unsqueeze(x: Any, axes: Sequence[int]) -> Any:
    if not isinstance(x, Tensor):
        return [x]
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


@operation("ReduceMean")
def _reduce_mean(
    x: Tensor,
    axes: Sequence[int] | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    if axes is None:
        raise NotImplementedError("ReduceMean over every axis")
    return x.mean(dim=tuple(axes), keepdim=bool(keepdims))


@operation("ReduceSum")
def _reduce_sum(
    x: Tensor,
    axes: Sequence[int] | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    if axes is None:
        raise NotImplementedError("ReduceSum over every axis")
    return x.sum(dim=tuple(axes), keepdim=bool(keepdims))


@operation("Clip")
def _clip(x: Tensor, low: Any = None, high: Any = None, **limits: float) -> Tensor:
    return x.clamp(
        limits.get("min") if low is None else low, limits.get("max") if high is None else high
    )


@operation("Shape")
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> list[Any]:
    return list(x.shape[start:end])


@operation("Concat")
def _concat(*parts: Any, axis: int) -> Any:
    if isinstance(parts[0], list):
        return [size for part in parts for size in part]
    return torch.cat(parts, axis)


@operation("Cast")
def _cast(x: Any, *, to: int) -> Any:
    if isinstance(x, Tensor) and to != 1:
        raise NotImplementedError(f"Cast to type {to}")
    return x


@operation("Gather")
def _gather(x: Any, index: Any, *, axis: int = 0) -> Any:
    if isinstance(index, int):
        return x[index] if isinstance(x, list) else x.select(axis, index)
    if isinstance(x, list) and isinstance(index, list):
        return [x[i] for i in index]
    raise NotImplementedError("Gather of several places")


@operation("Slice")
def _onnx_slice(
    x: Any,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int] | None = None,
) -> Any:
    if any(step != 1 for step in steps or ()):
        raise NotImplementedError("Slice with steps")
    if isinstance(x, list):
        return x[starts[0] : ends[0]]
    for start, end, axis in zip(starts, ends, axes, strict=True):
        size = x.shape[axis]
        first, last = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))
        x = x.narrow(axis, first, last - first)
    return x


@operation("Split")
def _onnx_split(x: Tensor, sizes: Sequence[int], *, axis: int = 0) -> Sequence[Tensor]:
    return x.split(list(sizes), axis)


class OnnxGraph(nn.Module):
    """An ONNX graph of one input and one output in PyTorch operations; its weights are buffers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        from onnx import helper, numpy_helper

        self._input, self._output = model.graph.input[0].name, model.graph.output[0].name
        self._places: dict[str, str] = {}
        self._constants: dict[str, Any] = {}
        self._steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Constant":
                values[node.output[0]] = numpy_helper.to_array(attributes["value"])
                continue
            for name, value in attributes.items():
                attributes[name] = value.decode() if isinstance(value, bytes) else value
            self._steps.append((node.op_type, list(node.input), list(node.output), attributes))
        for name, array in values.items():
            place = f"constant_{len(self._places)}"
            self._places[name] = place
            self._constants[name] = array.tolist()
            self.register_buffer(place, torch.from_numpy(np.array(array)), persistent=True)

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {self._input: x}
        for kind, inputs, outputs, attributes in self._steps:
            of_shapes = any(
                name in values and not isinstance(values[name], Tensor) for name in inputs
            )
            listed = (
                range(len(inputs))
                if of_shapes and kind in {"Concat", "Gather"}
                else SHAPES.get(kind, ())
            )
            arguments = [
                self._argument(name, values, place in listed) for place, name in enumerate(inputs)
            ]
            result = OPERATIONS[kind](*arguments, **attributes)
            if len(outputs) == 1:
                values[outputs[0]] = result
            else:
                values.update(zip(outputs, result, strict=True))
        found: Tensor = values[self._output]
        return found

    def _argument(self, name: str, values: dict[str, Any], listed: bool) -> Any:
        if not name:
            return None
        if name in values:
            if listed and isinstance(values[name], Tensor):
                raise NotImplementedError("a shape computed from values")
            return values[name]
        return self._constants[name] if listed else getattr(self, self._places[name])
