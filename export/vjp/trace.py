"""A module together with its vector-Jacobian product, as one graph with a dynamic batch.

Guidance goes back through decoder and UNet; with this they need no autograd, so that any ONNX
runtime can run them. The module is exported to aten operations, and `good_rt.export.vjp.rules` says
how each of them is pulled back.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from good_rt.errors import GoodRtError, NoGradientRuleError
from good_rt.export.to_onnx import OPSET, export_onnx, first_line, quiet, trace
from good_rt.export.vjp.operator_fusion import fold_batch_norms, join_enlargements
from good_rt.export.vjp.rules import RULES, ZERO_GRADIENT, Gradient, Rule

aten = torch.ops.aten

GRADIENT = "gradient"
"""The name of the output that holds Jᵀv."""


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
    return f"{node.target}{place} has no gradient rule{what}; PyTorch's gradients need none: --gradients torch"


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


FREE_OF_STRIDES = {aten.view.default: aten.reshape.default}
"""What an operation becomes, since a rule's output may lie in memory in another order than the
traced one's."""
ASSERTIONS = (
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
)
"""What torch.export leaves to check at run time; engines check their inputs themselves."""
KEPT = (
    aten.group_norm.default,
    aten.layer_norm.default,
    aten.instance_norm.default,
    aten.silu.default,
    aten.gelu.default,
    aten.elu.default,
    aten.softplus.default,
    aten.leaky_relu.default,
    aten.linear.default,
    aten.logsumexp.default,
    aten.scaled_dot_product_attention.default,
    aten.upsample_nearest2d.vec,
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
    aten.detach.default,  # which would become an alias, and that has a gradient
)
"""Operations that are not taken apart, since their own rule is better than the sum of those of
their parts."""


def vjp_module(module: nn.Module, examples: Mapping[str, Tensor], wrt: str) -> VjpModule:
    """(*cotangents, *inputs) -> (*outputs, Jᵀv) with respect to the input named ``wrt``, for any
    batch size from 1.

    ``examples`` are inputs by name, in the module's order. Raises GoodRtError when the module
    cannot be traced, and one that names the aten operation when the gradient goes through one that
    has no rule.
    """
    if wrt not in examples:
        raise GoodRtError(
            f"the module has no input {wrt!r} to differentiate by; it has {', '.join(examples)}"
        )
    table = torch.export.default_decompositions()
    for operation in KEPT:
        table.pop(operation, None)  # some have no decomposition in this version of torch
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # nn.TransformerEncoderLayer as a whole has no rule, its parts have
    try:
        with quiet():
            primal = trace(module, examples).run_decompositions(table).module(check_guards=False)
    except Exception as error:  # torch.export raises many kinds
        raise GoodRtError(
            f"{type(module).__name__} cannot be traced: {first_line(error)}"
        ) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
    for node in list(primal.graph.nodes):
        if node.target in ASSERTIONS:
            primal.graph.erase_node(node)
    primal.graph.eliminate_dead_code()
    fold_batch_norms(primal)
    join_enlargements(primal.graph)
    inputs = [node for node in primal.graph.nodes if node.op == "placeholder"]
    return VjpModule(primal, inputs[list(examples).index(wrt)])


def export_vjp_onnx(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    wrt: str,
    outputs: Sequence[str],
    path: Path,
    *,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the module with its vector-Jacobian product with respect to the input ``wrt`` as one
    file.

    Inputs: `cotangent_names`, then the module's own by name; outputs: ``outputs``, the module's
    own, then "gradient". Raises GoodRtError, leaving nothing behind, when there is no rule for an
    operation or the export fails.
    """
    product = vjp_module(module, examples, wrt)
    with torch.no_grad():
        values = module(*examples.values())
    cotangents = dict(
        zip(
            cotangent_names(outputs),
            values if isinstance(values, tuple) else (values,),
            strict=True,
        )
    )
    inputs = {**cotangents, **examples}
    export_onnx(
        product, inputs, (*outputs, GRADIENT), path, opset=opset, metadata=metadata, rewrite=False
    )
