"""What every OOD score must do that guidance, calibration and evaluation rely on.

A score is a function of one or more arrays with the samples along their first axis, to one number a
sample, higher = more OOD: of logits, of features, of energy and k-NN distance, or of images. It may
take NumPy arrays or PyTorch tensors. This module needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from good_rt.errors import GoodRtError
from good_rt.testing.contract import ContractCheck, require_that

LEAST_AUROC = 0.6
"""Of the OOD against the ID samples: the score's direction, not its quality."""


@dataclass(frozen=True)
class ScoreInputs:
    """What a score is tried on.

    Each of ``known`` and ``ood`` has the score's arguments in order, with a first axis of samples.
    """

    known: tuple[Any, ...]
    """Of in-distribution samples."""
    ood: tuple[Any, ...]
    """Of samples that should score higher."""
    large: tuple[Any, ...] | None = None
    """Arguments of large magnitude, for which the score must not overflow."""
    rises: Mapping[int, int] = field(default_factory=dict)
    """Argument -> 1 where the score never falls as the argument's values rise, -1 where it never
    rises."""


def logit_inputs(classes: int = 10, count: int = 48, tensors: bool = False) -> ScoreInputs:
    """Logits: ID ones (count, classes) with a clear winner, OOD ones without.

    Args:
        classes: Number of logits.
        count: Samples of each kind.
        tensors: PyTorch's float64 tensors instead of NumPy's arrays.
    """
    rng = np.random.default_rng(0)
    known = rng.normal(size=(count, classes))
    known[np.arange(count), rng.integers(classes, size=count)] += 12
    large = np.array([1e4, -1e4])[:, None] * np.eye(2, classes)
    arrays = known, rng.normal(size=(count, classes)), large
    first, second, third = map(_tensor, arrays) if tensors else arrays
    return ScoreInputs((first,), (second,), (third,))


def feature_inputs(bank_features: Any, count: int = 48) -> ScoreInputs:
    """Unit-norm features near rows of a bank (M, D), and OOD ones away from all of them.

    Args:
        bank_features: The bank's features, a tensor or array.
        count: Samples of each kind.

    Returns:
        Float64 tensors (count, D).
    """
    bank = np.asarray(bank_features, np.float64)
    rng = np.random.default_rng(0)
    near = bank[rng.integers(len(bank), size=count)] + 0.02 * rng.normal(
        size=(count, bank.shape[1])
    )
    candidates = rng.normal(size=(20 * count, bank.shape[1]))
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    far = candidates[np.argsort((candidates @ bank.T).max(axis=1))[:count]]
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    return ScoreInputs((_tensor(near),), (_tensor(far),))


def discrepancy_inputs(count: int = 48) -> ScoreInputs:
    """Energies and k-NN distances (count,) of ID samples, and larger ones of OOD samples; a score
    of them rises with both."""
    rng = np.random.default_rng(0)
    known = rng.normal(-8, 1, count), rng.normal(0.3, 0.05, count).clip(0, 2)
    ood = rng.normal(-4, 1, count), rng.normal(0.6, 0.05, count).clip(0, 2)
    return ScoreInputs(known, ood, (np.full(2, 1e4), np.full(2, 2.0)), {0: 1, 1: 1})


def score_checks(
    score: Callable[..., Any], inputs: ScoreInputs | None = None, *, differentiable: bool = True
) -> list[ContractCheck]:
    """The contract of a score, one check a rule, for `parametrize_with_checks`.

    Args:
        score: Arrays (N, …) -> (N,), higher = more OOD.
        inputs: What it is tried on; by default logits as NumPy arrays.
        differentiable: Whether a score of PyTorch tensors must have a gradient.

    Returns:
        The checks that the inputs allow: gradients are of tensors, single precision is of arrays,
        monotonicity and large values are for inputs that name them.
    """
    inputs = logit_inputs() if inputs is None else inputs
    tensors = _is_tensor(inputs.known[0])
    left_out: dict[Callable[[ScoreCase], None], bool] = {
        check_score_gradient: not (tensors and differentiable),
        check_score_single_precision: tensors,
        check_score_monotone: not inputs.rises,
        check_score_large_values: inputs.large is None,
    }
    case = ScoreCase(score, inputs)
    return [
        ContractCheck(check.__name__, partial(check, case))
        for check in SCORE_CHECKS
        if not left_out.get(check, False)
    ]


