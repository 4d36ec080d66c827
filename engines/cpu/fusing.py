"""Replaces groups of ONNX operators by single, faster operators before ONNX Runtime gets a graph.

- Group norm, with or without a SiLU, its gradient, and the gradient of ReLU become operators of
  `kernels.c`.
- Attention becomes ONNX Runtime's own operator.
- A transposed convolution with stride 2, the gradient of a convolution with stride 2, becomes four
  plain convolutions, whose outputs an operator of `kernels.c` interleaves.

A pattern describes such a group as `good_rt.export` writes it. Whatever matches no pattern stays as
it is. Exported files are not changed; they stay plain ONNX, which every runtime accepts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from good_rt.engines.onnx_file import STANDARD

DOMAIN, RUNTIMES = "good_rt", "com.microsoft"
"""The ONNX domains of our own operators, and of ONNX Runtime's."""
COMMUTATIVE = frozenset({"Add", "Mul"})
CONSTANTS: dict[str, Any] = {
    "value": TensorProto, "value_int": np.int64, "value_ints": np.int64, "value_float": np.float32,
    "value_floats": np.float32,
}  # fmt: skip
"""The attributes of a Constant node that are read, and the type of their elements."""


@dataclass(frozen=True)
class Constant:
    """Matches a constant whose value is one of ``forms``: a tuple of integers, or a number that all
    elements equal."""

    forms: tuple[tuple[int, ...] | float, ...] = ()


@dataclass(frozen=True)
class Op:
    """Matches a node of this kind whose inputs match, and which has ``attribute`` if one is given.

    ``name`` is bound to its output: wherever the name occurs in a pattern, it is the same value.
    """

    kind: str
    inputs: tuple[Pattern, ...]
    name: str = ""
    attribute: tuple[str, Any] | None = None


Pattern = Op | Constant | str
"""What a value is compared with; a name matches any value, the same wherever it occurs."""
Bindings = dict[str, str]
"""Names of a pattern -> names of values in a graph."""

# --- patterns: groups of operators as `good_rt.export` writes them ---


KEEP_DIMS = ("keepdims", 1)
NORM = ("x", "gamma", "beta")
"""The inputs of a norm."""


def _mean_at_once(of: Pattern, name: str = "") -> Op:
    return Op("ReduceMean", (of, Constant(((2, 3),))), name, KEEP_DIMS)


def _mean_by_rows(of: Pattern, name: str = "") -> Op:
    """The mean of a group so large that it is summed row by row, as
    `good_rt.export.group_norm.group_mean` does."""
    columns = Op("ReduceMean", (of, Constant(((-1,), (4,)))), "", KEEP_DIMS)
    rows = Op("ReduceMean", (columns, Constant(((-2,), (3,)))), "", KEEP_DIMS)
    return Op("ReduceMean", (rows, Constant(((2,),))), name, KEEP_DIMS)


def _silu(x: Op) -> Op:
    return Op("Mul", (x, Op("Sigmoid", (x,))))


def _norm(mean_of: Callable[..., Op]) -> Op:
    """`good_rt.export.group_norm.normalised`."""
    grouped = Op("Reshape", ("x", "shape"), "grouped")
    mean = mean_of(grouped, "mean")
    centred = Op("Sub", (grouped, mean), "centred")
    variance = mean_of(Op("Mul", (centred, centred)))
    rstd = Op("Reciprocal", (Op("Sqrt", (Op("Add", (variance, "eps")),)),), "rstd")
    scaled = Op("Mul", (centred, Op("Mul", (rstd, "gamma"))))
    return Op("Reshape", (Op("Add", (scaled, "beta")), "back"), "y")


