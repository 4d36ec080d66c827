"""How far a graph in half precision is from float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from good_rt.export.precision import HALF, to_half


def as_computed(model: ModelProto, precision: str) -> ModelProto:
    """The graph from `to_half` with every half-precision operation computed in float32 and its
    result rounded.

    That is what a GPU's matrix units do. ONNX Runtime on a CPU lacks most half-precision kernels,
    and leaves out the rounding between operations that it computes in float32 instead, so it would
    report too small an error.

    Args:
        model: The graph from `to_half`.
        precision: Its precision, "fp16" or "bf16".
    """
    kind, _ = HALF[precision]
    computed = ModelProto()
    computed.CopyFrom(model)
    graph = computed.graph
    suffix = f"/{precision}"
    nodes = [
        helper.make_node("Cast", [tensor.name], [f"{tensor.name}/up"], to=TensorProto.FLOAT)
        for tensor in graph.initializer
        if tensor.data_type == kind
    ]
    for node in graph.node:
        changed = NodeProto()
        changed.CopyFrom(node)
        if (
            node.op_type == "Cast"
            and not node.input[0].endswith(suffix)
            and not node.output[0].endswith(suffix)
        ):
            nodes.append(changed)
            continue
        # back to float32: the value is there already
        if node.op_type == "Cast" and node.input[0].endswith(suffix):
            nodes.append(helper.make_node("Identity", [f"{node.input[0]}/up"], list(node.output)))
            continue
        del changed.input[:], changed.output[:]
        changed.input.extend(f"{name}/up" if name.endswith(suffix) else name for name in node.input)
        changed.output.extend(
            f"{name}/exact" if name.endswith(suffix) else name for name in node.output
        )
        if node.op_type == "Cast":
            changed = helper.make_node("Identity", list(changed.input), list(changed.output))
        nodes.append(changed)
        for name in node.output:
            if name.endswith(suffix):
                nodes.append(helper.make_node("Cast", [f"{name}/exact"], [name], to=kind))
                nodes.append(helper.make_node("Cast", [name], [f"{name}/up"], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    return computed


def rounding_error(
    model: ModelProto, precision: str, inputs: Mapping[str, NDArray[np.generic]]
) -> dict[str, dict[str, float]]:
    """The largest ("max") and the RMS ("rms") difference of half precision from float32 by output,
    relative to the output's RMS.

    ONNX Runtime computes both on the CPU, the half-precision graph as `as_computed`.

    Args:
        model: The graph in float32.
        precision: "fp16" or "bf16".
        inputs: Inputs by name.
    """
    exact = _run(model, inputs)
    rounded = _run(as_computed(to_half(model, precision), precision), inputs)
    errors = {}
    for name, reference in exact.items():
        spread = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64)))) or 1.0
        difference = np.abs(rounded[name].astype(np.float64) - reference)
        errors[name] = {
            "max": float(difference.max()) / spread,
            "rms": float(np.sqrt(np.mean(difference**2))) / spread,
        }
    return errors


def _run(
    model: ModelProto, inputs: Mapping[str, NDArray[np.generic]]
) -> dict[str, NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # optimisations would take casts out
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [node.name for node in session.get_outputs() if node.type == "tensor(float)"]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
