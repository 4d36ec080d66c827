"""The self-test of a compiled library of kernels: every operator must compute a small example.

`kernels.c` calls ONNX Runtime's functions by their position in its table of functions. If this ONNX
Runtime has another table, a call may compute nonsense or crash the process. So a library is only
used after its self-test, which first runs in a separate process:

    python -m good_rt.engines.cpu.self_test LIBRARY

ends with exit code 1 and an error that names the operator if one fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from good_rt.engines.cpu.fusing import DOMAIN
from good_rt.engines.cpu.winograd import LANES, quiet_options, transformed
from good_rt.errors import GoodRtError, first_line

KERNEL_TOLERANCE = 1e-4
GROUPS, EPS = 2, 1e-5
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """An operator's inputs and attributes, and its expected first output, in double precision."""

    inputs: Mapping[str, Array]
    expected: Array
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1


def examples() -> dict[str, Example]:
    """A small example of every operator, by its name."""
    rng = np.random.default_rng(0)
    x, cotangent = (rng.standard_normal((2, 4, 3, 5)) for _ in range(2))
    gamma, beta = rng.standard_normal(4), rng.standard_normal(4)
    norm = {"groups": GROUPS, "silu": 1}
    y, mean, rstd, gradient = _group_norm(x, gamma, beta, cotangent)
    parts = {f"part {index}": rng.standard_normal((2, 4, 3, 5)) for index in range(4)}
    read = {"x": x, "gamma": gamma, "beta": beta}
    convolved = _convolution_example(rng)
    return {
        "GroupNorm": Example(read, y, {**norm, "axes": 4, "eps": EPS}, outputs=3),
        "GroupNormGradient": Example(
            {**read, "mean": mean, "rstd": rstd, "cotangent": cotangent}, gradient, norm
        ),
        "ReluGradient": Example({"cotangent": cotangent, "y": x}, cotangent * (x > 0)),
        "Interleave": Example(parts, _interleaved(list(parts.values()))),
        **convolved,
    }


def _group_norm(
    x: Array, gamma: Array, beta: Array, cotangent: Array
) -> tuple[Array, Array, Array, Array]:
    """SiLU of a group norm, its groups' mean and 1/√(σ² + ε), and its gradient."""
    grouped = x.reshape(len(x), GROUPS, -1, 1)
    mean = grouped.mean(2, keepdims=True)
    centred = grouped - mean
    rstd = 1 / np.sqrt((centred**2).mean(2, keepdims=True) + EPS)
    scale, shift = gamma[:, None, None], beta[:, None, None]
    y = (centred * rstd).reshape(x.shape) * scale + shift
    sigmoid = 1 / (1 + np.exp(-y))
    slope = sigmoid * (1 + y - y * sigmoid)
    pulled = (cotangent * slope * scale).reshape(grouped.shape) * rstd
    tilt = (pulled * centred).mean(2, keepdims=True) * rstd**2
    gradient = pulled - pulled.mean(2, keepdims=True) - tilt * centred
    return y * sigmoid, mean, rstd, gradient.reshape(x.shape)


def _interleaved(parts: list[Array]) -> Array:
    samples, channels, height, width = parts[0].shape
    whole = np.stack(parts).reshape(2, 2, samples, channels, height, width)
    return whole.transpose(2, 3, 4, 0, 5, 1).reshape(samples, channels, 2 * height, 2 * width)


def _convolution_example(rng: np.random.Generator) -> dict[str, Example]:
    """A 3x3 convolution of one block of channels, which lie last in memory."""
    size = 5
    image = rng.standard_normal((LANES, size, size))
    kernel, bias = rng.standard_normal((LANES, LANES, 3, 3)), rng.standard_normal(LANES)
    added = rng.standard_normal((LANES, size, size))
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    convolved = np.einsum("chwab,kcab->khw", windows, kernel) + bias[:, None, None]

    def in_blocks(planes: Array) -> Array:
        return planes.transpose(1, 2, 0).reshape(1, LANES, size, size)

    blocked = kernel.transpose(2, 3, 1, 0).reshape(LANES, LANES, 3, 3)
    read = {"x": in_blocks(image), "weights": transformed(blocked), "bias": bias}
    rectified = np.maximum(convolved + added, 0)
    return {
        "Convolution": Example(read, in_blocks(convolved), {"relu": 0}),
        "ConvolutionAdd": Example(
            {**read, "added": in_blocks(added)}, in_blocks(rectified), {"relu": 1}
        ),
    }


def check_library(library: Path, makers: Callable[[], dict[str, Example]] = examples) -> None:
    """Runs every operator of the library on an example.

    Raises:
        GoodRtError: one of them computes something else, or ONNX Runtime does not take it.
    """
    for kind, example in makers().items():
        try:
            output = _run(library, kind, example)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            why = first_line(error)
            raise GoodRtError(f"operator {kind} does not run ({why})") from error
        difference = float(np.abs(output - example.expected).max())
        if not difference <= KERNEL_TOLERANCE * float(np.abs(example.expected).max()):
            raise GoodRtError(f"operator {kind} is off by {difference:.1e}")


def _run(library: Path, kind: str, example: Example) -> NDArray[np.float32]:
    import onnxruntime as ort

    names = [f"{kind} {index}" for index in range(example.outputs)]
    node = helper.make_node(kind, list(example.inputs), names, domain=DOMAIN, **example.attributes)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in example.inputs.items()
    ]
    output = helper.make_tensor_value_info(names[0], TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_graph([node], "self-test", values, [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), quiet_options(library), providers=["CPUExecutionProvider"]
    )
    feeds = {name: array.astype(np.float32) for name, array in example.inputs.items()}
    (first,) = session.run(names[:1], feeds)
    return first


if __name__ == "__main__":
    try:
        check_library(Path(sys.argv[1]))
    except Exception as problem:  # onnxruntime's exceptions share no base class of their own
        sys.exit(f"error: {' '.join(str(problem).split())}")