def _gradient(mean_of: Callable[..., Op], silu: bool) -> Op:
    """`good_rt.export.vjp.rules` on group norm, and on a SiLU after it."""
    centred = Op("Sub", (Op("Reshape", ("x", "shape"), "grouped"), "mean"), "centred")
    factor = Op("Mul", ("rstd", "gamma"), "factor")
    y = Op("Reshape", (Op("Add", (Op("Mul", (centred, factor)), "beta")), "to"), "y")
    sigmoid = Op("Sigmoid", (y,), "sigmoid")
    bend = Op("Add", (Op("Sub", (y, Op("Mul", (y, sigmoid)))), Constant((1.0,))))
    cotangent = Op("Mul", ("cotangent", Op("Mul", (sigmoid, bend)))) if silu else "cotangent"
    scaled = Op("Mul", (Op("Reshape", (cotangent, "grouping")), factor), "scaled")
    product = mean_of(Op("Mul", (scaled, centred)))
    tilt = Op("Mul", (centred, Op("Mul", (Op("Mul", (product, "rstd")), "rstd"))))
    return Op("Reshape", (Op("Sub", (scaled, Op("Add", (tilt, mean_of(scaled))))), "back"), "dx")


def _instance_norm() -> Op:
    """`good_rt.export.group_norm.group_norm` as PyTorch's exporter writes it."""
    grouped = Op("Reshape", ("x", "shape"))
    inner = Op("InstanceNormalization", (grouped, Constant((1.0,)), Constant((0.0,))), "inner")
    return Op("Add", (Op("Mul", (Op("Reshape", (inner, "back")), "gamma")), "beta"), "y")


RELU_GRADIENT = Op("Mul", ("cotangent", Op("Cast", (Op("Greater", ("x", Constant((0.0,)))),))))
"""`good_rt.export.vjp.rules.registry.masked` on a ReLU's output."""


def _interleaved() -> Op:
    """`good_rt.export.vjp.operator_fusion.interleaved`."""

    def side_by_side(left: str, right: str) -> Op:
        parts = tuple(Op("Unsqueeze", (name, Constant(((-1,), (4,))))) for name in (left, right))
        return Op(
            "Reshape", (Op("Concat", parts, "", ("axis", -1)), f"shape of {left}"), f"row of {left}"
        )

    rows = side_by_side("x", "right"), side_by_side("below", "across")
    both = tuple(Op("Unsqueeze", (row, Constant(((3,),)))) for row in rows)
    return Op("Reshape", (Op("Concat", both, "", ("axis", 3)), "back"))


def _attention() -> Op:
    """Attention with heads as PyTorch's exporter writes it, of (N, length, heads x width)."""

    def heads(of: str) -> Op:
        return Op("Transpose", (Op("Reshape", (of, f"shape of {of}")),), "", ("perm", [0, 2, 1, 3]))

    turned = Op("Transpose", (Op("Reshape", (heads("key"), "matrices")),), "", ("perm", [0, 2, 1]))
    keys = Op("Mul", (Op("Reshape", (turned, "turned shape")), "scale"))
    weights = Op(
        "Softmax", (Op("MatMul", (Op("Mul", (heads("query"), "scale")), keys)),), "", ("axis", -1)
    )
    mixed = Op("Transpose", (Op("MatMul", (weights, heads("value"))),), "", ("perm", [0, 2, 1, 3]))
    return Op("Reshape", (mixed, "back"))


# --- matching


