"""What takes many operators, as one: group norms with SiLUs, their gradients, and the others of
`kernels.c`; attention. And a transposed convolution, the gradient of one with stride 2, as four
plain ones.

The graphs in files are plain ONNX, which every runtime takes. What is found in one of them here, as
`good_rt.export` writes it, is replaced before ONNX Runtime gets it; what is not found stays as it
is.
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
"""The names of our own set of operators, and of ONNX Runtime's."""
COMMUTATIVE = frozenset({"Add", "Mul"})
CONSTANTS: dict[str, Any] = {
    "value": TensorProto, "value_int": np.int64, "value_ints": np.int64, "value_float": np.float32,
    "value_floats": np.float32,
}  # fmt: skip
"""The forms of a Constant node that are read, and of what type its elements are."""


@dataclass(frozen=True)
class Constant:
    """A constant of one of these values: a list of integers, or one number that all of its elements
    are."""

    forms: tuple[tuple[int, ...] | float, ...] = ()


@dataclass(frozen=True)
class Op:
    """A node of that kind, with inputs that fit, and with the attribute's value where one is given.

    ``name`` stands for its output, the same wherever it occurs.
    """

    kind: str
    inputs: tuple[Pattern, ...]
    name: str = ""
    attribute: tuple[str, Any] | None = None


Pattern = Op | Constant | str
"""What a value is compared with; a name stands for any value, the same wherever it occurs."""
Found = dict[str, str]
"""The names of a pattern -> those of values in a graph."""

# --- what is looked for: group norm as `good_rt.export` writes it ---


KEEP_DIMS = ("keepdims", 1)
NORM = ("x", "gamma", "beta")
"""What a norm reads."""


def _mean_at_once(of: Pattern, name: str = "") -> Op:
    return Op("ReduceMean", (of, Constant(((2, 3),))), name, KEEP_DIMS)


def _mean_by_rows(of: Pattern, name: str = "") -> Op:
    """Of a group so large that its sum is taken row by row; see `group_mean` of
    `good_rt.export.group_norm`."""
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
"""`good_rt.export.vjp.rules.masked` on a ReLU's output."""


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
    found = Op("Transpose", (Op("MatMul", (weights, heads("value"))),), "", ("perm", [0, 2, 1, 3]))
    return Op("Reshape", (found, "back"))


# --- matching


class GraphValues:
    """What a graph's names stand for: the nodes that make them, constants, and how often each is
    read."""

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
        """The type of a value's elements and its shape, where the graph tells all of it."""
        found = self._types.get(name)
        if found is None or not found.HasField("shape"):
            return None
        shape = tuple(dim.dim_value or dim.dim_param for dim in found.shape.dim)
        return (found.elem_type, shape) if all(shape) else None

    def floats(self, name: str) -> tuple[int | str, ...] | None:
        """The shape of a value in single precision."""
        found = self.of(name)
        return found[1] if found is not None and found[0] == TensorProto.FLOAT else None

    def array(self, name: str) -> np.ndarray | None:
        """The values of a constant that lies in the graph's own file."""
        tensor = self.constants.get(name)
        inside = tensor is not None and tensor.data_location != TensorProto.EXTERNAL
        return numpy_helper.to_array(tensor) if inside else None

    def match(self, value: str, pattern: Pattern, found: Found) -> Found | None:
        """``found`` and the names of the pattern, or None where the value does not fit."""
        if isinstance(pattern, Constant):
            return found if any(_is(self.array(value), form) for form in pattern.forms) else None
        name = pattern if isinstance(pattern, str) else pattern.name
        if name in found:
            return found if found[name] == value else None
        inner: Found | None = found
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
            inner = self._match_inputs(node, pattern.inputs, found)
            if inner is None and pattern.kind in COMMUTATIVE:
                inner = self._match_inputs(node, pattern.inputs[::-1], found)
        return {**inner, name: value} if inner is not None and name else inner

    def _match_inputs(
        self, node: NodeProto, patterns: tuple[Pattern, ...], found: Found
    ) -> Found | None:
        inner: Found | None = found
        for value, pattern in zip(node.input, patterns, strict=True):
            inner = self.match(value, pattern, inner) if inner is not None else None
        return inner


