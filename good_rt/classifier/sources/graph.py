"""A classifier that is a graph of aten operations, as torch.export makes it, in two parts at the
features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from good_rt.classifier.logits import left_out
from good_rt.classifier.network import ClassifierNetwork, place_of_logits
from good_rt.classifier.sources.registry import square_size
from good_rt.errors import GoodRtError

aten = torch.ops.aten

PROBABILITIES = {
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.sigmoid.default,
    aten.special_expit.default,
    aten.log_sigmoid.default,
    aten.hardsigmoid.default,
    aten.tanh.default,
}
"""The operations whose outputs are no logits; a larger input is a larger output."""
MADE_OF_PROBABILITIES = {
    aten.log.default,
    aten.exp.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clip.default,
}
"""What may follow them, and is left out with them."""
SHAPING = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.select.int,
    aten.to.dtype,
    aten._to_copy.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.dropout.default,
}
"""What may stand between them and the output, and stays."""
TRAINING_ARGUMENTS: dict[Any, int] = {aten.batch_norm.default: 5, aten.dropout.default: 2}
"""The operations that act otherwise in training, and the place of the argument that says so."""
FEATURE_ARGUMENTS: dict[Any, int] = {
    aten.linear.default: 0,
    aten.addmm.default: 1,
    aten.mm.default: 0,
    aten.matmul.default: 0,
    aten.bmm.default: 0,
    aten.conv2d.default: 0,
    aten.convolution.default: 0,
}
"""The operations that a last layer is, and the place of the features among their arguments."""


class GraphNetwork(ClassifierNetwork):
    """A graph divided at the features; with parameters it can be trained, in the mode of its
    export.

    Args:
        body: Images (N, C, H, W) to features.
        head: Features to logits (N, K).
        layer: Name of the head's first layer.
    """

    def __init__(self, body: fx.GraphModule, head: fx.GraphModule, layer: str) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.features = f"the input of {layer}"
        self.trainable = any(True for _ in self.parameters())

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def _apply(self, *args: Any, **settings: Any) -> GraphNetwork:
        """Constants that the graph makes are made where its weights go, not where it was
        exported."""
        super()._apply(*args, **settings)  # type: ignore[no-untyped-call]
        weight = next(chain(self.parameters(), self.buffers()), None)
        for part in (self.body, self.head):
            made = [node for node in part.graph.nodes if "device" in node.kwargs]
            if weight is not None and any(node.kwargs["device"] != weight.device for node in made):
                for node in made:
                    node.kwargs = {**node.kwargs, "device": weight.device}
                part.recompile()
        return self

    def library_names(self) -> dict[str, str]:
        return {own: own.partition(".")[2] for own in self.state_dict()}


def graph_network(
    program: torch.export.ExportedProgram, where: str, features: str | None = None
) -> GraphNetwork:
    """An exported program divided before its last layer or the one named; a softmax or sigmoid at
    its end is left out.

    Args:
        program: Images (N, C, H, W) -> logits or probabilities (N, K).
        where: The file, for errors.
        features: Name of the layer whose input is the features; None for the last layer.

    Raises:
        GoodRtError: the program has other inputs or outputs, is in training mode, or has no such
            layer.
    """
    whole = program.module(check_guards=False)
    assert isinstance(whole, fx.GraphModule)
    nodes = list(whole.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    outputs = [
        leaf
        for leaf in pytree.tree_leaves(whole.graph.output_node().args)
        if isinstance(leaf, fx.Node)
    ]
    if len(inputs) != 1 or not outputs:
        raise GoodRtError(f"{where} takes {len(inputs)} inputs; a classifier takes only images")
    logits = outputs[_logits_place(program, outputs, where)]
    for node in nodes:
        training = TRAINING_ARGUMENTS.get(node.target)
        if training is not None and len(node.args) > training and node.args[training] is True:
            raise GoodRtError(
                f"{where} was exported in training mode; call model.eval() before exporting it"
            )
    logits, notes = _without_probabilities(logits)
    layer = _last_layer(logits, where) if features is None else _named_layer(nodes, features, where)
    place = FEATURE_ARGUMENTS.get(layer.target, 0)
    source = layer.args[place]
    if not isinstance(source, fx.Node):
        raise GoodRtError(f"{where}: {layer.name!r} takes no tensor that could be the features")
    name = _module_of(layer) or layer.name
    body = _part(whole, inputs[0], inputs[0], source, where)
    head = _part(whole, inputs[0], source, logits, where)
    network = GraphNetwork(body, head, name)
    network.notes = notes
    return network


def input_shape(program: torch.export.ExportedProgram, where: str) -> tuple[int, int | None]:
    """Channels and, where it is fixed, size of the images that a program takes.

    Args:
        program: The exported program.
        where: The file, for errors.

    Raises:
        GoodRtError: the batch size is fixed, the input is not (N, C, H, W), or not square.
    """
    names = program.graph_signature.user_inputs
    node = next(
        node for node in program.graph.nodes if node.op == "placeholder" and node.name == names[0]
    )
    shape = tuple(node.meta["val"].shape)
    if len(shape) != 4 or not isinstance(shape[1], int):
        raise GoodRtError(
            f"{where} takes an input of shape {shape}; a classifier takes images (N, C, H, W)"
        )
    if isinstance(shape[0], int):
        raise GoodRtError(
            f"{where} only takes batches of {shape[0]}; export it with a dynamic batch: "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
        )
    return shape[1], square_size(shape[2:], where)


def _logits_place(
    program: torch.export.ExportedProgram, outputs: Sequence[fx.Node], where: str
) -> int:
    """Which of a program's outputs the logits are."""
    spec = program.call_spec.out_spec
    names = [str(node) for node in outputs]
    if spec is not None and spec.type in {dict, OrderedDict} and spec.context is not None:
        keys = [str(key) for key in spec.context]
        names = keys if len(keys) == len(outputs) else names
    return place_of_logits(names, [tuple(node.meta["val"].shape[1:]) for node in outputs], where)