class GraphValues:
    """A graph's values by name: the nodes that compute them, constants, how often each is read,
    types and shapes."""

    def __init__(self, graph: GraphProto) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and (kind := CONSTANTS.get(node.attribute[0].name)):
                value = helper.get_attribute_value(node.attribute[0])
                tensor = (
                    value
                    if kind is TensorProto
                    else numpy_helper.from_array(np.asarray(value, kind))
                )
                self.constants[node.output[0]] = tensor
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(value.name for value in graph.output)
        self._types = {
            value.name: value.type.tensor_type
            for value in (*graph.input, *graph.value_info, *graph.output)
        }

    def of(self, name: str) -> tuple[int, tuple[int | str, ...]] | None:
        """The element type and shape of a value; None unless the graph declares both."""
        declared = self._types.get(name)
        if declared is None or not declared.HasField("shape"):
            return None
        shape = tuple(dim.dim_value or dim.dim_param for dim in declared.shape.dim)
        return (declared.elem_type, shape) if all(shape) else None

    def floats(self, name: str) -> tuple[int | str, ...] | None:
        """The shape of a value in single precision; None for other types and unknown shapes."""
        known = self.of(name)
        return known[1] if known is not None and known[0] == TensorProto.FLOAT else None

    def array(self, name: str) -> np.ndarray | None:
        """The elements of a constant; None for other values, and for external data."""
        tensor = self.constants.get(name)
        inside = tensor is not None and tensor.data_location != TensorProto.EXTERNAL
        return numpy_helper.to_array(tensor) if inside else None

    def match(self, value: str, pattern: Pattern, bindings: Bindings) -> Bindings | None:
        """``bindings`` with the pattern's names added; None if the value does not match."""
        if isinstance(pattern, Constant):
            return bindings if any(_is(self.array(value), form) for form in pattern.forms) else None
        name = pattern if isinstance(pattern, str) else pattern.name
        if name in bindings:
            return bindings if bindings[name] == value else None
        inner: Bindings | None = bindings
        if isinstance(pattern, Op):
            node = self.makers.get(value)
            if (
                node is None
                or node.op_type != pattern.kind
                or len(node.input) != len(pattern.inputs)
            ):
                return None
            if node.domain not in STANDARD:
                return None
            if pattern.attribute is not None and pattern.attribute not in attributes(node).items():
                return None
            inner = self._match_inputs(node, pattern.inputs, bindings)
            if inner is None and pattern.kind in COMMUTATIVE:
                inner = self._match_inputs(node, pattern.inputs[::-1], bindings)
        return {**inner, name: value} if inner is not None and name else inner

    def _match_inputs(
        self, node: NodeProto, patterns: tuple[Pattern, ...], bindings: Bindings
    ) -> Bindings | None:
        inner: Bindings | None = bindings
        for value, pattern in zip(node.input, patterns, strict=True):
            inner = self.match(value, pattern, inner) if inner is not None else None
        return inner


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name, without the defaults of those that it does not have."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is(value: np.ndarray | None, form: tuple[int, ...] | float) -> bool:
    if value is None:
        return False
    return (
        np.array_equal(value, form)
        if isinstance(form, tuple)
        else bool(value.size and (value == form).all())
    )


# --- replacements: the nodes that take the place of a match; [] where the kernel does not fit ---


def _of_norm(
    values: GraphValues, bindings: Bindings, output: str, axes: int, silu: bool
) -> list[NodeProto]:
    groups, eps = _groups(values, bindings, axes), values.array(bindings["eps"])
    if (
        groups is None
        or eps is None
        or eps.size != 1
        or (silu and values.readers[bindings["y"]] > 2)
    ):
        return []
    gives, more = (bindings["mean"], bindings["rstd"]), {"axes": axes, "eps": float(eps.item())}
    return _norm_nodes(
        values, bindings, output, "GroupNorm", NORM, gives, groups=groups, silu=silu, **more
    )


def _of_instance_norm(
    values: GraphValues, bindings: Bindings, output: str, silu: bool
) -> list[NodeProto]:
    norm, x, shape = (
        values.makers[bindings["inner"]],
        values.floats(bindings["x"]),
        values.array(bindings["shape"]),
    )
    groups = values.constants[norm.input[1]].dims[0]
    if (
        x is None
        or len(x) < 2
        or values.floats(bindings["y"]) != x
        or (silu and values.readers[bindings["y"]] > 2)
    ):
        return []
    per_channel = (x[1], *[1] * (len(x) - 2))
    if _weights(values, bindings) not in {per_channel, (1, *per_channel)}:
        return []
    if shape is None or shape.size != 3 or shape[0] not in {0, -1} or shape[1] != groups:
        return []
    if shape[0] == -1 and _elements(x[1:]) != (shape[2] * groups, []):
        return []
    gives, more = (
        (f"{output}_mean", f"{output}_rstd"),
        {"axes": 4, "eps": attributes(norm).get("epsilon", 1e-5)},
    )
    return _norm_nodes(
        values, bindings, output, "GroupNorm", NORM, gives, groups=groups, silu=silu, **more
    )


