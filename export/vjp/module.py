"""A traced graph together with its vector-Jacobian product, as a module of plain tensor operations.

The graph is walked forward, rule by rule, and the rules' gradients backward; what comes out can be
traced once more, and so becomes an ONNX graph.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from good_rt.errors import NoGradientRuleError
from good_rt.export.vjp.rules import RULES, ZERO_GRADIENT, Gradient, Rule

aten = torch.ops.aten

GRADIENT = "gradient"
"""The name of the output that holds Jᵀv."""
FREE_OF_STRIDES = {aten.view.default: aten.reshape.default}
"""What an operation becomes, since a rule's output may lie in memory in another order than the
traced one's."""


def cotangent_names(outputs: Sequence[str]) -> tuple[str, ...]:
    """The inputs that hold v: "cotangent" for a module of one output, else one a output,
    "cotangent_" and its name."""
    return ("cotangent",) if len(outputs) == 1 else tuple(f"cotangent_{name}" for name in outputs)


class VjpModule(nn.Module):
    """(*cotangents, *inputs) -> (*outputs, Jᵀv), in plain tensor operations without autograd."""

    def __init__(self, primal: fx.GraphModule, wrt: fx.Node) -> None:
        super().__init__()
        self.primal, self._wrt = primal, wrt
        self.outputs = len(_outputs(primal.graph))
        self._active = _active(primal.graph, wrt)

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        cotangents, inputs = arrays[: self.outputs], iter(arrays[self.outputs :])
        values: dict[fx.Node, Any] = {}
        tape: list[tuple[fx.Node, Sequence[Gradient | None]]] = []
        for node in self.primal.graph.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                values[node] = next(inputs)
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(node.target)(self.primal)
            elif node.op == "call_function" and node in self._active:
                values[node], gradients = _rule(node)(*args, **kwargs)
                tape.append((node, gradients))
            elif node.op == "call_function":
                values[node] = FREE_OF_STRIDES.get(node.target, node.target)(*args, **kwargs)
        found: dict[fx.Node, Any] = {}
        for output, cotangent in zip(_outputs(self.primal.graph), cotangents, strict=True):
            _accumulate(found, output, cotangent)
        for node, gradients in reversed(tape):
            if node in found:
                self._pull_back(node, gradients, found)
        gradient = found.get(self._wrt)
        results = tuple(values[node] for node in _outputs(self.primal.graph))
        return (*results, torch.zeros_like(values[self._wrt]) if gradient is None else gradient)

    def _pull_back(
        self, node: fx.Node, gradients: Sequence[Gradient | None], found: dict[fx.Node, Any]
    ) -> None:
        """Takes the node's cotangent out of ``found`` and adds what it gives to the node's
        arguments."""
        cotangent = found.pop(node)
        if node.target is operator.getitem:  # one of several outputs: its place in their list
            of: Any = node.args[0]
            place: Any = node.args[1]
            places = found.setdefault(of, [None] * len(of.meta["val"]))
            places[place] = cotangent if places[place] is None else places[place] + cotangent
            return
        if not self._active.isdisjoint(pytree.tree_leaves(node.kwargs)):
            raise NoGradientRuleError(_unknown(node, " for its named arguments"))
        for place, source in enumerate(pytree.tree_leaves(node.args)):
            if source not in self._active:
                continue
            gradient = gradients[place] if place < len(gradients) else None
            if gradient is None:
                raise NoGradientRuleError(
                    _unknown(node, f" for its argument {place} as it is used here")
                )
            _accumulate(found, source, gradient(cotangent))


def _accumulate(found: dict[fx.Node, Any], node: fx.Node, cotangent: Tensor) -> None:
    found[node] = found[node] + cotangent if node in found else cotangent


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    outputs: Any = graph.output_node().args[0]
    return list(outputs)


def _rule(node: fx.Node) -> Rule:
    return _getitem if node.target is operator.getitem else RULES[node.target]


def _getitem(values: Sequence[Tensor], place: int) -> tuple[Tensor, Sequence[Gradient]]:
    return values[place], ()


def _unknown(node: fx.Node, what: str = "") -> str:
    """What is said of an operation without a rule: its name, and the submodule that it stands
    in."""
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    place = f" (in {modules[-1]})" if modules else ""
    return (
        f"{node.target}{place} has no gradient rule{what}; PyTorch's gradients need none: "
        "--gradients torch"
    )


def _active(graph: fx.Graph, wrt: fx.Node) -> set[fx.Node]:
    """The nodes through which the input acts on the outputs. Raises GoodRtError when one of them
    has no rule."""
    reached = {wrt}
    for node in graph.nodes:
        values = pytree.tree_leaves(node.meta.get("val"))
        if (
            node.op == "call_function"
            and node.target not in ZERO_GRADIENT
            and not reached.isdisjoint(node.all_input_nodes)
            and any(isinstance(value, Tensor) and value.is_floating_point() for value in values)
        ):
            reached.add(node)
    active: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in reached and any(user.op == "output" or user in active for user in node.users):
            active.add(node)
    for node in graph.nodes:
        if (
            node in active
            and node.op == "call_function"
            and node.target not in {operator.getitem, *RULES}
        ):
            raise NoGradientRuleError(_unknown(node))
    return active
