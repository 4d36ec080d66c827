"""Which image is for what: train, held_out or test, by a hash of its content, recorded in
splits.json.

Copies have one content, so they land in one part by construction, and only the first of them is
used. Where the data comes in parts already, they are kept, and a copy in two parts is an error.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from good_rt.config.settings import SplitConfig
from good_rt.data.image_files import DepthCheck
from good_rt.data.sources.base import PARTS, ImageSource, Item, hash_of
from good_rt.errors import GoodRtError
from good_rt.records import InnerPath, RecordType, drop_format

SPLITS_RECORD = RecordType("splits", "split again", (drop_format,))
Part = Literal["train", "held_out", "test"]
SPLITS_FILE = "splits.json"
SKIP_BAD_HINT = (
    "leave such images out with --skip-bad of `good-rt split` or `init`, or with skip_bad in a job "
    "file"
)
CHECK_SIZE = 8
"""Images are decoded to this size to see whether they can be."""


@dataclass(frozen=True)
class File:
    """Where an image went, and the hash of its content.

    Attributes:
        name: The image's name in the source.
        label: Its label, where it has one.
        part: train, held_out or test.
        digest: Hash of its content.
        copy: Whether an earlier image has the same content; then this one is not used.
    """

    name: str
    label: int | None
    part: str
    digest: str
    copy: bool = False


@dataclass(frozen=True)
class SplitSource:
    """The source in splits.json; its path is relative to the file."""

    path: str
    kind: str
    listing: str
    fingerprint: str


@dataclass(frozen=True)
class SplitsFields:
    """The keys of splits.json; ``files`` has the values of a `File` by row."""

    source: SplitSource
    config: SplitConfig
    given: bool
    classes: tuple[str, ...] | None
    skipped: tuple[str, ...]
    files: Mapping[str, tuple[InnerPath, int | None, Part, str, bool]]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    copies: int = 0


@dataclass(frozen=True)
class Splits:
    """The parts of a source.

    Attributes:
        source: The source's path.
        kind: The source's kind, such as npz.
        listing: Hash of the source's listing when it was split.
        config: Shares, seed and what happens to bad images.
        classes: Names of the labels, where the source has them.
        files: Images by the source's row.
        given: Whether the source came in parts.
        skipped: What was left out, and why.
    """

    source: Path
    kind: str
    listing: str
    config: SplitConfig
    classes: tuple[str, ...] | None
    files: Mapping[int, File]
    given: bool = False
    skipped: tuple[str, ...] = field(default=())

    def rows(self, part: str) -> list[int]:
        """The source's rows of a part, without copies.

        They are in the source's order where the parts were given, else shuffled by hash, so that
        the first rows are a fair sample.

        Args:
            part: train, held_out or test.
        """
        rows = [row for row, file in self.files.items() if file.part == part and not file.copy]
        return (
            rows
            if self.given
            else sorted(rows, key=lambda row: _rank(self.files[row].digest, self.config.seed))
        )

    @property
    def sizes(self) -> str:
        """The number of images that each part uses, to print."""
        return ", ".join(f"{len(self.rows(part))} {part}" for part in PARTS)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by part and class."""
        counters: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
        for file in self.files.values():
            if not file.copy:
                counters[file.part][self.class_name(file.label)] += 1
        return {part: dict(sorted(counter.items())) for part, counter in counters.items()}

    def class_name(self, label: int | None) -> str:
        if label is None:
            return "none"
        return (
            self.classes[label]
            if self.classes is not None and 0 <= label < len(self.classes)
            else str(label)
        )

    @property
    def fingerprint(self) -> str:
        """One hash of every content with its label and part."""
        return hash_of(
            f"{file.digest} {file.label} {file.part} {file.copy}" for file in self.files.values()
        )

    def write(self, path: Path) -> None:
        """Writes splits.json; the source's path is relative to it."""
        relative_path = os.path.relpath(self.source.resolve(), path.resolve().parent)
        SPLITS_RECORD.write(
            path,
            {
                "source": {
                    "path": relative_path,
                    "kind": self.kind,
                    "listing": self.listing,
                    "fingerprint": self.fingerprint,
                },
                "config": asdict(self.config),
                "given": self.given,
                "classes": None if self.classes is None else list(self.classes),
                "counts": self.counts(),
                "copies": sum(file.copy for file in self.files.values()),
                "skipped": list(self.skipped),
                "files": {
                    str(row): [f.name, f.label, f.part, f.digest, f.copy]
                    for row, f in self.files.items()
                },
            },
        )

    @classmethod
    def read(cls, path: Path) -> Splits:
        """Reads what `write` wrote.

        Raises:
            GoodRtError: the file is missing, damaged, or of a newer version.
        """
        values = SPLITS_RECORD.read_as(SplitsFields, path)
        for row in values.files:
            if not re.fullmatch(r"[0-9]{1,18}", row):
                raise SPLITS_RECORD.damaged(path, f"files has the row {row[:40]!r}")
        if "\0" in values.source.path:
            raise SPLITS_RECORD.damaged(path, "source.path is not a path")
        return cls(
            source=path.parent / values.source.path,
            kind=values.source.kind,
            listing=values.source.listing,
            config=values.config,
            classes=values.classes,
            files={int(row): File(*file) for row, file in values.files.items()},
            given=values.given,
            skipped=values.skipped,
        )

    def check_listing(self, source: ImageSource) -> None:
        """Checks that the source is still the one that was split.

        Raises:
            GoodRtError: files were added, removed, or have another name or size.
        """
        entries = source.entries
        same_names = all(
            row < len(entries) and entries[row].name == file.name
            for row, file in self.files.items()
        )
        if source.listing != self.listing or not same_names:
            raise GoodRtError(
                f"{source.path} has changed since it was split (files came, went, or have another "
                "name or size); split it again with `good-rt split`"
            )

    def check_content(self, item: Item) -> None:
        """Checks that an image's content is still the one that was split.

        Raises:
            GoodRtError: it has changed.
        """
        if item.digest() != self.files[item.row].digest:
            raise GoodRtError(
                f"{item.name} has changed since it was split; split again with `good-rt split`"
            )