def _without_probabilities(output: fx.Node) -> tuple[fx.Node, tuple[str, ...]]:
    """The output of the graph without the softmax or sigmoid at its end, and what was left out."""
    chain, node = [], output
    while node.target in PROBABILITIES | MADE_OF_PROBABILITIES | SHAPING:
        chain.append(node)
        node = node.args[0]  # type: ignore[assignment]
    first = max((i for i, node in enumerate(chain) if node.target in PROBABILITIES), default=-1)
    left = [node for node in chain[: first + 1] if node.target not in SHAPING]
    for node in left:
        before = node.args[0]
        assert isinstance(before, fx.Node)
        node.replace_all_uses_with(before)
        output = before if node is output else output
    return output, tuple(left_out(node.name) for node in left if node.target in PROBABILITIES)


def _last_layer(logits: fx.Node, where: str) -> fx.Node:
    """The layer that gives the logits, behind what only shapes them."""
    node = logits
    while node.target not in FEATURE_ARGUMENTS:
        before = [
            source for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)
        ]
        if node.op != "call_function" or len(before) != 1:
            raise GoodRtError(
                f"{where}: the logits come from {node.name!r}, not from a Linear; name the layer "
                "that gives them as "
                "`features`"
            )
        node = before[0]
    return node


def _named_layer(nodes: Iterable[fx.Node], name: str, where: str) -> fx.Node:
    """The first operation of a module, or the operation itself, of that name."""
    for node in nodes:
        if node.op == "call_function" and (name == node.name or name == _module_of(node)):
            return node
    known = list(
        dict.fromkeys(
            _module_of(node) or node.name for node in nodes if node.target in FEATURE_ARGUMENTS
        )
    )[-8:]
    raise GoodRtError(
        f"{where} has no module or operation {name!r}; its last layers are {', '.join(known)}"
    )


def _module_of(node: fx.Node) -> str:
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return str(paths[-1]).removeprefix("L['self'].") if paths else ""


def _part(
    whole: fx.GraphModule, images: fx.Node, start: fx.Node, end: fx.Node, where: str
) -> fx.GraphModule:
    """The part of the graph that computes ``end`` from ``start``; its weights are the whole's."""
    needed: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            if node is not start and node.target is not aten.sym_size.int:
                todo.extend(node.all_input_nodes)
    graph, values = fx.Graph(), {}
    values[start] = graph.placeholder("images" if start is images else "features")
    for node in whole.graph.nodes:
        if node not in needed or node is start:
            continue
        # the batch size, which all tensors share
        if node.target is aten.sym_size.int and node.args[1] == 0:
            values[node] = graph.call_function(aten.sym_size.int, (values[start], 0))
        elif node is images:
            raise GoodRtError(
                f"{where}: the logits do not only depend on the features; name another layer as "
                "`features`"
            )
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(values[end])
    return fx.GraphModule(whole, graph)
