"""What every engine is: named tensors in, named tensors out, whatever runtime is behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from good_rt.errors import GoodRtError


@dataclass(frozen=True)
class TensorSpec:
    """dtype ("float32") and shape of one input or output; a named dimension ("batch") may have any length."""

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
class SideBySide(Protocol):
    """What an engine also has that runs parts of a batch at the same time faster than the batch as a whole."""

    def parts(self, count: int) -> Sequence[slice]:
        """How a batch of so many samples is best divided; one slice where it is best left whole."""
        ...

    def each(self, batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The outputs of each of the inputs, which do not depend on each other."""
        ...


def check_inputs(engine: Engine, arrays: Mapping[str, Tensor]) -> None:
    """Raises GoodRtError that names the input that is missing, unknown, or of another dtype or shape."""
    for name in engine.inputs.keys() ^ arrays.keys():
        what = "is missing" if name in engine.inputs else f"is unknown; the engine takes {', '.join(engine.inputs)}"
        raise GoodRtError(f"engine input {name!r} {what}")
    lengths: dict[str, int] = {}
    for name, spec in engine.inputs.items():
        array = arrays[name]
        dtype = str(array.dtype).removeprefix("torch.")
        fits = len(array.shape) == len(spec.shape) and all(
            size == (lengths.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
            for size, wanted in zip(array.shape, spec.shape, strict=True)
        )
        if dtype != spec.dtype or not fits:
            wanted_shape = "x".join(map(str, spec.shape))
            found = "x".join(map(str, array.shape))
            raise GoodRtError(f"engine input {name!r} must be {spec.dtype} {wanted_shape}, not {dtype} {found}")
