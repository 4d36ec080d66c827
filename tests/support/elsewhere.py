"""A second device without one: tensors that say they are on "meta" and compute on the CPU.

Whoever adds a CPU tensor to one of these, or takes its numbers without bringing it home, gets the
error that a GPU would give. It shows where tensors are, nothing of what a GPU computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
ACROSS = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""What may take tensors of both devices."""


class _There(Tensor):
    """A tensor that is elsewhere; ``home`` holds its numbers on the CPU."""

    home: Tensor

    @staticmethod
    def __new__(cls, home: Tensor) -> _There:
        found: _There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            home.shape,
            strides=home.stride(),
            storage_offset=home.storage_offset(),
            dtype=home.dtype,
            device=ELSEWHERE,
        )
        found.home = home
        return found

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["home"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> _There:
        return _There(parts["home"])

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees operations without any tensor as well: what makes new ones there, and what brings them
    there."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, _There)]
    here = [value for value in tensors if not isinstance(value, _There) and value.ndim > 0]
    if there and here and operation not in ACROSS:
        raise RuntimeError(f"{operation}: tensors are on two devices, {ELSEWHERE} and cpu")
    device = kwargs.get("device")
    if device is not None and device.type == ELSEWHERE.type:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if device is not None:
        goes_there = device.type == ELSEWHERE.type
    else:
        goes_there = bool(there) and not (
            operation is torch.ops.aten.copy_.default and not isinstance(args[0], _There)
        )
    at_home = {id(value.home): value for value in there}
    inner_args, inner_kwargs = tree_map(
        lambda v: v.home if isinstance(v, _There) else v, (args, kwargs)
    )
    found = operation(*inner_args, **inner_kwargs)

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor) or not goes_there:
            return value
        # an operation in place gives what it was given
        return at_home[id(value)] if id(value) in at_home else _There(value)

    return tree_map(place, found)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device, as long as the block lasts."""
    with _Factories():
        yield ELSEWHERE