def _of_gradient(
    values: GraphValues, bindings: Bindings, output: str, axes: int, silu: bool
) -> list[NodeProto]:
    groups, cotangent = _groups(values, bindings, axes), values.floats(bindings["cotangent"])
    if (
        groups is None
        or cotangent is None
        or _elements(cotangent) != _elements(values.floats(bindings["x"]) or ())
    ):
        return []
    reads = (*NORM, "mean", "rstd", "cotangent")
    return _norm_nodes(
        values, bindings, output, "GroupNormGradient", reads, (), groups=groups, silu=silu
    )


def _groups(values: GraphValues, bindings: Bindings, axes: int) -> int | None:
    """The number of groups that x is normalised in; None unless everything is in single precision
    and γ and β have one number per channel."""
    x, grouped = values.floats(bindings["x"]), values.floats(bindings["grouped"])
    if x is None or grouped is None or len(grouped) != axes or grouped[0] != x[0]:
        return None
    per_channel = (1, *grouped[1:3], *[1] * (axes - 3))
    if _weights(values, bindings) != per_channel or int(grouped[1]) * int(grouped[2]) != x[1]:
        return None
    return int(grouped[1])


def _elements(shape: tuple[int | str, ...]) -> tuple[int, list[str]]:
    """The number of elements: the product of the known sizes, and the names of the others."""
    return math.prod(size for size in shape if isinstance(size, int)), sorted(
        n for n in shape if isinstance(n, str)
    )


def _norm_nodes(
    values: GraphValues,
    bindings: Bindings,
    output: str,
    kind: str,
    reads: tuple[str, ...],
    gives: tuple[str, ...],
    silu: bool,
    **attributes: float,
) -> list[NodeProto]:
    """The operator and, if its output must have another shape than x, a Reshape."""
    # the gradient without a SiLU does not depend on β, so its pattern has none
    bindings = {"beta": bindings["gamma"], **bindings}
    shape = values.of(output)
    same = shape is not None and values.of(bindings["x"]) == shape
    first, inputs = output if same else f"{output}_like_x", [bindings[name] for name in reads]
    nodes = [
        helper.make_node(kind, inputs, [first, *gives], domain=DOMAIN, silu=int(silu), **attributes)
    ]
    return (
        nodes
        if same
        else [*nodes, helper.make_node("Reshape", [first, bindings["back"]], [output])]
    )


def _weights(values: GraphValues, bindings: Bindings) -> tuple[int, ...] | None:
    """The shape of γ and β; None unless both are constants in single precision."""
    gamma, beta = (
        values.constants.get(bindings[name])
        for name in ("gamma", "beta" if "beta" in bindings else "gamma")
    )
    if gamma is None or beta is None or gamma.dims != beta.dims:
        return None
    return tuple(gamma.dims) if {gamma.data_type, beta.data_type} == {TensorProto.FLOAT} else None


