"""What a path holds: finds the kind of source and opens it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from good_rt.data.folder_tree import OTHER_KIND, LeftOut, path_in
from good_rt.data.sources.base import PARTS, ImageSource
from good_rt.data.sources.folder import FolderSource
from good_rt.data.sources.huggingface import (
    HuggingFaceSource,
    has_image_column,
    parquet_files,
    saved_files,
)
from good_rt.data.sources.npz import NPZ_HINT, NpzSource, has_image_array
from good_rt.data.sources.webdataset import TAR_SUFFIXES, WebDatasetSource, has_image_member
from good_rt.errors import GoodRtError

KINDS = (
    "a folder per class, WebDataset shards (.tar), a Hugging Face dataset on disk, an .npz file, "
    "or train.npz, "
    "held_out.npz and test.npz"
)


def open_source(path: Path) -> ImageSource:
    """The source at a path.

    A folder that can be read in two ways, such as images in folders beside WebDataset shards, is
    refused. Files beside a source that only look like another one are left out.

    Args:
        path: A folder per class, .tar shards, a Hugging Face dataset on disk, or .npz files.

    Raises:
        GoodRtError: there is nothing, no images of a known kind, or more than one kind.
    """
    if not path.exists():
        if path.suffix == ".npz":
            raise GoodRtError(f"{path} does not exist; {NPZ_HINT}")
        raise GoodRtError(f"{path} does not exist; give {KINDS}")
    source = _folder(path) if path.is_dir() else _file(path)
    if source is None or not source.entries:
        lines = () if source is None else source.left_out
        skipped = f" (skipped: {'; '.join(lines)})" if lines else ""
        raise GoodRtError(f"{path} holds no images that good-rt knows{skipped}; give {KINDS}")
    return source


def _file(path: Path) -> ImageSource | None:
    if not path.is_file():
        raise GoodRtError(f"{path} is a pipe or device, not a file; give {KINDS}")
    if path.suffix == ".npz":
        return NpzSource.single(path)
    if path.name.endswith(TAR_SUFFIXES):
        return WebDatasetSource(path, (path,))
    if path.suffix == ".parquet":
        return HuggingFaceSource(path, ((path, None),))
    return None


@dataclass(frozen=True)
class _Container:
    """A kind of file that may hold many images: which files those are, whether one does (an error
    where it cannot be read), and the source of some in a folder."""

    endings: tuple[str, ...]
    has_images: Callable[[Path], bool]
    source: Callable[[Path, Sequence[Path]], ImageSource]


def _arrays(folder: Path, files: Sequence[Path]) -> ImageSource:
    if any(file.stem in PARTS for file in files):
        return NpzSource.parts(folder)
    if len(files) > 1:
        raise GoodRtError(
            f"{folder} holds several .npz files; call them train.npz, held_out.npz and test.npz"
        )
    return NpzSource.single(files[0])


CONTAINERS = (
    _Container((".npz",), has_image_array, _arrays),
    _Container(
        (".parquet",),
        has_image_column,
        lambda folder, files: HuggingFaceSource(folder, parquet_files(folder, files)),
    ),
    _Container(
        TAR_SUFFIXES,
        has_image_member,
        lambda folder, files: WebDatasetSource(folder, tuple(files)),
    ),
)


def _folder(path: Path) -> ImageSource:
    folder, strays = FolderSource(path), _Strays()
    readings: dict[str, ImageSource] = {}
    saved = saved_files(path)
    if saved:
        readings["a saved dataset"] = HuggingFaceSource(path, saved)
    for container in CONTAINERS:
        names = [name for name in folder.tree.containers if name.endswith(container.endings)]
        files = strays.remaining(path, names, container)
        if files:
            shown = str(files[0].relative_to(path))
            readings[shown] = container.source(path, files)
    if folder.tree.images or not readings:
        images = folder.tree.images
        folder = FolderSource(path, strays=strays.left_out)
        if images:
            readings[f"{len(images)} image files (such as {images[0]})"] = folder
    if len(readings) > 1:
        first, second = list(readings)[:2]
        raise GoodRtError(
            f"{path} holds {second} and {first}, either of which could be meant; move one of them "
            "to another folder, or give the path of the one to use"
        )
    if readings:
        return next(iter(readings.values()))
    if strays.errors:
        raise strays.errors[0]
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in {".pkl", ".pickle"})
    if pickles:
        raise GoodRtError(f"{path}: {pickles[0]} is a pickle and is not read; give {KINDS}")
    return folder


class _Strays:
    """Files that look like a source and are none."""

    def __init__(self) -> None:
        self.left_out: LeftOut = {}
        self.errors: list[GoodRtError] = []

    def remaining(self, path: Path, names: Sequence[str], container: _Container) -> list[Path]:
        """The files that hold images. One that cannot be read is a stray only where no other of its
        kind holds images, else its error is raised."""
        files: list[Path] = []
        errors: dict[str, GoodRtError] = {}
        for name in names:
            if container.source is _arrays and "/" in name:
                self._add(OTHER_KIND, name)
                continue
            try:
                if container.has_images(path_in(path, name)):
                    files.append(path_in(path, name))
                else:
                    self._add("files without images", name)
            except GoodRtError as error:
                errors[name] = error
        if files and errors:
            raise next(iter(errors.values()))
        for name in errors:
            self._add("files that cannot be read", name)
        self.errors += errors.values()
        return files

    def _add(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)
