"""What a job has done: state.json in its folder, with each step's key (settings and inputs) and its
files' hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from good_rt.files import sha256
from good_rt.records import InsideFolder, RecordType, drop_format

STATE = "state.json"
STATE_RECORD = RecordType("run-state", "delete it; the run then repeats its steps", (drop_format,))


def key_of(*values: object) -> str:
    """One hash of settings and fingerprints."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class StepRecord:
    """A step that has begun, and the hashes of its files by path once it is done."""

    key: str
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.files:
            if InsideFolder().unmet_by(name):
                raise ValueError(f"{name[:60]!r} is outside the job's folder")


@dataclass(frozen=True)
class RunStateFields:
    """The keys of state.json."""

    steps: Mapping[str, StepRecord]


@dataclass(frozen=True)
class JobState:
    """The record in a job's folder; a step is done when its key is the same and its files are as
    they were left."""

    folder: Path

    def _steps(self) -> dict[str, StepRecord]:
        path = self.folder / STATE
        return dict(STATE_RECORD.read_as(RunStateFields, path).steps) if path.exists() else {}

    def _write(self, steps: Mapping[str, StepRecord]) -> None:
        STATE_RECORD.write(self.folder / STATE, asdict(RunStateFields(steps)))

    def is_done(self, step: str, key: str) -> bool:
        """Whether a step is done and its files are unchanged.

        Args:
            step: The step's name.
            key: Hash of its settings and inputs (`key_of`).

        Raises:
            GoodRtError: state.json is damaged, or of a newer version.
        """
        done = self._steps().get(step)
        if done is None or done.key != key or not done.files:
            return False
        paths = {self.folder / name: digest for name, digest in done.files.items()}
        return all(path.is_file() and sha256(path) == digest for path, digest in paths.items())

    def begin(self, step: str, key: str) -> bool:
        """Records that a step has begun.

        Args:
            step: The step's name.
            key: Hash of its settings and inputs (`key_of`).

        Returns:
            Whether it had begun before with another key.
        """
        steps = self._steps()
        before = steps.get(step)
        self._write({**steps, step: StepRecord(key)})
        return before is not None and before.key != key

    def finish(self, step: str, key: str, files: Sequence[Path]) -> None:
        """Records that a step is done.

        Args:
            step: The step's name.
            key: Hash of its settings and inputs (`key_of`).
            files: What it wrote, inside the job's folder.
        """
        steps = self._steps()
        hashes = {path.relative_to(self.folder).as_posix(): sha256(path) for path in files}
        self._write({**steps, step: StepRecord(key, hashes)})
