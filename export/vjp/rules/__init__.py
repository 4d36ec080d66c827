"""How each aten operation is pulled back: one rule an operation, in tensor operations that ONNX
runtimes run fast.

`good_rt.export.vjp` walks an exported graph and asks here for each operation's output and its
gradients; an architecture that needs another operation needs one more rule here and nothing else.
"""

from good_rt.export.vjp.rules.registry import RULES, ZERO_GRADIENT, Gradient, Rule, rule

__all__ = ["RULES", "ZERO_GRADIENT", "Gradient", "Rule", "rule"]
