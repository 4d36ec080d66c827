"""What a path holds: finds the kind of source and opens it."""

from __future__ import annotations

from pathlib import Path

from good_rt.data.sources.base import PARTS, ImageSource
from good_rt.data.sources.folder import FolderSource
from good_rt.data.sources.huggingface import HuggingFaceSource, find_files
from good_rt.data.sources.npz import NPZ_HINT, NpzSource
from good_rt.data.sources.webdataset import TAR_SUFFIXES, WebDatasetSource
from good_rt.errors import GoodRtError

KINDS = (
    "a folder per class, WebDataset shards (.tar), a Hugging Face dataset on disk, an .npz file, "
    "or train.npz, "
    "held_out.npz and test.npz"
)


def open_source(path: Path) -> ImageSource:
    """The source at a path. Raises GoodRtError when there is nothing, or nothing that is known."""
    if not path.exists():
        if path.suffix == ".npz":
            raise GoodRtError(f"{path} does not exist; {NPZ_HINT}")
        raise GoodRtError(f"{path} does not exist; give {KINDS}")
    source = _file(path) if path.is_file() else _folder(path)
    if source is None or not source.entries:
        raise GoodRtError(f"{path} holds no images that good-rt knows; give {KINDS}")
    return source


def _file(path: Path) -> ImageSource | None:
    if path.suffix == ".npz":
        return NpzSource.single(path)
    if path.name.endswith(TAR_SUFFIXES):
        return WebDatasetSource(path, (path,))
    if path.suffix == ".parquet":
        return HuggingFaceSource(path, ((path, None),))
    return None


def _folder(path: Path) -> ImageSource | None:
    if any((path / f"{part}.npz").exists() for part in PARTS):
        return NpzSource.parts(path)
    files = find_files(path)
    if files:
        return HuggingFaceSource(path, files)
    shards = sorted(
        found for found in path.rglob("*") if found.name.endswith(TAR_SUFFIXES) and found.is_file()
    )
    if shards:
        return WebDatasetSource(path, tuple(shards))
    single = sorted(path.glob("*.npz"))
    if len(single) == 1:
        return NpzSource.single(single[0])
    if len(single) > 1:
        raise GoodRtError(
            f"{path} holds several .npz files; call them train.npz, held_out.npz and test.npz"
        )
    pickles = sorted(found.name for found in path.iterdir() if found.suffix in {".pkl", ".pickle"})
    source = FolderSource(path)
    if pickles and not source.entries:
        raise GoodRtError(f"{path}: {pickles[0]} is a pickle and is not read; give {KINDS}")
    return source