@dataclass(frozen=True)
class ScoreCase:
    """A score to check, and what it is tried on."""

    score: Callable[..., Any]
    inputs: ScoreInputs

    @property
    def arguments(self) -> tuple[Any, ...]:
        """ID samples, then OOD samples."""
        return tuple(map(_joined, self.inputs.known, self.inputs.ood))

    def values(self, arguments: Sequence[Any]) -> NDArray[np.float64]:
        """The scores (N,) of copies of the arguments, as float64."""
        return np.asarray(_array(self.score(*map(_copy, arguments))), np.float64)


def check_score_shape(case: ScoreCase) -> None:
    """One floating-point number a sample, in an array or tensor (N,) as the arguments are."""
    arguments = case.arguments
    scores = case.score(*map(_copy, arguments))
    kind = "tensor" if _is_tensor(arguments[0]) else "array"
    require_that(
        _is_tensor(scores) if kind == "tensor" else isinstance(scores, np.ndarray),
        f"a score of {kind}s gives a {type(scores).__name__}",
    )
    shape, count = tuple(scores.shape), len(arguments[0])
    require_that(shape == (count,), f"{count} samples have scores of shape {shape}")
    require_that(_array(scores).dtype.kind == "f", f"scores are {scores.dtype}, not floats")


def check_score_finite(case: ScoreCase) -> None:
    """Scores of finite arguments are finite."""
    wrong = np.flatnonzero(~np.isfinite(case.values(case.arguments)))
    require_that(not wrong.size, f"scores of samples {wrong[:5].tolist()} are not finite")


def check_score_higher_is_more_ood(case: ScoreCase) -> None:
    """OOD samples score higher than ID samples, by their AUROC."""
    known, ood = case.values(case.inputs.known), case.values(case.inputs.ood)
    above = (ood[:, None] > known[None]).mean() + 0.5 * (ood[:, None] == known[None]).mean()
    require_that(
        above >= LEAST_AUROC,
        f"OOD samples score higher than ID ones in {above:.0%} of pairs; higher must be more OOD",
    )


def check_score_monotone(case: ScoreCase) -> None:
    """The score follows each argument that ``rises`` names in its direction."""
    arguments = case.arguments
    before = case.values(arguments)
    slack = 1e-9 * np.abs(before).max()
    for position, sign in case.inputs.rises.items():
        for step in (0.01, 0.1, 1.0):
            moved = list(arguments)
            moved[position] = arguments[position] + step
            change = sign * (case.values(moved) - before)
            require_that(
                (change >= -slack).all() and (change > slack).any(),
                f"the score does not {'rise' if sign > 0 else 'fall'} with argument {position}: "
                f"adding {step} changes it by {sign * change.min():.3g}",
            )


def check_score_batch_independence(case: ScoreCase) -> None:
    """A sample's score is the same alone, in a pair and among all."""
    arguments = case.arguments
    together = case.values(arguments)
    for size in (1, 2):
        parts = [
            case.values([argument[start : start + size] for argument in arguments])
            for start in range(0, len(together), size)
        ]
        _require_close(np.concatenate(parts), together, f"scores in batches of {size}")


def check_score_order_independence(case: ScoreCase) -> None:
    """Samples in another order have their scores in that order."""
    arguments = case.arguments
    together = case.values(arguments)
    order = np.random.default_rng(1).permutation(len(together)).tolist()
    shuffled = case.values([argument[order] for argument in arguments])
    _require_close(shuffled, together[order], "scores of samples in another order")


def check_score_inputs_unchanged(case: ScoreCase) -> None:
    """The arguments keep their values."""
    given = [_copy(argument) for argument in case.arguments]
    case.score(*given)
    for position, (after, before) in enumerate(zip(given, case.arguments, strict=True)):
        require_that(
            np.array_equal(_array(after), _array(before)),
            f"the score writes into argument {position}",
        )


