"""How each aten operation is pulled back: one rule an operation, in tensor operations that ONNX
runtimes run fast.

`good_rt.export.vjp` walks an exported graph and asks here for each operation's output and its
gradients. An architecture that needs another operation needs one more rule, in the file of its
topic.
"""

from good_rt.export.vjp.rules import (  # noqa: F401  (each registers its rules)
    attention,
    convolution,
    elementwise,
    indexing,
    matmul,
    normalisation,
    pooling,
    reduction,
    shape,
)
from good_rt.export.vjp.rules.registry import RULES, ZERO_GRADIENT, Gradient, Rule, rule

__all__ = ["RULES", "ZERO_GRADIENT", "Gradient", "Rule", "rule"]