def attributes(node: NodeProto) -> dict[str, Any]:
    """Those that a node gives, by their names."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is(value: np.ndarray | None, form: tuple[int, ...] | float) -> bool:
    if value is None:
        return False
    return (
        np.array_equal(value, form)
        if isinstance(form, tuple)
        else bool(value.size and (value == form).all())
    )


# --- what is put in its place ---


def _of_norm(
    values: GraphValues, found: Found, output: str, axes: int, silu: bool
) -> list[NodeProto]:
    groups, eps = _groups(values, found, axes), values.array(found["eps"])
    if groups is None or eps is None or eps.size != 1 or (silu and values.readers[found["y"]] > 2):
        return []
    gives, more = (found["mean"], found["rstd"]), {"axes": axes, "eps": float(eps.item())}
    return _norm_nodes(
        values, found, output, "GroupNorm", NORM, gives, groups=groups, silu=silu, **more
    )


def _of_instance_norm(
    values: GraphValues, found: Found, output: str, silu: bool
) -> list[NodeProto]:
    norm, x, shape = (
        values.makers[found["inner"]],
        values.floats(found["x"]),
        values.array(found["shape"]),
    )
    groups = values.constants[norm.input[1]].dims[0]
    if (
        x is None
        or len(x) < 2
        or values.floats(found["y"]) != x
        or (silu and values.readers[found["y"]] > 2)
    ):
        return []
    per_channel = (x[1], *[1] * (len(x) - 2))
    if _weights(values, found) not in {per_channel, (1, *per_channel)}:
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
        values, found, output, "GroupNorm", NORM, gives, groups=groups, silu=silu, **more
    )


def _of_gradient(
    values: GraphValues, found: Found, output: str, axes: int, silu: bool
) -> list[NodeProto]:
    groups, cotangent = _groups(values, found, axes), values.floats(found["cotangent"])
    if (
        groups is None
        or cotangent is None
        or _elements(cotangent) != _elements(values.floats(found["x"]) or ())
    ):
        return []
    reads = (*NORM, "mean", "rstd", "cotangent")
    return _norm_nodes(
        values, found, output, "GroupNormGradient", reads, (), groups=groups, silu=silu
    )


def _groups(values: GraphValues, found: Found, axes: int) -> int | None:
    """How many groups x is normalised in, if all is in single precision and γ and β have one number
    a channel."""
    x, grouped = values.floats(found["x"]), values.floats(found["grouped"])
    if x is None or grouped is None or len(grouped) != axes or grouped[0] != x[0]:
        return None
    per_channel = (1, *grouped[1:3], *[1] * (axes - 3))
    if _weights(values, found) != per_channel or int(grouped[1]) * int(grouped[2]) != x[1]:
        return None
    return int(grouped[1])


def _elements(shape: tuple[int | str, ...]) -> tuple[int, list[str]]:
    """How many there are: a number, times those that are only known by name."""
    return math.prod(size for size in shape if isinstance(size, int)), sorted(
        n for n in shape if isinstance(n, str)
    )


def _norm_nodes(
    values: GraphValues,
    found: Found,
    output: str,
    kind: str,
    reads: tuple[str, ...],
    gives: tuple[str, ...],
    silu: bool,
    **attributes: float,
) -> list[NodeProto]:
    """The operator and, where its output had another shape than x, what gives it that."""
    found = {"beta": found["gamma"], **found}  # a gradient without a SiLU does not look at β
    shape = values.of(output)
    same = shape is not None and values.of(found["x"]) == shape
    first, inputs = output if same else f"{output}_like_x", [found[name] for name in reads]
    nodes = [
        helper.make_node(kind, inputs, [first, *gives], domain=DOMAIN, silu=int(silu), **attributes)
    ]
    return (
        nodes if same else [*nodes, helper.make_node("Reshape", [first, found["back"]], [output])]
    )


def _weights(values: GraphValues, found: Found) -> tuple[int, ...] | None:
    """The shape of γ and β if they are constants in single precision."""
    gamma, beta = (
        values.constants.get(found[name])
        for name in ("gamma", "beta" if "beta" in found else "gamma")
    )
    if gamma is None or beta is None or gamma.dims != beta.dims:
        return None
    return tuple(gamma.dims) if {gamma.data_type, beta.data_type} == {TensorProto.FLOAT} else None


def _of_attention(values: GraphValues, found: Found, output: str) -> list[NodeProto]:
    """ONNX Runtime's own operator, which turns no matrices and keeps no weights."""
    parts = ("query", "key", "value")
    scale, matrices = values.array(found["scale"]), values.array(found["matrices"])
    whole, shapes = (
        [values.floats(found[name]) for name in parts],
        [values.array(found[f"shape of {n}"]) for n in parts],
    )
    if (
        scale is None or scale.size != 1 or scale.item() == 0
    ):  # which the operator takes for its default
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
    inputs = [found[name] for name in parts]
    return [helper.make_node("MultiHeadAttention", inputs, [output], domain=RUNTIMES, **attributes)]


def _of_relu_gradient(values: GraphValues, found: Found, output: str) -> list[NodeProto]:
    shape = values.floats(output)
    if shape is None or any(values.floats(found[name]) != shape for name in ("cotangent", "x")):
        return []
    return [
        helper.make_node("ReluGradient", [found["cotangent"], found["x"]], [output], domain=DOMAIN)
    ]


