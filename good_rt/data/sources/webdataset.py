"""WebDataset: tar shards whose members KEY.jpg and KEY.cls make one sample. Read in place; nothing
is extracted."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from good_rt.data.image_files import MAX_BYTES, SUFFIXES
from good_rt.data.sources.base import PART_NAMES, Item, ListedImage, hash_of, numbered, part_in
from good_rt.errors import GoodRtError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_SUFFIXES = (".cls", ".cls.txt", ".label", ".json")
MAX_LABEL_BYTES = 2**20


@dataclass(frozen=True)
class WebDatasetSource:
    """``shards`` in order. A sample's class is its .cls (a number or name), ``label`` or ``cls`` in
    its .json, or the folder its image lies in inside the tar; ``classes.txt`` beside the shards
    names the numbers, a name a line."""

    path: Path
    shards: tuple[Path, ...]
    kind: str = "webdataset"

    @cached_property
    def _listed(
        self,
    ) -> tuple[tuple[str, ...] | None, tuple[ListedImage, ...], dict[Path, dict[str, int]]]:
        samples: list[tuple[Path, str, str | None]] = []
        for shard in self.shards:
            samples += ((shard, name, label) for name, label in _samples(shard))
        parts = self._parts()
        given = [label for _, _, label in samples if label is not None]
        if given and len(given) < len(samples):
            shard, name, _ = next(sample for sample in samples if sample[2] is None)
            raise GoodRtError(f"{shard}: {name} has no class, others have; add KEY.cls beside it")
        classes, index = self._classes(given)
        entries = tuple(
            ListedImage(
                f"{self._name(shard)}/{name}",
                None if label is None else index[label],
                parts.get(shard),
            )
            for shard, name, label in samples
        )
        places: dict[Path, dict[str, int]] = {}
        for row, (shard, name, _) in enumerate(samples):
            places.setdefault(shard, {})[name] = row
        return classes, entries, places

    def _classes(self, labels: list[str]) -> tuple[tuple[str, ...] | None, dict[str, int]]:
        numbers = numbered(labels)
        if numbers is None:
            classes = tuple(sorted(set(labels)))
            return classes, {name: label for label, name in enumerate(classes)}
        index = dict(zip(labels, numbers, strict=True))
        names = (self.path if self.path.is_dir() else self.path.parent) / "classes.txt"
        if not numbers or not names.exists():
            return None, index
        listed = tuple(line.strip() for line in names.read_text().splitlines() if line.strip())
        if max(numbers) >= len(listed):
            raise GoodRtError(
                f"{names} names {len(listed)} classes, the shards have a class {max(numbers)} "
                "(from 0)"
            )
        return listed, index

    def _name(self, shard: Path) -> str:
        return shard.relative_to(self.path).as_posix() if shard != self.path else shard.name

    def _parts(self) -> dict[Path, str]:
        """The shards' parts, by their folder or name, when every one has one and train is among
        them."""
        parts: dict[Path, str] = {}
        for shard in self.shards:
            folder = (
                PART_NAMES.get(shard.parent.name.lower()) if shard.parent != self.path else None
            )
            part = folder or part_in(shard.name.partition(".")[0])
            if part is None:
                return {}
            parts[shard] = part
        return parts if "train" in parts.values() and len(set(parts.values())) > 1 else {}

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self._listed[0]

    @property
    def entries(self) -> tuple[ListedImage, ...]:
        return self._listed[1]

    @cached_property
    def listing(self) -> str:
        return hash_of(f"{self._name(shard)} {shard.stat().st_size}" for shard in self.shards)

    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]:
        wanted = None if rows is None else set(rows)
        for shard, places in self._listed[2].items():
            left = {name: row for name, row in places.items() if wanted is None or row in wanted}
            if not left:
                continue
            for member, read in _members(shard):
                if member.name in left:
                    yield Item(left.pop(member.name), f"{shard}/{member.name}", read())
            if left:
                raise GoodRtError(f"{shard} has lost {min(left)} since it was listed; start again")


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, _Reader]]:
    """The regular files of a tar with functions that read them; names that lead outside and links
    are refused."""
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or every header is kept
                if member.isdir():
                    continue
                name = PurePosixPath(member.name)
                if not member.isreg() or name.is_absolute() or ".." in name.parts:
                    raise GoodRtError(
                        f"{shard}: {member.name!r} is no plain file, or leads outside; refused"
                    )
                yield member, _Reader(archive, member, shard)
            # a header cut short reads as the end of the tar, whose real end is a block of zeros
            assert archive.fileobj is not None
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE:
                raise GoodRtError(f"{shard} is cut short; get the shard again")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise GoodRtError(f"{shard} is not a tar file that can be read ({error})") from None


@dataclass(frozen=True)
class _Reader:
    archive: tarfile.TarFile
    member: tarfile.TarInfo
    shard: Path

    def __call__(self, largest: int = MAX_BYTES) -> bytes:
        if self.member.size > largest:
            raise GoodRtError(
                f"{self.shard}/{self.member.name} has more than {largest >> 20} MiB; refused"
            )
        file = self.archive.extractfile(self.member)
        content = b"" if file is None else file.read()
        if len(content) != self.member.size:
            raise GoodRtError(f"{self.shard}: {self.member.name} is cut short; get the shard again")
        return content


def _samples(shard: Path) -> list[tuple[str, str | None]]:
    """Name and class of every image of a shard, in order."""
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    for member, read in _members(shard):
        name = PurePosixPath(member.name)
        if name.name.startswith("."):
            continue
        stem, _, extension = name.name.partition(".")
        key, suffix = str(name.parent / stem), f".{extension.lower()}"
        if f".{suffix.rpartition('.')[2]}" in SUFFIXES:
            if key in images:
                raise GoodRtError(
                    f"{shard}: two images are called {key}; keys must be unique in a shard"
                )
            images[key] = member.name
        elif suffix in LABEL_SUFFIXES:
            label = _label(read(MAX_LABEL_BYTES), suffix, f"{shard}/{member.name}")
            if label is not None:
                labels[key] = label
    if not labels:
        # no labels beside the images: classes are folders inside the tar, where there are any
        folders = {key: PurePosixPath(key).parent.name for key in images}
        labels = {key: folder for key, folder in folders.items() if folder}
    return [(name, labels.get(key)) for key, name in images.items()]


def _label(content: bytes, suffix: str, name: str) -> str | None:
    try:
        text = content.decode().strip()
        if suffix == ".json":
            values = json.loads(text)
            value = next((values[key] for key in ("label", "cls", "class") if key in values), None)
            return None if value is None else str(value)
    except (ValueError, TypeError) as error:
        raise GoodRtError(f"{name} is not a class that can be read ({error})") from None
    if not text or len(text) > 200:
        raise GoodRtError(f"{name} must hold a class's number or name")
    return text