def make_splits(
    source: ImageSource,
    config: SplitConfig = SplitConfig(),
    *,
    check: bool = False,
    before: Splits | None = None,
    on_item: Callable[[int], None] = lambda count: None,
) -> Splits:
    """Reads every image once, hashes it, and puts it into a part.

    Each class is divided in the order of the hashes, so that the same images always give the same
    parts.

    Args:
        source: Labelled images.
        config: Shares, seed and what happens to bad images.
        check: Also decodes every image, so that a bad one is refused now, or left out with
            ``config.skip_bad``.
        before: Earlier parts of the data before it grew; their images keep their part.
        on_item: Called for every image with 1.

    Raises:
        GoodRtError: an image is bad, or in two classes, or in two given parts, or a class has fewer
            than three images.
    """
    skipped, depth = list(source.left_out), DepthCheck()
    digests: dict[int, str] = {}
    rows: Iterable[Item] = source.items()
    for item in rows:
        try:
            if check or config.skip_bad:
                _check(item, depth)
            digest = item.digest()
        except GoodRtError as error:
            if not config.skip_bad:
                raise GoodRtError(f"{error} ({SKIP_BAD_HINT})") from None
            skipped.append(str(error))
        else:
            digests[item.row] = digest
        on_item(1)
    doubt = depth.doubt()
    if doubt is not None:
        raise GoodRtError(f"{source.path}: {doubt}")
    copies: dict[str, list[int]] = {}
    for row, digest in digests.items():
        copies.setdefault(digest, []).append(row)
    for digest, group in list(copies.items()):
        reason = _contradiction(source, group)
        if reason is None:
            continue
        if not config.skip_bad:
            raise GoodRtError(f"{reason}; keep one of them ({SKIP_BAD_HINT})")
        skipped.append(reason)
        del copies[digest]
    given = any(entry.part is not None for entry in source.entries)
    known = {} if before is None else {file.digest: file.part for file in before.files.values()}
    chosen = _given(source, copies, config) if given else _chosen(source, copies, config, known)
    files = {
        row: File(
            source.entries[row].name,
            source.entries[row].label,
            chosen[digest],
            digest,
            row != group[0],
        )
        for digest, group in copies.items()
        for row in group
    }
    return Splits(
        source=source.path,
        kind=source.kind,
        listing=source.listing,
        config=config,
        classes=source.classes,
        files=dict(sorted(files.items())),
        given=given,
        skipped=tuple(skipped),
    )