def check_score_repeated_calls(case: ScoreCase) -> None:
    """The same arguments have the same scores again."""
    first, second = (case.values(case.arguments) for _ in range(2))
    require_that(np.array_equal(first, second), "a second call gives other scores")


def check_score_nan_is_not_hidden(case: ScoreCase) -> None:
    """A sample with a NaN is refused with GoodRtError, or its score is not finite; no other
    sample's score changes."""
    before = case.values(case.arguments)
    for position in range(len(case.arguments)):
        arguments = [_copy(argument) for argument in case.arguments]
        arguments[position][1] = np.nan
        try:
            scores = case.values(arguments)
        except GoodRtError:
            continue
        require_that(
            not np.isfinite(scores[1]),
            f"a NaN in argument {position} gives the score {scores[1]:.6g}",
        )
        others = np.arange(len(before)) != 1
        _require_close(scores[others], before[others], "scores beside a sample with a NaN")


def check_score_large_values(case: ScoreCase) -> None:
    """Arguments of large magnitude do not overflow."""
    assert case.inputs.large is not None
    scores = case.values(case.inputs.large)
    require_that(np.isfinite(scores).all(), f"large arguments give the scores {scores.tolist()}")


def check_score_single_precision(case: ScoreCase) -> None:
    """Arguments in float32, as classifiers give them, have the scores of float64 up to rounding."""
    single = [argument.astype(np.float32) for argument in case.arguments]
    _require_close(case.values(single), case.values(case.arguments), "scores of float32", 1e-3)


def check_score_gradient(case: ScoreCase) -> None:
    """The gradient agrees with finite differences, and is in a sample's own arguments only."""
    arguments = [_copy(argument).double().requires_grad_(True) for argument in case.arguments]
    scores = case.score(*arguments)
    require_that(scores.requires_grad, "scores have no gradient in their arguments")
    scores.sum().backward()
    gradients = [_array(argument.grad) for argument in arguments]
    norm = np.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients))
    require_that(0 < norm < np.inf, f"the gradient has norm {norm}")
    rng = np.random.default_rng(2)
    directions = [rng.normal(size=gradient.shape) for gradient in gradients]
    slopes = sum(
        (gradient * direction).reshape(len(gradient), -1).sum(axis=1)
        for gradient, direction in zip(gradients, directions, strict=True)
    )
    errors = []
    for step in (1e-4, 1e-5, 1e-6):
        ahead, behind = (
            case.values(
                [
                    argument.detach() + sign * step * _tensor(direction)
                    for argument, direction in zip(arguments, directions, strict=True)
                ]
            )
            for sign in (1, -1)
        )
        errors.append(np.abs((ahead - behind) / (2 * step) - slopes))
    largest = float(np.min(errors, axis=0).max() / np.abs(slopes).max())
    require_that(
        largest < 0.02,
        f"the gradient differs from finite differences by {largest:.3g} of the largest slope",
    )


SCORE_CHECKS: tuple[Callable[[ScoreCase], None], ...] = (
    check_score_shape,
    check_score_finite,
    check_score_higher_is_more_ood,
    check_score_monotone,
    check_score_batch_independence,
    check_score_order_independence,
    check_score_inputs_unchanged,
    check_score_repeated_calls,
    check_score_nan_is_not_hidden,
    check_score_large_values,
    check_score_single_precision,
    check_score_gradient,
)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")


def _tensor(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(array)


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().cpu() if _is_tensor(value) else value)


def _copy(value: Any) -> Any:
    return value.detach().clone() if _is_tensor(value) else value.copy()


def _joined(first: Any, second: Any) -> Any:
    if not _is_tensor(first):
        return np.concatenate([first, second])
    import torch

    return torch.cat([first, second])


def _require_close(
    scores: NDArray[np.float64],
    expected: NDArray[np.float64],
    what: str,
    tolerance: float = 1e-4,
) -> None:
    require_that(
        scores.shape == expected.shape, f"{what} have shape {scores.shape}, not {expected.shape}"
    )
    spread = max(float(np.abs(expected).max()), 1e-12)
    difference = float(np.abs(scores - expected).max() / spread)
    require_that(difference <= tolerance, f"{what} differ by {difference:.3g} of the largest")
