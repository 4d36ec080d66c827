"""What every engine must do that sampler, guidance and parity reports rely on.

An engine is what `good_rt.engines.base.Engine` describes: named tensors in, named tensors out. The
reference is the same computation in PyTorch, such as a `good_rt.engines.torch.TorchEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from good_rt.engines.base import Engine
from good_rt.testing.contract import ContractCheck, require_refusal, require_that

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class EngineCase:
    """An engine to check, its reference in PyTorch, and inputs for any batch size."""

    make: Callable[[], Engine]
    reference: Callable[..., Tensors]
    inputs: Callable[[int], Tensors]
    batches: Sequence[int]
    tolerance: float

    @cached_property
    def engine(self) -> Engine:
        return self.make()

    def expected(self, inputs: Tensors) -> dict[str, Tensor]:
        """The reference's outputs."""
        with torch.no_grad():
            outputs = self.reference(**_copies(inputs))
        return {name: value.clone() for name, value in outputs.items()}

    @property
    def batch(self) -> int:
        return max(self.batches)

    def float_inputs(self) -> list[str]:
        """The names of the inputs that can hold a NaN."""
        return [name for name, x in self.inputs(self.batch).items() if x.is_floating_point()]


def engine_checks(
    make: Callable[[], Engine],
    reference: Callable[..., Tensors],
    inputs: Callable[[int], Tensors],
    *,
    batches: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-3,
) -> list[ContractCheck]:
    """The contract of an engine, one check a rule, for `parametrize_with_checks`.

    Args:
        make: Opens the engine; called when the first check runs.
        reference: The same computation in PyTorch: tensors by name in, tensors by name out.
        inputs: Example inputs by name for a batch size, other values for another size.
        batches: Batch sizes that the engine takes, 1 among them.
        tolerance: Largest difference to the reference, relative to an output's largest value.
    """
    case = EngineCase(make, reference, inputs, batches, tolerance)
    return [ContractCheck(check.__name__, partial(check, case)) for check in ENGINE_CHECKS]


def check_engine_specs(case: EngineCase) -> None:
    """``inputs`` and ``outputs`` name what the engine takes and gives, with dtypes and shapes."""
    arrays = case.inputs(case.batch)
    outputs = case.engine(**_copies(arrays))
    for what, specs, tensors in (
        ("input", case.engine.inputs, arrays),
        ("output", case.engine.outputs, outputs),
    ):
        require_that(
            specs.keys() == tensors.keys(),
            f"the {what}s are called {', '.join(specs)}, but are {', '.join(tensors)}",
        )
        for name, spec in specs.items():
            dtype = str(tensors[name].dtype).removeprefix("torch.")
            require_that(spec.dtype == dtype, f"{what} {name!r} is {dtype}, not {spec.dtype}")
            shape = tuple(tensors[name].shape)
            fits = len(shape) == len(spec.shape) and all(
                isinstance(wanted, str) or wanted == size
                for wanted, size in zip(spec.shape, shape, strict=True)
            )
            require_that(fits, f"{what} {name!r} has shape {shape}, not {spec.shape}")


def check_engine_parity(case: EngineCase) -> None:
    """Outputs are the reference's."""
    arrays = case.inputs(case.batch)
    _require_same(case, case.engine(**_copies(arrays)), case.expected(arrays), "outputs")


def check_engine_batch_of_one(case: EngineCase) -> None:
    """A single sample gives the reference's outputs, with its batch axis."""
    arrays = case.inputs(1)
    _require_same(case, case.engine(**_copies(arrays)), case.expected(arrays), "a batch of 1")


def check_engine_changing_batches(case: EngineCase) -> None:
    """The same engine takes larger and smaller batches in turn."""
    for size in (*case.batches, *reversed(case.batches)):
        arrays = case.inputs(size)
        outputs = case.engine(**_copies(arrays))
        _require_same(case, outputs, case.expected(arrays), f"a batch of {size} after others")