def _check(item: Item, depth: DepthCheck) -> None:
    """Decodes an image's file."""
    content = item.readable()
    if isinstance(content, bytes):
        item.image(3, CHECK_SIZE)
        depth.see(content, item.name)


def _contradiction(source: ImageSource, group: Sequence[int]) -> str | None:
    """What two copies of one image disagree on: their class, or the given part."""
    entries = [source.entries[row] for row in group]
    first = entries[0]
    for other in entries[1:]:
        more = [entry.name for entry in entries[1:] if entry is not other]
        also = f" (so are {', '.join(more)})" if more else ""
        names = f"{source.path}: {first.name} and {other.name} are the same image"
        if other.label != first.label:
            return f"{names} in two classes{also}"
        if other.part != first.part:
            return f"{names} in two parts of the data{also}"
    return None


def _rank(digest: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()


def _by_label(
    source: ImageSource, copies: Mapping[str, list[int]], seed: int
) -> dict[int | None, list[str]]:
    """The distinct contents of each class, in the order of their hashes."""
    digests_by_label: dict[int | None, list[str]] = {}
    for digest, group in sorted(copies.items(), key=lambda item: _rank(item[0], seed)):
        digests_by_label.setdefault(source.entries[group[0]].label, []).append(digest)
    return digests_by_label


def _chosen(
    source: ImageSource,
    copies: Mapping[str, list[int]],
    config: SplitConfig,
    known: Mapping[str, str],
) -> dict[str, str]:
    """Parts by content: every class first gives one image to each part, then to the part that lacks
    most, in the class and, where that is even, in all classes."""
    shares = {
        "train": 1 - config.held_out - config.test,
        "held_out": config.held_out,
        "test": config.test,
    }
    chosen: dict[str, str] = {}
    everywhere = dict.fromkeys(PARTS, 0)

    def lacking(part: str, counts: Mapping[str, int]) -> float:
        return round(shares[part] * (sum(counts.values()) + 1) - counts[part], 9)

    for label, digests in _by_label(source, copies, config.seed).items():
        if len(digests) < len(PARTS):
            name = (
                source.classes[label] if source.classes is not None and label is not None else label
            )
            raise GoodRtError(
                f"{source.path}: class {name!r} has {len(digests)} different "
                f"image{'s'[: len(digests) != 1]}; at least "
                f"{len(PARTS)} are needed, one to train with, one held out, one to test"
            )
        counts = dict.fromkeys(PARTS, 0)
        new = []
        for digest in digests:
            if digest in known:
                chosen[digest] = known[digest]
                counts[known[digest]] += 1
                everywhere[known[digest]] += 1
            else:
                new.append(digest)
        for digest in new:
            part = next((part for part in PARTS if counts[part] == 0), None)
            if part is None:
                lacks = {name: (lacking(name, counts), lacking(name, everywhere)) for name in PARTS}
                part = max(PARTS, key=lacks.__getitem__)
            chosen[digest] = part
            counts[part] += 1
            everywhere[part] += 1
    return chosen


def _given(
    source: ImageSource, copies: Mapping[str, list[int]], config: SplitConfig
) -> dict[str, str]:
    """The parts that the data came in. Where there is one beside train, its half becomes the part
    that is missing; .npz files are as they are called."""
    chosen = {digest: source.entries[group[0]].part or "train" for digest, group in copies.items()}
    given_parts = set(chosen.values())
    missing = [part for part in PARTS if part not in given_parts]
    if source.kind == "npz" or not missing or len(given_parts) == 1:
        return chosen
    if "train" in missing:
        raise GoodRtError(
            f"{source.path} has the parts {', '.join(sorted(given_parts))} but no train"
        )
    (absent,), (other,) = missing, given_parts - {"train"}
    counter: Counter[int | None] = Counter()
    for label, digests in _by_label(source, copies, config.seed).items():
        for digest in digests:
            if chosen[digest] == other:
                chosen[digest] = absent if counter[label] % 2 else other
                counter[label] += 1
    return chosen


def recorded_splits(path: Path) -> Splits | None:
    """The splits.json that the path is, or that lies in it; None where there is none."""
    if path.is_file() and path.suffix == ".json":
        return Splits.read(path)
    return Splits.read(path / SPLITS_FILE) if (path / SPLITS_FILE).exists() else None
