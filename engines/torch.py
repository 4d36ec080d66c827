"""PyTorch modules behind the same face as the other engines: the reference, and the one with
gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from good_rt.engines.base import TensorSpec, check_inputs


class TorchEngine:
    """A PyTorch module as an engine.

    Args:
        module: Takes its inputs by position, and returns a tensor or a tuple of tensors.
        inputs: The inputs' specs by name, in the module's order.
        outputs: The outputs' specs by name, in the module's order.
    """

    def __init__(
        self, module: nn.Module, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
    ) -> None:
        self._module = module
        self.inputs = inputs
        self.outputs = outputs

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]:
        check_inputs(self, arrays)
        values = self._module(*(arrays[name] for name in self.inputs))
        sequence: Sequence[Tensor] = values if isinstance(values, tuple) else (values,)
        return dict(zip(self.outputs, sequence, strict=True))
