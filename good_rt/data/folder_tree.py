"""What lies in a folder: the user's images in order, other files, and what is left out and why.

Every part of good-rt that looks for files in a folder of the user's does it here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from good_rt.data.formats import IMAGE_ENDINGS, readable_endings

SET_MANIFEST, CONTACT_SHEET = "manifest.jsonl", "contact_sheet.png"
"""Files of a generated set, beside its folder of images."""
SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found"}
    | {"system volume information", "#snapshot", "@recently-snapshot"}
)
"""Folders that operating systems and network storage make, in lower case."""
CONTAINER_ENDINGS = (".npz", ".parquet", ".tar", ".tar.gz", ".tgz")
"""Endings of files that may hold many images."""
SHOWN_NAMES = 3
HIDDEN = "hidden images, and images in hidden folders or the system's"
BROKEN_LINK = "links that lead nowhere"
SPECIAL = "pipes and devices"
OTHER_KIND = "files of other kinds"
NO_DECODER = "images without a decoder here (for .heic: pip install pillow-heif)"
UNASKED = "files that may hold many images"
SHEET = "contact sheets of generated images"
REPEATED = "linked folders that are looked at already"
UNOPENED = "folders that cannot be opened"

LeftOut = dict[str, list[str]]
"""Names of what is left out, by the reason."""


@dataclass(frozen=True)
class FolderTree:
    """The files below a folder, by their paths within it, sorted.

    Attributes:
        images: Image files that can be decoded here.
        containers: Files that may hold many images.
        left_out: All other images, and files of other kinds.
    """

    images: tuple[str, ...]
    containers: tuple[str, ...]
    left_out: LeftOut


def folder_tree(folder: Path) -> FolderTree:
    """Looks through a folder and all folders in it, linked ones among them.

    Hidden files and folders are left out at any depth, and so is what is no file; of a generated
    set its contact sheet.

    Args:
        folder: The folder, which may itself be hidden.

    Raises:
        OSError: the folder cannot be opened.
    """
    walk = _Walk(str(folder))
    return FolderTree(_ordered(walk.images), _ordered(walk.containers), walk.left_out)


def text_of(name: str) -> str:
    """A file's name as text in UTF-8, whatever the locale says that its bytes mean."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def path_in(folder: Path, name: str) -> Path:
    """The path of a name that `text_of` gave, perhaps with folders in it."""
    return folder / os.fsdecode(name.encode("utf-8", "surrogateescape"))


def visible(name: str) -> bool:
    """Whether a file or folder of this name is the user's and not the system's."""
    return not name.startswith(".") and name.casefold() not in SYSTEM_FOLDERS


def left_out_lines(left_out: LeftOut) -> tuple[str, ...]:
    """A line for each reason: how many there are, and the names of some."""
    return tuple(_line(reason, names) for reason, names in left_out.items() if names)


def merged(*parts: LeftOut) -> LeftOut:
    """All that several parts of the work left out, by reason."""
    together: LeftOut = {}
    for part in parts:
        for reason, names in part.items():
            together.setdefault(reason, []).extend(names)
    return together


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, with the dot; "" for none."""
    return PurePosixPath(name).suffix.lower()


def _line(reason: str, names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN_NAMES]) + ", ..." * (len(names) > SHOWN_NAMES)
    if reason == OTHER_KIND:
        endings = sorted({ending_of(name) or "no ending" for name in names})
        shown = f"{', '.join(endings)}, such as {shown}"
    return f"{reason}: {len(names)} ({shown})"


def _ordered(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: name.split("/")))


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; a link to itself is of none."""
    try:
        return kind()
    except OSError:
        return False


class _Walk:
    """One look through a folder: plain folders first, then linked ones.

    Each folder is entered once within the same two outer folders (which may be a part and a class),
    so that no loop of links is endless.
    """

    def __init__(self, root: str) -> None:
        self.images: list[str] = []
        self.containers: list[str] = []
        self.left_out: LeftOut = {}
        self._seen: set[tuple[object, ...]] = set()
        self._plain: deque[tuple[str, str, bool]] = deque()
        self._linked: deque[tuple[str, str, bool]] = deque()
        self._enter(root, "", hidden=False)
        while self._plain or self._linked:
            path, name, hidden = (self._plain or self._linked).popleft()
            try:
                self._enter(path, name, hidden)
            except OSError:
                self._leave_out(UNOPENED, name)

    def _enter(self, path: str, name: str, hidden: bool) -> None:
        status = os.stat(path)
        key = (*name.split("/")[:2], status.st_dev, status.st_ino)
        if key in self._seen or (status.st_dev, status.st_ino) in self._above(path, name):
            self._leave_out(REPEATED, name)
            return
        self._seen.add(key)
        with os.scandir(path) as entries:
            listed = {entry.name: entry for entry in entries}
        for entry in listed.values():
            own_name = text_of(entry.name)
            inner = f"{name}/{own_name}" if name else own_name
            covered = hidden or not visible(entry.name)
            if _is(entry.is_dir):
                queue = self._linked if entry.is_symlink() else self._plain
                queue.append((entry.path, inner, covered))
            elif entry.name == CONTACT_SHEET and SET_MANIFEST in listed:
                self._leave_out(SHEET, inner)
            else:
                self._file(entry, inner, covered)

    def _file(self, entry: os.DirEntry[str], name: str, hidden: bool) -> None:
        ending = ending_of(name)
        is_image, is_container = ending in IMAGE_ENDINGS, name.lower().endswith(CONTAINER_ENDINGS)
        if hidden:
            if is_image or is_container:
                self._leave_out(HIDDEN, name)
        elif not _is(entry.is_file):
            is_broken = entry.is_symlink() and not os.path.exists(entry.path)
            self._leave_out(BROKEN_LINK if is_broken else SPECIAL, name)
        elif ending in readable_endings():
            self.images.append(name)
        elif is_container:
            self.containers.append(name)
        else:
            self._leave_out(NO_DECODER if is_image else OTHER_KIND, name)

    def _above(self, path: str, name: str) -> set[tuple[int, int]]:
        """The folders that a linked folder lies in."""
        if not os.path.islink(path):
            return set()
        above = set()
        for _ in name.split("/"):
            path = os.path.dirname(path)
            status = os.stat(path)
            above.add((status.st_dev, status.st_ino))
        return above

    def _leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)