def check_engine_refuses_missing_input(case: EngineCase) -> None:
    """A missing input is refused by its name."""
    arrays = case.inputs(case.batch)
    for name in arrays:
        others = {other: value for other, value in arrays.items() if other != name}
        require_refusal(partial(case.engine, **others), f"no {name!r}", name)


def check_engine_refuses_unknown_input(case: EngineCase) -> None:
    """An input that the engine does not have is refused by its name."""
    arrays = {**case.inputs(case.batch), "no_such_input": torch.zeros(case.batch)}
    require_refusal(lambda: case.engine(**arrays), "an unknown input", "no_such_input")


def check_engine_refuses_other_dtype(case: EngineCase) -> None:
    """An input of another dtype is refused by its name; it is not converted without a word."""
    arrays = case.inputs(case.batch)
    for name, value in arrays.items():
        other = value.float() if value.dtype != torch.float32 else value.double()
        wrong = {**arrays, name: other}
        require_refusal(partial(case.engine, **wrong), f"{name!r} of {other.dtype}", name)


def check_engine_refuses_other_shape(case: EngineCase) -> None:
    """An input of another rank, or of another length where the spec has a number, is refused."""
    arrays = case.inputs(case.batch)
    for name, value in arrays.items():
        wrong = {f"{name!r} with one axis more": value[..., None]}
        for axis, size in enumerate(case.engine.inputs[name].shape):
            if isinstance(size, int):
                longer = torch.cat([value, value], dim=axis)
                wrong[f"{name!r} with twice the length of axis {axis}"] = longer
        for what, tensor in wrong.items():
            given = {**arrays, name: tensor}
            require_refusal(partial(case.engine, **given), what, name)


def check_engine_outputs_not_reused(case: EngineCase) -> None:
    """A call's outputs stay as they are when the engine is called again."""
    arrays = case.inputs(case.batch)
    first = case.engine(**_copies(arrays))
    before = _copies(first)
    case.engine(**{name: torch.flip(value, (0,)) for name, value in arrays.items()})
    for name, value in first.items():
        require_that(
            torch.equal(_bytes(value), _bytes(before[name])),
            f"output {name!r} changes when the engine is called again; copy it",
        )


def check_engine_outputs_not_inputs(case: EngineCase) -> None:
    """Outputs share no memory with inputs: writing into an input later leaves them alone."""
    arrays = _copies(case.inputs(case.batch))
    outputs = case.engine(**arrays)
    before = _copies(outputs)
    for value in arrays.values():
        value.zero_()
    for name, value in outputs.items():
        require_that(
            torch.equal(_bytes(value), _bytes(before[name])),
            f"output {name!r} changes when an input is written to",
        )


def check_engine_inputs_unchanged(case: EngineCase) -> None:
    """Inputs keep their values."""
    arrays = case.inputs(case.batch)
    given = _copies(arrays)
    case.engine(**given)
    for name, value in given.items():
        require_that(torch.equal(value, arrays[name]), f"the engine writes into input {name!r}")


def check_engine_repeated_calls(case: EngineCase) -> None:
    """The same inputs give the same bytes again."""
    arrays = case.inputs(case.batch)
    first = _copies(case.engine(**_copies(arrays)))
    second = case.engine(**_copies(arrays))
    for name, value in first.items():
        require_that(
            torch.equal(_bytes(value), _bytes(second[name])),
            f"output {name!r} of a second call with the same inputs is another",
        )


def check_engine_opens_twice(case: EngineCase) -> None:
    """Two engines of the same graph, called in turn, do not disturb each other."""
    other = case.make()
    arrays, more = case.inputs(case.batch), case.inputs(1)
    expected = case.expected(arrays)
    outputs = case.engine(**_copies(arrays))
    other(**_copies(more))
    _require_same(case, outputs, expected, "outputs after another engine's call")
    _require_same(case, other(**_copies(arrays)), expected, "a second engine's outputs")


