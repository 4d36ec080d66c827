"""What a job has done: state.json in its folder, with each step's key (settings and inputs) and its
files' hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from good_rt.files import sha256
from good_rt.records import RecordType, drop_format

STATE = "state.json"
STATE_RECORD = RecordType("run-state", "delete it; the run then repeats its steps", (drop_format,))


def key_of(*values: object) -> str:
    """One hash of settings and fingerprints."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class JobState:
    """The record in a job's folder; a step is done when its key is the same and its files are as
    they were left."""

    folder: Path

    def _steps(self) -> dict[str, Any]:
        path = self.folder / STATE
        steps = STATE_RECORD.read(path).get("steps") if path.exists() else {}
        if not isinstance(steps, dict) or not all(
            isinstance(entry, dict) for entry in steps.values()
        ):
            raise STATE_RECORD.damaged(path, "steps is not a table of steps")
        return steps

    def is_done(self, step: str, key: str) -> bool:
        """Whether a step is done and its files are unchanged.

        Args:
            step: The step's name.
            key: Hash of its settings and inputs (`key_of`).

        Raises:
            GoodRtError: state.json is damaged, or of a newer version.
        """
        entry = self._steps().get(step, {})
        files = entry.get("files")
        if entry.get("key") != key or not files or not isinstance(files, dict):
            return False
        paths = {self.folder / name: digest for name, digest in files.items()}
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
        before = steps.get(step, {}).get("key")
        steps[step] = {"key": key}
        STATE_RECORD.write(self.folder / STATE, {"steps": steps})
        return before is not None and before != key

    def finish(self, step: str, key: str, files: Sequence[Path]) -> None:
        """Records that a step is done.

        Args:
            step: The step's name.
            key: Hash of its settings and inputs (`key_of`).
            files: What it wrote, inside the job's folder.
        """
        steps = self._steps()
        hashes = {path.relative_to(self.folder).as_posix(): sha256(path) for path in files}
        steps[step] = {"key": key, "files": hashes}
        STATE_RECORD.write(self.folder / STATE, {"steps": steps})
