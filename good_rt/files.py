"""Files that appear whole or not at all: written aside, then renamed; and JSON and hashes with
clear errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from good_rt.errors import GoodRtError

DEMO = "demo"
"""Names the demo's model, classifier, light decoder or images, where no such path exists."""
DEMO_IMAGES = Path(__file__).parent / "demo" / "assets" / "data"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write a file or folder to; it gets its name when the
    block succeeds.

    Raises GoodRtError when the place cannot be written to; nothing is left behind then.
    """
    path = Path(path).absolute()  # "." has no name of its own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        temporary = holder / path.name
        yield temporary
        if path.is_dir() and temporary.is_dir():
            os.replace(path, holder / "replaced")  # goes with the holder
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keeps other processes' jobs out of a folder meanwhile. Raises GoodRtError when one is at work
    there already.

    The lock is the process's: it goes with it, however it ends.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise GoodRtError(
            f"another process is at work in {folder}; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> GoodRtError:
    return GoodRtError(f"cannot write {path} ({error.strerror or error}); choose another place")


def remove_leftovers(folder: Path) -> None:
    """Takes away the folders that `atomic_path` left in ``folder`` when its process was killed."""
    for path in folder.glob(".*.????????"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_content(path: Path) -> bytes:
    """A file's bytes. Raises GoodRtError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise GoodRtError(f"cannot read {path} ({error.strerror})") from None


def read_text(path: Path) -> str:
    """A file's text in UTF-8, whatever the locale, without the mark that Windows begins it with.

    Raises:
        GoodRtError: the file cannot be read, or is not UTF-8.
    """
    try:
        return read_content(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise GoodRtError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def printable(text: str) -> str:
    """A text to show: characters that would steer a terminal, or turn the direction of what
    follows, are written as escapes, and so are bytes of file names that are not UTF-8."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) in STEERING or character in TURNING:
        return character.encode("unicode_escape").decode()
    return character


STEERING = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters: control characters, lone surrogates, ends of lines and paragraphs."""
TURNING = frozenset(
    map(chr, (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
)
"""Characters that turn the direction of writing."""


def user_path(text: str | Path) -> Path:
    """A path as the user writes it, with ~ for the home folder.

    Raises:
        GoodRtError: ~NAME is no user's.
    """
    path = Path(text)
    if not str(text).startswith("~") or path.exists():
        return path
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise GoodRtError(f"{text} cannot be resolved: {error}") from None


def paths_of(given: Path | str | Sequence[Path | str]) -> list[Path]:
    """Several paths as a list; a single one is a list of one."""
    return [Path(given)] if isinstance(given, (str, Path)) else [Path(path) for path in given]


def demo_path(value: str | Path, demo: Path) -> Path:
    """The path that ``value`` names: ``demo`` for "demo", unless there is such a path."""
    return demo if str(value) == DEMO and not Path(value).exists() else user_path(value)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises GoodRtError when it is missing or something else."""
    return parse_json(read_content(path), path)


def parse_json(text: str | bytes, where: Path | str) -> dict[str, Any]:
    """A JSON object from a text, or its bytes in UTF-8.

    Raises:
        GoodRtError: it is something else; the error says that ``where`` holds it.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GoodRtError(f"{where} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise GoodRtError(f"{where} must hold a JSON object, not a {type(value).__name__}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def different_names(
    found: Mapping[str, Any], wanted: Mapping[str, Any], within: str = ""
) -> list[str]:
    """The keys, sorted, at which two JSON objects differ; "a.b" is b within a."""
    names = []
    for name in sorted({*found, *wanted}):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += different_names(old, new, f"{within}{name}.")
        elif old != new:
            names.append(f"{within}{name}")
    return names
