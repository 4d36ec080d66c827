"""Image files in folders: a folder per class, perhaps below train/, val/ and test/; or a flat
folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from good_rt.data.folder_tree import (
    FolderTree,
    LeftOut,
    folder_tree,
    left_out_lines,
    merged,
    path_in,
    text_of,
    visible,
)
from good_rt.data.image_files import read_image_file
from good_rt.data.sources.base import (
    PART_NAMES,
    Item,
    ListedImage,
    content_or_error,
    hash_of,
)
from good_rt.errors import GoodRtError

BESIDE_CLASSES = "images beside the folders of classes"


@dataclass(frozen=True)
class FolderSource:
    """Classes are the folders' names in alphabetical order; everything below a class's folder is of
    that class. ``strays`` are files of other kinds of source, by the reason why they are none."""

    path: Path
    kind: str = "folder"
    strays: LeftOut = field(default_factory=dict)

    @cached_property
    def tree(self) -> FolderTree:
        """What lies in the folder."""
        return folder_tree(self.path)

    @cached_property
    def _listed(self) -> tuple[tuple[str, ...] | None, tuple[ListedImage, ...], LeftOut]:
        parts = self._parts()
        roots: Mapping[str, str | None] = parts or {"": None}
        classes = sorted({name for root in roots for name in _folders(path_in(self.path, root))})
        index = {name: label for label, name in enumerate(classes)}
        listed: list[ListedImage] = []
        beside: list[str] = []
        for name in self.tree.images:
            root, _, inside = name.partition("/") if parts else ("", "", name)
            folder, slash, _ = inside.partition("/")
            if slash:
                listed.append(ListedImage(name, index[folder], roots[root]))
            else:
                beside.append(name)
        if not listed:  # flat: the folders hold something else
            entries = (
                ListedImage(name, None, parts.get(name.partition("/")[0])) for name in beside
            )
            return None, tuple(entries), {}
        self._check_filled(index, listed, beside)
        return tuple(classes), tuple(listed), {BESIDE_CLASSES: beside}

    def _check_filled(
        self, index: dict[str, int], listed: list[ListedImage], beside: list[str]
    ) -> None:
        """Refuses what may be meant as a flat folder, and classes without images."""
        if len(beside) > len(listed):
            raise GoodRtError(
                f"{self.path} has {len(beside)} images beside its folders (such as {beside[0]}) "
                f"and {len(listed)} in them: for images without classes, move the folders "
                f"{', '.join(index)} away; for a folder per class, move each image into its "
                "class's folder"
            )
        filled = {entry.label for entry in listed}
        empty = [name for name, label in index.items() if label not in filled]
        if empty:
            lines = "; ".join(left_out_lines(self.tree.left_out))
            raise GoodRtError(
                f"{self.path}: class {empty[0]!r} has no images; add some, or remove its folder"
                + (f" (and {len(empty) - 1} more)" if len(empty) > 1 else "")
                + (f" (skipped: {lines})" if lines else "")
            )

    def _parts(self) -> dict[str, str]:
        """Sub-folders that are parts of the data, by name: all of them are, and train is among
        them."""
        names = {name: PART_NAMES.get(name.lower()) for name in _folders(self.path)}
        parts = {name: part for name, part in names.items() if part is not None}
        if "train" not in parts.values():
            return {}
        others = sorted(names.keys() - parts.keys())
        if others and len(set(parts.values())) > 1:
            raise GoodRtError(
                f"{self.path} has the folders {', '.join(parts)}, which are parts of the data, and "
                f"{', '.join(others)}: move the latter away; or, if all are classes, put them into "
                "a folder train/"
            )
        return {} if others else parts

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self._listed[0]

    @property
    def entries(self) -> tuple[ListedImage, ...]:
        return self._listed[1]

    @property
    def left_out(self) -> tuple[str, ...]:
        return left_out_lines(merged(self._listed[2], self.strays, self.tree.left_out))

    @cached_property
    def listing(self) -> str:
        return hash_of(
            f"{entry.name} {_size_of(path_in(self.path, entry.name))}" for entry in self.entries
        )

    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]:
        for row in range(len(self.entries)) if rows is None else sorted(rows):
            path = path_in(self.path, self.entries[row].name)
            yield Item(row, str(path), content_or_error(partial(read_image_file, path)))


def _folders(folder: Path) -> list[str]:
    return sorted(
        text_of(path.name) for path in folder.iterdir() if path.is_dir() and visible(path.name)
    )


def _size_of(path: Path) -> int | None:
    """A file's size; None for one that has vanished, which is named when it is read."""
    try:
        return path.stat().st_size
    except OSError:
        return None