def _of_interleaved(values: GraphValues, found: Found, output: str) -> list[NodeProto]:
    names = ("x", "right", "below", "across")
    shape = values.floats(found["x"])
    if (
        shape is None
        or len(shape) != 4
        or any(values.floats(found[name]) != shape for name in names)
    ):
        return []
    samples, channels, height, width = shape
    row, whole = (
        (samples, channels, height, 2 * int(width)),
        (samples, channels, 2 * int(height), 2 * int(width)),
    )
    if values.floats(found["row of x"]) != row or values.floats(found["row of below"]) != row:
        return []
    if values.floats(output) != whole:
        return []
    return [
        helper.make_node("Interleave", [found[name] for name in names], [output], domain=DOMAIN)
    ]


def _of_strided_gradient(values: GraphValues, found: Found, output: str) -> list[NodeProto]:
    """A convolution for each of the four places in a block of 2x2, with those of the kernel's taps
    that reach it."""
    given = attributes(values.makers[output])
    weight, shape, target = (
        values.array(found["weight"]),
        values.floats(found["x"]),
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
    for place, (rows, columns) in enumerate(product(*axes)):
        if rows is None or columns is None:
            return []
        kernel = weight[:, :, rows.taps][:, :, :, columns.taps].swapaxes(0, 1)
        names = [f"{output} {part} {place}" for part in ("kernel", "place")]
        constant = numpy_helper.from_array(np.ascontiguousarray(kernel), names[0])
        pads = [rows.before, columns.before, rows.after, columns.after]
        nodes.append(helper.make_node("Constant", [], names[:1], value=constant))
        nodes.append(helper.make_node("Conv", [found["x"], names[0]], names[1:], pads=pads))
    places = [node.output[0] for node in nodes if node.op_type == "Conv"]
    return [*nodes, helper.make_node("Interleave", places, [output], domain=DOMAIN)]


class _Taps(NamedTuple):
    """Along an axis, a kernel's taps that reach one place of two, and how far they reach before and
    after it."""

    taps: list[int]
    before: int
    after: int


def _taps(size: int, pad: int) -> list[_Taps | None]:
    """Of a transposed convolution with stride 2, whose output 2m + place takes inputs m + (place +
    pad - tap) / 2."""
    found = list[_Taps | None]()
    for place in (0, 1):
        taps = [tap for tap in reversed(range(size)) if (place + pad - tap) % 2 == 0]
        reach = [(place + pad - tap) // 2 for tap in taps]
        found.append(
            _Taps(taps, -reach[0], reach[-1]) if reach and reach[0] <= 0 <= reach[-1] else None
        )
    return found


Make = Callable[[GraphValues, Found, str], list[NodeProto]]
MEANS = {4: _mean_at_once, 5: _mean_by_rows}
"""How a group's mean is taken, by the axes that it is taken of."""
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
"""What is looked for, and what then gives its output; one whose pattern is part of another's comes
after it."""


def has_inner_graphs(graph: GraphProto) -> bool:
    """Whether a node has a graph of its own, which may read any value by its name."""
    return any(
        attribute.HasField("g") or attribute.graphs
        for node in graph.node
        for attribute in node.attribute
    )


def fuse(model: ModelProto) -> int:
    """Replaces what there is a kernel for, in place, and returns how often. There must be no inner
    graphs."""
    graph, count = model.graph, 0
    for pattern, make in FUSIONS:
        values = GraphValues(graph)
        new, taken = list[list[NodeProto]](), set[str]()
        for node in graph.node:
            found = (
                values.match(node.output[0], pattern, {}) if node.op_type == pattern.kind else None
            )
            if found is None or not (made := make(values, found, node.output[0])):
                continue
            kernel = made[
                0
            ]  # if a norm: two norms of one x share mean and 1 / std, which one of them has to give
            kernel.output[1:] = [
                f"{node.output[0]} {name}" if name in taken else name for name in kernel.output[1:]
            ]
            taken.update(kernel.output)
            new.append(made)
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
    """Puts each group of new nodes where the last one's output was made, or its first where mean or
    1 / std was."""
    of = {name: group for group in new for node in group for name in node.output}
    nodes = [
        node for node in graph.node if node.op_type == "Constant"
    ]  # before all that reads them now
    placed = set[int]()
    for node in graph.node:
        group = of.get(node.output[0])
        if group is None and node.op_type != "Constant":
            nodes.append(node)
        elif group is not None:
            for made in group if node.output[0] in group[-1].output else group[:1]:
                if id(made) not in placed:
                    nodes.append(made)
                    placed.add(id(made))
    put_nodes(graph, nodes)


def drop_unread(graph: GraphProto) -> None:
    """Weights of which another form took the place."""
    read = {name for node in graph.node for name in node.input}
    read.update(value.name for value in (*graph.input, *graph.output))
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]


def put_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Gives the graph these nodes, less those that make nothing that is read."""
    needed, kept = {value.name for value in graph.output}, list[NodeProto]()
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
    # copies, since a graph's nodes are gone with their list
    copies = [NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(copies)
