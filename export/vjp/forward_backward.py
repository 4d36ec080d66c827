"""A VJP graph in two: the forward half keeps what the backward half needs, so that no forward pass
is done twice.

The cotangent of a guided step is only known once the output is: with `good_rt.export.vjp`'s graph
alone, the step would run the network, then the network again with its gradient. The two halves are
cut out of that graph, not traced anew.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.utils import Extractor

from good_rt.errors import GoodRtError, first_line
from good_rt.export.vjp import GRADIENT

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Sigmoid", "Reshape"})
"""What the backward half computes again from a norm's input."""


def split_vjp(joint: Path, forward: Path, backward: Path) -> None:
    """Writes (*inputs) -> (*outputs, *residuals) and (*cotangents, *residuals) -> gradient from a
    joint VJP graph.

    A residual is whatever the backward half reads of the forward one: activations and inputs. Of a
    transposed matrix it is the matrix, since products take one as it is, and the forward half may
    hand it on already. Of a norm, and of what is computed element by element from it, it is the
    norm's input, mean and 1 / std: to write and read the rest takes longer than to compute it
    again, in a kernel or on a GPU. Shapes are none: each half computes its own from its batch size,
    since TensorRT would want their values when it builds a plan. Weights that lie in a file of
    their own stay there, and both halves read it. Raises GoodRtError when the graph's tensors have
    no types to cut at.
    """
    model = onnx.shape_inference.infer_shapes(
        onnx.load(joint, load_external_data=False), strict_mode=False
    )
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    cotangents = [value.name for value in graph.input if value.name.startswith("cotangent")]
    inputs = [value.name for value in graph.input if value.name not in cotangents]
    outputs = [value.name for value in graph.output if value.name != GRADIENT]
    # what depends on the cotangents, and what depends only on the batch size
    later, sizes = set(cotangents), set[str]()
    batch_sizes = [node for node in graph.node if _is_batch_size(node, [*cotangents, *inputs])]
    residuals: dict[str, None] = {}
    matrices = {node.output[0]: node.input[0] for node in graph.node if _transposes_matrices(node)}
    norms = _norms(graph)
    again: dict[str, dict[str, None]] = {name: {name: None} for name in norms}
    for node in graph.node:
        read = set(filter(None, node.input))
        if constants.issuperset(read):
            constants.update(node.output)
        elif node in batch_sizes or (constants | sizes).issuperset(read):
            sizes.update(node.output)
        elif later.intersection(read):
            later.update(node.output)
            found = [name for name in node.input if name and name not in later | constants | sizes]
            for name in found:
                residuals |= again.get(name, {matrices.get(name, name): None})
        elif node.op_type in ELEMENTWISE and node.output[0] not in norms:
            whence = [
                again.get(name) for name in node.input if name and name not in constants | sizes
            ]
            if None not in whence:
                again[node.output[0]] = {name: None for names in whence if names for name in names}
    if GRADIENT not in later:
        raise GoodRtError(
            f"{joint.name} cannot be split: its gradient does not depend on the cotangent"
        )
    # an input or output that the backward half reads is handed on under its own name
    kept = [name for name in residuals if name not in inputs]
    try:
        _root(batch_sizes, inputs[0])
        first = Extractor(model).extract_model(
            inputs, [*outputs, *(name for name in kept if name not in outputs)]
        )
        _root(batch_sizes, cotangents[0])
        second = Extractor(model).extract_model([*cotangents, *residuals], [GRADIENT])
    except Exception as error:  # onnx raises many kinds
        raise GoodRtError(f"{joint.name} cannot be split ({first_line(error)})") from None
    onnx.save(first, forward)
    onnx.save(second, backward)


def _norms(graph: onnx.GraphProto) -> set[str]:
    """The inputs of group norms, their means and 1 / std, as
    `good_rt.export.group_norm.normalised` has them."""
    made = {name: node for node in graph.node for name in node.output}
    found = set[str]()
    for node in graph.node:
        if node.op_type == "Sub" and node.input[1] in made:
            mean = node.input[1]
            above = mean
            while above in made and made[above].op_type == "ReduceMean":
                above = made[above].input[0]
            if (
                above == node.input[0] != mean
                and above in made
                and made[above].op_type == "Reshape"
            ):
                found |= {made[above].input[0], mean}
        elif (
            node.op_type == "Reciprocal"
            and node.input[0] in made
            and made[node.input[0]].op_type == "Sqrt"
        ):
            found.add(node.output[0])
    return found


def _is_batch_size(node: onnx.NodeProto, inputs: list[str]) -> bool:
    """Whether the node gives the first axis' length of an input, which is the same for all of
    them."""
    ends = {attribute.name: attribute.i for attribute in node.attribute}
    return (
        node.op_type == "Shape"
        and node.input[0] in inputs
        and ends.get("start", 0) == 0
        and ends.get("end") == 1
    )


def _transposes_matrices(node: onnx.NodeProto) -> bool:
    """Whether the node swaps the last two of its axes, and no others."""
    axes = next(
        (list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), []
    )
    return node.op_type == "Transpose" and axes == [
        *range(len(axes) - 2),
        len(axes) - 1,
        len(axes) - 2,
    ]


def _root(batch_sizes: list[onnx.NodeProto], name: str) -> None:
    """Has the batch size read off that input."""
    for node in batch_sizes:
        node.input[0] = name
