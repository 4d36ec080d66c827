"""A VJP graph in two: the forward half keeps what the backward half needs, so that no forward pass is done twice.

The cotangent of a guided step is only known once the output is: with `good_rt.export.vjp`'s graph alone, the step would
run the network, then the network again with its gradient. The two halves are cut out of that graph, not traced anew.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.utils import Extractor

from good_rt.errors import GoodRtError
from good_rt.export.vjp import GRADIENT


def split_vjp(joint: Path, forward: Path, backward: Path) -> None:
    """Writes (*inputs) -> (*outputs, *residuals) and (*cotangents, *residuals) -> gradient from a joint VJP graph.

    A residual is whatever the backward half reads of the forward one: activations, inputs, shapes. Raises GoodRtError
    when the graph's tensors have no types to cut at.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(joint), strict_mode=False)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    cotangents = [value.name for value in graph.input if value.name.startswith("cotangent")]
    inputs = [value.name for value in graph.input if value.name not in cotangents]
    outputs = [value.name for value in graph.output if value.name != GRADIENT]
    for node in graph.node:  # the batch size is read off the cotangent, and is the inputs' as well
        if node.op_type == "Shape" and node.input[0] in cotangents and _only_first_axis(node):
            node.input[0] = inputs[0]
    later = set(cotangents)  # what the cotangents act on
    residuals: dict[str, None] = {}
    for node in graph.node:
        if later.intersection(node.input):
            later.update(node.output)
            residuals |= dict.fromkeys(name for name in node.input if name and name not in later | constants)
        elif constants.issuperset(filter(None, node.input)):
            constants.update(node.output)
    if GRADIENT not in later:
        raise GoodRtError(f"{joint.name} cannot be split: its gradient does not depend on the cotangent")
    # an input or output that the backward half reads is handed on under its own name
    kept = [name for name in residuals if name not in inputs]
    extractor = Extractor(model)
    try:
        first = extractor.extract_model(inputs, [*outputs, *(name for name in kept if name not in outputs)])
        second = extractor.extract_model([*cotangents, *residuals], [GRADIENT])
    except Exception as error:  # onnx raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GoodRtError(f"{joint.name} cannot be split ({reason})") from None
    onnx.save(first, forward)
    onnx.save(second, backward)


def _only_first_axis(shape: onnx.NodeProto) -> bool:
    ends = {attribute.name: attribute.i for attribute in shape.attribute}
    return ends.get("start", 0) == 0 and ends.get("end") == 1
