"""What a contract check is, and how pytest runs a list of them.

The checks themselves are in `good_rt.testing.classifier`, `score` and `engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from good_rt.errors import GoodRtError

if TYPE_CHECKING:
    import pytest


class ContractError(AssertionError):
    """A contract is broken: one line that says which rule, with the values that break it."""


@dataclass(frozen=True)
class ContractCheck:
    """One rule, bound to what it checks. Calling it raises ContractError when the rule is broken.

    ``name`` is that of the function with the rule, so that a failure can be searched for.
    """

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


def parametrize_with_checks(
    checks: Sequence[ContractCheck], expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """A pytest decorator that runs a test's argument ``check`` through the checks, one test each.

    Args:
        checks: What `classifier_checks`, `score_checks` or `engine_checks` returned.
        expected_failures: Reason by name of check. Such a test must fail; when it passes, pytest
            reports that, so that the exception does not outlive its reason.

    Raises:
        GoodRtError: pytest is missing, an expected failure names no check or has no reason.
    """
    try:
        import pytest
    except ImportError:
        raise GoodRtError(
            "parametrize_with_checks needs pytest; install it with: pip install pytest"
        ) from None
    reasons = dict(expected_failures or {})
    names = [check.name for check in checks]
    for name, reason in reasons.items():
        if name not in names:
            raise GoodRtError(
                f"the expected failure {name!r} names no check; there are {', '.join(names)}"
            )
        if not reason.strip():
            raise GoodRtError(f"the expected failure {name!r} needs a reason")
    parameters = [
        pytest.param(
            check,
            id=check.name,
            marks=[pytest.mark.xfail(reason=reasons[check.name], raises=ContractError, strict=True)]
            if check.name in reasons
            else [],
        )
        for check in checks
    ]
    decorator: pytest.MarkDecorator = pytest.mark.parametrize("check", parameters)
    return decorator


def require_that(holds: object, message: str) -> None:
    """Raises ContractError with the message unless the rule holds."""
    if not holds:
        raise ContractError(message)


def require_refusal(call: Callable[[], object], what: str, named: str = "") -> None:
    """Raises ContractError unless the call raises GoodRtError, in one line that has ``named``."""
    try:
        call()
    except GoodRtError as error:
        require_that("\n" not in str(error), f"the refusal of {what} has more than one line")
        require_that(named in str(error), f"the refusal of {what} does not name {named!r}: {error}")
        return
    except Exception as error:
        raise ContractError(
            f"{what} must be refused with GoodRtError, not {type(error).__name__}: {error}"
        ) from error
    raise ContractError(f"{what} must be refused with GoodRtError; nothing was raised")
