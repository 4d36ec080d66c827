"""The errors that users see: one line that says what is wrong, where, and what to do; commands exit
with code 2."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType


class GoodRtError(Exception):
    """Something the user can fix."""


class ParityError(GoodRtError):
    """An exported graph does not compute what PyTorch computes."""


class NoGradientRuleError(GoodRtError):
    """An engine cannot compute a gradient that goes through an operation."""


class NonFiniteError(GoodRtError):
    """A NaN or infinite value, with the step and the samples where it came up: places in the batch,
    or indices."""

    def __init__(self, step: int, samples: Sequence[int]) -> None:
        self.step, self.samples = step, tuple(samples)
        where = (
            f" for sample{'s' if len(self.samples) > 1 else ''} {', '.join(map(str, self.samples))}"
            if samples
            else ""
        )
        super().__init__(
            f"a value is not finite at step {step}{where}; lower the strength or the learning rate"
        )


class LeftOutWarning(UserWarning):
    """Something in the user's files that is not used; commands print it as one line."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not blank; its class's name where it has none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


"""Control characters, those that turn the direction of a line, and halves of characters."""


def require(module: str, extra: str) -> ModuleType:
    """Imports a module, or raises GoodRtError that names the extra it comes with."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GoodRtError(
            f"{module} is missing ({error}); install it with: pip install 'good-rt[{extra}]'"
        ) from None