def _of_attention(values: GraphValues, bindings: Bindings, output: str) -> list[NodeProto]:
    """ONNX Runtime's own operator, which transposes no matrices and stores no attention weights."""
    parts = ("query", "key", "value")
    scale, matrices = values.array(bindings["scale"]), values.array(bindings["matrices"])
    whole, shapes = (
        [values.floats(bindings[name]) for name in parts],
        [values.array(bindings[f"shape of {n}"]) for n in parts],
    )
    # the operator takes a scale of 0 for "use the default"
    if scale is None or scale.size != 1 or scale.item() == 0:
        return []
    heads = set()
    for value, shape in zip(whole, shapes, strict=True):
        if (
            value is None
            or shape is None
            or len(value) != 3
            or shape.size != 4
            or value[0] != (whole[0] or value)[0]
        ):
            return []
        batch, length, number, width = shape.tolist()
        if batch not in {0, -1} or length not in {0, value[1]} or number * width != value[2]:
            return []
        heads.add(number)
    query, key, value = (shape or () for shape in whole)
    fits = (
        len(heads) == 1 and values.floats(output) == (*query[:2], value[2]) and query[2] == key[2]
    )
    if not fits or (
        matrices is not None and matrices.tolist()[-2:] != [key[1], int(key[2]) // min(heads)]
    ):
        return []
    attributes = {"num_heads": heads.pop(), "scale": float(scale.item()) ** 2}
    inputs = [bindings[name] for name in parts]
    return [helper.make_node("MultiHeadAttention", inputs, [output], domain=RUNTIMES, **attributes)]


def _of_relu_gradient(values: GraphValues, bindings: Bindings, output: str) -> list[NodeProto]:
    shape = values.floats(output)
    if shape is None or any(values.floats(bindings[name]) != shape for name in ("cotangent", "x")):
        return []
    return [
        helper.make_node(
            "ReluGradient", [bindings["cotangent"], bindings["x"]], [output], domain=DOMAIN
        )
    ]


def _of_interleaved(values: GraphValues, bindings: Bindings, output: str) -> list[NodeProto]:
    names = ("x", "right", "below", "across")
    shape = values.floats(bindings["x"])
    if (
        shape is None
        or len(shape) != 4
        or any(values.floats(bindings[name]) != shape for name in names)
    ):
        return []
    samples, channels, height, width = shape
    row, whole = (
        (samples, channels, height, 2 * int(width)),
        (samples, channels, 2 * int(height), 2 * int(width)),
    )
    if values.floats(bindings["row of x"]) != row or values.floats(bindings["row of below"]) != row:
        return []
    if values.floats(output) != whole:
        return []
    return [
        helper.make_node("Interleave", [bindings[name] for name in names], [output], domain=DOMAIN)
    ]


def _of_strided_gradient(values: GraphValues, bindings: Bindings, output: str) -> list[NodeProto]:
    """Four plain convolutions, one for each position in a block of 2x2 outputs, each with the
    kernel's taps that reach that position; an Interleave puts their outputs together."""
    given = attributes(values.makers[output])
    weight, shape, target = (
        values.array(bindings["weight"]),
        values.floats(bindings["x"]),
        values.floats(output),
    )
    if (
        weight is None
        or weight.dtype != np.float32
        or weight.ndim != 4
        or shape is None
        or len(shape) != 4
    ):
        return []
    plain = given.get("group", 1) == 1 and not any(step != 1 for step in given.get("dilations", ()))
    explicit = given.get("auto_pad", b"NOTSET") == b"NOTSET" and "output_shape" not in given
    if not plain or not explicit or given.get("strides") != [2, 2]:
        return []
    if any(isinstance(size, str) for size in shape[1:]) or target != (
        shape[0], weight.shape[1], *(2 * int(size) for size in shape[2:])
    ):  # fmt: skip
        return []
    before = given.get("pads", [0] * 4)[:2]
    axes = [_taps(size, pad) for size, pad in zip(weight.shape[2:], before, strict=True)]
    nodes = list[NodeProto]()
    for position, (rows, columns) in enumerate(product(*axes)):
        if rows is None or columns is None:
            return []
        kernel = weight[:, :, rows.taps][:, :, :, columns.taps].swapaxes(0, 1)
        names = [f"{output} {part} {position}" for part in ("kernel", "position")]
        constant = numpy_helper.from_array(np.ascontiguousarray(kernel), names[0])
        pads = [rows.before, columns.before, rows.after, columns.after]
        nodes.append(helper.make_node("Constant", [], names[:1], value=constant))
        nodes.append(helper.make_node("Conv", [bindings["x"], names[0]], names[1:], pads=pads))
    parts = [node.output[0] for node in nodes if node.op_type == "Conv"]
    return [*nodes, helper.make_node("Interleave", parts, [output], domain=DOMAIN)]


class _Taps(NamedTuple):
    """Along one axis, the kernel's taps that reach even outputs, or those that reach odd ones, and
    how many inputs before and after its own such an output needs."""

    taps: list[int]
    before: int
    after: int


def _taps(size: int, pad: int) -> list[_Taps | None]:
    """The taps of even and of odd outputs of a transposed convolution with stride 2.

    Output 2m + parity takes inputs m + (parity + pad - tap) / 2. None where these inputs do not
    include m itself.
    """
    by_parity = list[_Taps | None]()
    for parity in (0, 1):
        taps = [tap for tap in reversed(range(size)) if (parity + pad - tap) % 2 == 0]
        reach = [(parity + pad - tap) // 2 for tap in taps]
        by_parity.append(
            _Taps(taps, -reach[0], reach[-1]) if reach and reach[0] <= 0 <= reach[-1] else None
        )
    return by_parity


Make = Callable[[GraphValues, Bindings, str], list[NodeProto]]
MEANS = {4: _mean_at_once, 5: _mean_by_rows}
"""The pattern of a group's mean, by the number of axes of the grouped values."""
FUSIONS: tuple[tuple[Op, Make], ...] = (
    *(
        (_gradient(mean, True), partial(_of_gradient, axes=axes, silu=True))
        for axes, mean in MEANS.items()
    ),
    *(
        (_gradient(mean, False), partial(_of_gradient, axes=axes, silu=False))
        for axes, mean in MEANS.items()
    ),
    *(
        (_silu(_norm(mean)), partial(_of_norm, axes=axes, silu=True))
        for axes, mean in MEANS.items()
    ),
    *((_norm(mean), partial(_of_norm, axes=axes, silu=False)) for axes, mean in MEANS.items()),
    (_silu(_instance_norm()), partial(_of_instance_norm, silu=True)),
    (_instance_norm(), partial(_of_instance_norm, silu=False)),
    (_attention(), _of_attention),
    (RELU_GRADIENT, _of_relu_gradient),
    (_interleaved(), _of_interleaved),
    (Op("ConvTranspose", ("x", "weight")), _of_strided_gradient),
)
"""Patterns and what replaces a match, in the order in which they are tried: a pattern that is part
of another comes after it."""


def has_inner_graphs(graph: GraphProto) -> bool:
    """Whether a node has a graph of its own, which may read any value by its name."""
    return any(
        attribute.HasField("g") or attribute.graphs
        for node in graph.node
        for attribute in node.attribute
    )


def fuse(model: ModelProto) -> int:
    """Replaces groups of nodes by operators of `kernels.c` and ONNX Runtime, in place.

    Args:
        model: A graph without inner graphs.

    Returns:
        The number of groups that were replaced.
    """
    graph, count = model.graph, 0
    for pattern, make in FUSIONS:
        values = GraphValues(graph)
        new, taken = list[list[NodeProto]](), set[str]()
        for node in graph.node:
            if node.op_type != pattern.kind:
                continue
            bindings = values.match(node.output[0], pattern, {})
            nodes = make(values, bindings, node.output[0]) if bindings is not None else []
            if not nodes:
                continue
            # two norms of one x share mean and 1 / std; only the first node may output them by
            # their names
            kernel = nodes[0]
            kernel.output[1:] = [
                f"{node.output[0]} {name}" if name in taken else name for name in kernel.output[1:]
            ]
            taken.update(kernel.output)
            new.append(nodes)
        if new:
            _replace(graph, new)
            count += len(new)
    if count:
        drop_unread(graph)
    known = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(
        helper.make_opsetid(name, 1) for name in (DOMAIN, RUNTIMES) if name not in known
    )
    return count


def _replace(graph: GraphProto, new: list[list[NodeProto]]) -> None:
    """Puts each group of new nodes where the node was whose output its last node has.

    The first node of a norm moves further up, to where its mean or 1 / std was computed, since
    other nodes may read them from there on.
    """
    of = {name: group for group in new for node in group for name in node.output}
    # constants come first, because new nodes may read them earlier than the old ones did
    nodes = [node for node in graph.node if node.op_type == "Constant"]
    placed = set[int]()
    for node in graph.node:
        group = of.get(node.output[0])
        if group is None and node.op_type != "Constant":
            nodes.append(node)
        elif group is not None:
            for replacement in group if node.output[0] in group[-1].output else group[:1]:
                if id(replacement) not in placed:
                    nodes.append(replacement)
                    placed.add(id(replacement))
    put_nodes(graph, nodes)


def drop_unread(graph: GraphProto) -> None:
    """Removes the weights that no node reads any more, in place."""
    read = {name for node in graph.node for name in node.input}
    read.update(value.name for value in (*graph.input, *graph.output))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def put_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Replaces the graph's nodes, in place, and leaves out those whose outputs nothing reads."""
    needed, kept = {value.name for value in graph.output}, list[NodeProto]()
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
    # copies, since deleting the graph's list deletes its nodes
    copies = [NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(copies)
