"""WebDataset: tar shards whose members KEY.jpg and KEY.cls make one sample. Read in place; nothing
is extracted."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from good_rt.data.folder_tree import (
    HIDDEN,
    NO_DECODER,
    OTHER_KIND,
    LeftOut,
    ending_of,
    left_out_lines,
    merged,
    visible,
)
from good_rt.data.formats import IMAGE_ENDINGS, readable_endings
from good_rt.data.image_files import too_many_bytes
from good_rt.data.limits import limits_now
from good_rt.data.sources.base import (
    PART_NAMES,
    Item,
    ListedImage,
    content_or_error,
    hash_of,
    numbered,
    part_in,
)
from good_rt.errors import GoodRtError
from good_rt.files import read_text

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_SUFFIXES = (".cls", ".cls.txt", ".label", ".json")
MAX_LABEL_BYTES = 2**20
OTHER_FIELDS = "further images of samples"


@dataclass(frozen=True)
class WebDatasetSource:
    """``shards`` in order. A sample's class is its .cls (a number or name), ``label`` or ``cls`` in
    its .json, or the folder its image lies in inside the tar; ``classes.txt`` beside the shards
    names the numbers, a name a line. Of several images of a sample, that without a name of its own
    after the key is taken: KEY.jpg, not KEY.seg.png."""

    path: Path
    shards: tuple[Path, ...]
    kind: str = "webdataset"

    @cached_property
    def _listed(self) -> _Listed:
        contents = {shard: _shard_content(shard) for shard in self.shards}
        field_name = _image_field(contents)
        samples: list[tuple[Path, str, str | None]] = []
        left_out: list[LeftOut] = []
        for shard, content in contents.items():
            chosen, others = content.chosen(field_name)
            samples += ((shard, name, label) for name, label in chosen)
            left_out.append(others)
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
        return _Listed(classes, entries, places, left_out_lines(merged(*left_out)))

    def _classes(self, labels: list[str]) -> tuple[tuple[str, ...] | None, dict[str, int]]:
        numbers = numbered(labels)
        if numbers is None:
            classes = tuple(sorted(set(labels)))
            return classes, {name: label for label, name in enumerate(classes)}
        index = dict(zip(labels, numbers, strict=True))
        names = (self.path if self.path.is_dir() else self.path.parent) / "classes.txt"
        if not numbers or not names.exists():
            return None, index
        listed = tuple(line.strip() for line in read_text(names).split("\n") if line.strip())
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
        return self._listed.classes

    @property
    def entries(self) -> tuple[ListedImage, ...]:
        return self._listed.entries

    @property
    def left_out(self) -> tuple[str, ...]:
        return self._listed.left_out

    @cached_property
    def listing(self) -> str:
        return hash_of(f"{self._name(shard)} {shard.stat().st_size}" for shard in self.shards)

    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]:
        wanted = None if rows is None else set(rows)
        for shard, places in self._listed.places.items():
            left = {name: row for name, row in places.items() if wanted is None or row in wanted}
            if not left:
                continue
            for member, read in _members(shard):
                if member.name in left:
                    row = left.pop(member.name)
                    yield Item(row, f"{shard}/{member.name}", content_or_error(read))
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

    def __call__(self) -> bytes:
        if self.member.size > limits_now().max_bytes:
            raise too_many_bytes(f"{self.shard}/{self.member.name}")
        file = self.archive.extractfile(self.member)
        content = b"" if file is None else file.read()
        if len(content) != self.member.size:
            raise GoodRtError(f"{self.shard}: {self.member.name} is cut short; get the shard again")
        return content


@dataclass(frozen=True)
class _Listed:
    """What the shards hold; ``places`` are the rows of images by their names in a shard."""

    classes: tuple[str, ...] | None
    entries: tuple[ListedImage, ...]
    places: dict[Path, dict[str, int]]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _ShardContent:
    """The members of a shard: the images of each key by their field, such as jpg or seg.png, and
    the labels by key."""

    shard: Path
    images: dict[str, dict[str, str]]
    labels: dict[str, str]
    left_out: LeftOut

    def chosen(self, field_name: str | None) -> tuple[list[tuple[str, str | None]], LeftOut]:
        """Name and class of every sample's image, in order, and what is left out.

        Args:
            field_name: The field that all images are of; None where each key has one image.
        """
        labels = self.labels
        if not labels:
            # no labels beside the images: classes are folders inside the tar, where there are any
            folders = {key: PurePosixPath(key).parent.name for key in self.images}
            labels = {key: folder for key, folder in folders.items() if folder}
        chosen: list[tuple[str, str | None]] = []
        others: list[str] = []
        for key, by_field in self.images.items():
            for own, name in by_field.items():
                if field_name is None or _name_of_field(own) == field_name:
                    chosen.append((name, labels.get(key)))
                else:
                    others.append(f"{self.shard.name}/{name}")
        return chosen, merged(self.left_out, {OTHER_FIELDS: others})


def _name_of_field(field: str) -> str:
    """The name of an image's field without its ending: seg of seg.png, "" of jpg."""
    return field.rpartition(".")[0]


