"""What every engine is: named tensors in, named tensors out, whatever runtime is behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from good_rt.errors import GoodRtError


@dataclass(frozen=True)
class TensorSpec:
    """dtype ("float32") and shape of one input or output; a named dimension ("batch") may have any
    length."""

    dtype: str
    shape: tuple[int | str, ...]


class Engine(Protocol):
    """A graph that can be run. Tensors are PyTorch's; inputs are given by name."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    def __call__(self, **arrays: Tensor) -> dict[str, Tensor]: ...


@runtime_checkable
class NativeEngine(Protocol):
    """What an engine also has that can leave outputs in its runtime's own type."""

    def run(self, arrays: Mapping[str, Any], native: Collection[str] = ()) -> dict[str, Any]:
        """The outputs of the inputs by name; of those in ``native`` the runtime's own values.

        Another engine of the same class takes these among its inputs. The halves of a VJP hand on
        more than a hundred of them, and converting each takes longer than checking it.
        """
        ...


def are_rows(specs: Iterable[TensorSpec]) -> bool:
    """Whether the first axis of all of them is one batch, of any length."""
    lengths = {spec.shape[:1] for spec in specs}
    return len(lengths) == 1 and any(isinstance(length, str) for length in lengths.pop())


def check_inputs(engine: Engine, arrays: Mapping[str, Any]) -> None:
    """Checks names, dtypes and shapes of an engine's inputs.

    Args:
        engine: What takes the inputs.
        arrays: Inputs by name; what is not a tensor is the runtime's own value (`NativeEngine`),
            and is not checked.

    Raises:
        GoodRtError: an input is missing, unknown, or of another dtype or shape; it names the input.
    """
    for name in engine.inputs.keys() ^ arrays.keys():
        what = (
            "is missing"
            if name in engine.inputs
            else f"is unknown; the engine takes {', '.join(engine.inputs)}"
        )
        raise GoodRtError(f"engine input {name!r} {what}")
    lengths: dict[str, int] = {}
    for name, spec in engine.inputs.items():
        array = arrays[name]
        if not isinstance(array, Tensor):
            continue
        dtype = str(array.dtype).removeprefix("torch.")
        fits = dtype == spec.dtype and len(array.shape) == len(spec.shape)
        for size, wanted in zip(array.shape, spec.shape, strict=False):
            if size != wanted and (
                isinstance(wanted, int) or lengths.setdefault(wanted, size) != size
            ):
                fits = False
        if not fits:
            wanted_shape = "x".join(map(str, spec.shape))
            found = "x".join(map(str, array.shape))
            raise GoodRtError(
                f"engine input {name!r} must be {spec.dtype} {wanted_shape}, not {dtype} {found}"
            )
