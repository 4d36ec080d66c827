"""Image files in folders: a folder per class, perhaps below train/, val/ and test/; or a flat
folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from good_rt.data.image_files import MAX_BYTES, image_files, visible
from good_rt.data.sources.base import PART_NAMES, Item, ListedImage, hash_of
from good_rt.errors import GoodRtError


@dataclass(frozen=True)
class FolderSource:
    """Classes are the folders' names in alphabetical order; everything below a class's folder is of
    that class."""

    path: Path
    kind: str = "folder"

    @cached_property
    def _listed(self) -> tuple[tuple[str, ...] | None, tuple[ListedImage, ...]]:
        parts = self._parts()
        roots = (
            {self.path / name: part for name, part in parts.items()} if parts else {self.path: None}
        )
        named = {root: _folders(root) for root in roots}
        classes = sorted({folder.name for folders in named.values() for folder in folders})
        if not classes:
            entries = [
                ListedImage(self._name(file), None, part)
                for root, part in roots.items()
                for file in image_files(root)
            ]
            return None, tuple(entries)
        index = {name: label for label, name in enumerate(classes)}
        listed = [
            ListedImage(self._name(file), index[folder.name], part)
            for root, part in roots.items()
            for folder in named[root]
            for file in image_files(folder)
        ]
        filled = {entry.label for entry in listed}
        empty = [name for name, label in index.items() if label not in filled]
        if empty and listed:
            raise GoodRtError(
                f"{self.path}: class {empty[0]!r} has no images; add some, or remove its folder"
                + (f" (and {len(empty) - 1} more)" if len(empty) > 1 else "")
            )
        return tuple(classes), tuple(listed)

    def _parts(self) -> dict[str, str]:
        """Sub-folders that are parts of the data, by name: all of them are, and train is among
        them."""
        names = {folder.name: PART_NAMES.get(folder.name.lower()) for folder in _folders(self.path)}
        if "train" not in names.values() or None in names.values():
            return {}
        return {name: part for name, part in names.items() if part is not None}

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self._listed[0]

    @property
    def entries(self) -> tuple[ListedImage, ...]:
        return self._listed[1]

    @cached_property
    def listing(self) -> str:
        return hash_of(
            f"{entry.name} {(self.path / entry.name).stat().st_size}" for entry in self.entries
        )

    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]:
        for row in range(len(self.entries)) if rows is None else sorted(rows):
            path = self.path / self.entries[row].name
            try:
                if path.stat().st_size > MAX_BYTES:
                    raise GoodRtError(f"{path} has more than {MAX_BYTES >> 20} MiB; refused")
                content = path.read_bytes()
            except OSError as error:
                raise GoodRtError(f"{path} cannot be read ({error.strerror or error})") from None
            yield Item(row, str(path), content)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and visible(path))