def check_engine_nan_propagates(case: EngineCase) -> None:
    """A NaN in an input reaches every output value that it reaches in the reference, and no other
    sample."""
    for name in case.float_inputs():
        arrays = _copies(case.inputs(case.batch))
        arrays[name][0] = torch.nan
        expected, outputs = case.expected(arrays), case.engine(**_copies(arrays))
        for output, value in expected.items():
            if not value.is_floating_point():
                continue
            hidden = value.isnan() & outputs[output].isfinite()
            require_that(
                not hidden.any(), f"a NaN in input {name!r} is a number in output {output!r}"
            )
            spread = value[1:].isfinite() & ~outputs[output][1:].isfinite()
            require_that(
                not spread.any(),
                f"a NaN in the first sample of {name!r} reaches other samples of {output!r}",
            )


def check_engine_input_order(case: EngineCase) -> None:
    """Inputs are known by their names, in whatever order they are given."""
    arrays = case.inputs(case.batch)
    backwards = dict(reversed(list(_copies(arrays).items())))
    _require_same(case, case.engine(**backwards), case.expected(arrays), "inputs in another order")


def check_engine_memory_layout(case: EngineCase) -> None:
    """Inputs may lie in memory in any order of their axes."""
    arrays = case.inputs(case.batch)
    strided = {name: _strided(value) for name, value in arrays.items()}
    _require_same(
        case, case.engine(**strided), case.expected(arrays), "inputs that are not contiguous"
    )


def check_engine_inputs_with_gradient(case: EngineCase) -> None:
    """Inputs that require a gradient are taken as others."""
    arrays = case.inputs(case.batch)
    given = {
        name: value.clone().requires_grad_(value.is_floating_point())
        for name, value in arrays.items()
    }
    outputs = {name: value.detach() for name, value in case.engine(**given).items()}
    _require_same(case, outputs, case.expected(arrays), "inputs that require a gradient")


ENGINE_CHECKS: tuple[Callable[[EngineCase], None], ...] = (
    check_engine_specs,
    check_engine_parity,
    check_engine_batch_of_one,
    check_engine_changing_batches,
    check_engine_refuses_missing_input,
    check_engine_refuses_unknown_input,
    check_engine_refuses_other_dtype,
    check_engine_refuses_other_shape,
    check_engine_outputs_not_reused,
    check_engine_outputs_not_inputs,
    check_engine_inputs_unchanged,
    check_engine_repeated_calls,
    check_engine_opens_twice,
    check_engine_nan_propagates,
    check_engine_input_order,
    check_engine_memory_layout,
    check_engine_inputs_with_gradient,
)


def _copies(tensors: Tensors) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _strided(value: Tensor) -> Tensor:
    """The same values with gaps between them in memory, or the last two axes exchanged."""
    if value.ndim > 1:
        return value.mT.contiguous().mT
    return torch.stack([value, value], dim=1)[:, 0]


def _bytes(value: Tensor) -> Tensor:
    """The tensor's bits, of which NaN's are equal to themselves."""
    return value.detach().contiguous().view(torch.uint8)


def _require_same(case: EngineCase, outputs: Tensors, expected: Tensors, what: str) -> None:
    require_that(
        outputs.keys() == expected.keys(),
        f"{what}: outputs are {', '.join(outputs)}, not {', '.join(expected)}",
    )
    for name, reference in expected.items():
        value = outputs[name].detach().cpu()
        require_that(
            value.shape == reference.shape and value.dtype == reference.dtype,
            f"{what}: output {name!r} is {value.dtype} {tuple(value.shape)}, not "
            f"{reference.dtype} {tuple(reference.shape)}",
        )
        if not value.is_floating_point():
            require_that(torch.equal(value, reference), f"{what}: output {name!r} differs")
            continue
        scale = reference.abs().max().clamp(min=1e-12)
        difference = float(((value - reference).abs() / scale).max())
        require_that(
            difference <= case.tolerance,
            f"{what}: output {name!r} differs by {difference:.3g} of its largest value; at most "
            f"{case.tolerance} is allowed",
        )
