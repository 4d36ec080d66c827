"""What an attack is: a file, and what must be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attack:
    """A detector file that must be refused.

    Attributes:
        name: What is wrong with it.
        file: The file.
        message: A regular expression that the error's line must match somewhere.
    """

    name: str
    file: Path
    message: str
