"""From a module to its vector-Jacobian product: traced, differentiated by rules, written to ONNX.

Guidance goes back through decoder and network; with these graphs that needs no autograd, so that
any ONNX runtime can run them. The module is exported to aten operations, and
`good_rt.export.vjp.rules` says how each of them is pulled back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from good_rt.errors import GoodRtError, first_line
from good_rt.export.to_onnx import OPSET, export_onnx, quiet_exporter, trace
from good_rt.export.vjp.module import GRADIENT, VjpModule, cotangent_names
from good_rt.export.vjp.operator_fusion import fold_batch_norms, join_enlargements

aten = torch.ops.aten

ASSERTIONS = (
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
)
"""What torch.export leaves to check at run time; engines check their inputs themselves."""
WHOLE_OPERATIONS = (
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
    """(*cotangents, *inputs) -> (*outputs, Jᵀv), for any batch size from 1.

    Args:
        module: Takes its inputs by position.
        examples: Inputs by name, in the module's order.
        wrt: Name of the input that J is taken with respect to.

    Raises:
        NoGradientRuleError: the gradient goes through an operation that has no rule; it names the
            aten operation.
        GoodRtError: the module cannot be traced, or has no such input.
    """
    if wrt not in examples:
        raise GoodRtError(
            f"the module has no input {wrt!r} to differentiate by; it has {', '.join(examples)}"
        )
    table = torch.export.default_decompositions()
    for operation in WHOLE_OPERATIONS:
        table.pop(operation, None)  # some have no decomposition in this version of torch
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    # nn.TransformerEncoderLayer as a whole has no rule, its parts have
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet_exporter():
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
    """Writes a module with its vector-Jacobian product as one ONNX file.

    The file's inputs are `cotangent_names`, then the module's own; its outputs are the module's
    own, then "gradient".

    Args:
        module: Takes its inputs by position.
        examples: Inputs by name, in the module's order.
        wrt: Name of the input that the gradient is taken with respect to.
        outputs: Names of the module's outputs.
        path: The file.
        opset: ONNX operator set.
        metadata: What the file's metadata say.

    Raises:
        NoGradientRuleError: the gradient goes through an operation that has no rule; nothing is
            written.
        GoodRtError: the export fails; nothing is written.
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