def _image_field(contents: Mapping[Path, _ShardContent]) -> str | None:
    """The name of the field that holds the image where a key has several: the one without a name of
    its own; None where every key has one image."""
    samples = [
        (shard, key, list(by_field))
        for shard, content in contents.items()
        for key, by_field in content.images.items()
    ]
    if all(len(fields) == 1 for _, _, fields in samples):
        return None
    names = sorted({_name_of_field(field) for _, _, fields in samples for field in fields})
    if len(names) > 1 and names[0] != "":
        raise GoodRtError(
            f"{samples[0][0]}: samples have several images (KEY.{names[0]} and KEY.{names[1]}), "
            "since a key ends at the first dot of a name; call the image to use KEY.jpg or KEY.png"
        )
    for shard, key, fields in samples:
        of_name = [field for field in fields if _name_of_field(field) == names[0]]
        if len(of_name) > 1:
            raise GoodRtError(
                f"{shard}: {key}.{of_name[0]} and {key}.{of_name[1]} are two images of one sample; "
                "leave one out"
            )
    return names[0]


def has_image_member(shard: Path) -> bool:
    """Whether a tar holds an image.

    Raises:
        GoodRtError: it cannot be read.
    """
    return any(ending_of(member.name) in IMAGE_ENDINGS for member, _ in _members(shard))


def _shard_content(shard: Path) -> _ShardContent:
    """The members of a shard."""
    content = _ShardContent(shard, {}, {}, {})
    for member, read in _members(shard):
        name = PurePosixPath(member.name)
        stem, _, extension = name.name.partition(".")
        key, suffix = str(name.parent / stem), f".{extension.lower()}"
        ending = ending_of(member.name)
        reason = None
        if not all(map(visible, name.parts)):
            reason = HIDDEN if ending in IMAGE_ENDINGS else None
        elif ending in readable_endings():
            images = content.images.setdefault(key, {})
            if suffix[1:] in images:
                raise GoodRtError(
                    f"{shard}: two images are called {member.name}; names must be unique in a shard"
                )
            images[suffix[1:]] = member.name
        elif suffix in LABEL_SUFFIXES:
            label = _label(_label_bytes(member, read), suffix, f"{shard}/{member.name}")
            if label is not None:
                content.labels[key] = label
        else:
            reason = NO_DECODER if ending in IMAGE_ENDINGS else OTHER_KIND
        if reason is not None:
            content.left_out.setdefault(reason, []).append(f"{shard.name}/{member.name}")
    return content


def _label_bytes(member: tarfile.TarInfo, read: _Reader) -> bytes:
    if member.size > MAX_LABEL_BYTES:
        raise GoodRtError(
            f"{read.shard}/{member.name} has more than {MAX_LABEL_BYTES >> 20} MiB; refused"
        )
    return read()


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
