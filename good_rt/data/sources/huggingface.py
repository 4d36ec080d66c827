"""Hugging Face datasets on disk: what `Dataset.save_to_disk` writes (Arrow), or a folder of Parquet
files.

Read with pyarrow, record batch by record batch; no script of the dataset is run, and nothing is
unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from good_rt.data.sources.base import PART_NAMES, Item, ListedImage, hash_of, part_in
from good_rt.errors import GoodRtError, first_line, require
from good_rt.files import read_json

UNSAFE_SUFFIXES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin"})
ROWS = 64
"""Rows of a Parquet file that are held at once."""


@dataclass(frozen=True)
class HuggingFaceSource:
    """``files`` in order, each with the split it is of (None for a dataset without splits)."""

    path: Path
    files: tuple[tuple[Path, str | None], ...]
    kind: str = "huggingface"

    @cached_property
    def _columns(self) -> tuple[str, str | None, tuple[str, ...] | None]:
        """The columns of images and labels, and the labels' names."""
        file = self.files[0][0]
        schema = _schema(file)
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features: Mapping[str, Any] = info.get("info", {}).get("features", {})
        image = next((n for n, f in features.items() if _type(f) == "Image"), None) or _guess_image(
            schema
        )
        if image is None:
            raise GoodRtError(f"{file} has no column of images; it has {', '.join(schema.names)}")
        named = {name: f for name, f in features.items() if _type(f) == "ClassLabel"}
        label = "label" if "label" in named else next(iter(named), None)
        if label is not None:
            names = named[label].get("names")
            return image, label, tuple(names) if names else None
        return (
            image,
            next((name for name in ("label", "labels", "cls") if name in schema.names), None),
            None,
        )

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self._columns[2]

    @cached_property
    def entries(self) -> tuple[ListedImage, ...]:
        _, column, _ = self._columns
        # a split that no part is named after is of none; parts count when there are several
        parts = {
            split: PART_NAMES.get(split.lower()) for _, split in self.files if split is not None
        }
        known = (
            None not in parts.values()
            and "train" in parts.values()
            and len(set(parts.values())) > 1
        )
        found: list[ListedImage] = []
        counts: dict[str | None, int] = {}
        for file, split in self.files:
            for batch in _batches(file, None if column is None else [column]):
                labels = [None] * batch.num_rows if column is None else batch.column(0).to_pylist()
                for label in labels:
                    row = counts.get(split, 0)
                    counts[split] = row + 1
                    name = f"{split or 'row'}[{row}]"
                    if label is not None and not isinstance(label, int):
                        raise GoodRtError(
                            f"{self.path}: {name} has the label {label!r}; labels must be whole "
                            "numbers"
                        )
                    found.append(
                        ListedImage(
                            name, label, parts[split] if known and split is not None else None
                        )
                    )
        return tuple(found)

    @cached_property
    def listing(self) -> str:
        return hash_of(
            f"{file.relative_to(self.path)} {file.stat().st_size}" for file, _ in self.files
        )

    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]:
        image, _, _ = self._columns
        wanted = None if rows is None else set(rows)
        first = 0
        for file, _ in self.files:
            for batch in _batches(file, [image]):
                chosen = [i for i in range(batch.num_rows) if wanted is None or first + i in wanted]
                for i in chosen:
                    name = f"{self.path}/{self.entries[first + i].name}"
                    yield Item(first + i, name, _content(batch.column(0)[i].as_py(), name))
                first += batch.num_rows


def find_files(folder: Path) -> tuple[tuple[Path, str | None], ...]:
    """The data files of a dataset with their splits, in order; empty when the folder holds no such
    dataset."""
    if (folder / "dataset_dict.json").exists():
        splits = read_json(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(
            isinstance(s, str) and Path(s).name == s for s in splits
        ):
            raise GoodRtError(
                f"{folder / 'dataset_dict.json'} does not list the splits; save the dataset again"
            )
        return tuple((file, split) for split in splits for file in _arrow_files(folder / split))
    if (folder / "state.json").exists():
        return tuple((file, None) for file in _arrow_files(folder))
    parquet = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    return tuple((path, _split_of(path, folder)) for path in parquet)


def _arrow_files(folder: Path) -> list[Path]:
    state = read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise GoodRtError(
            f"{folder} has an indices mapping; call flatten_indices() on the dataset and save it "
            "again"
        )
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise GoodRtError(
            f"{folder / 'state.json'} does not list the data files; save the dataset again"
        ) from None
    for name in names:
        if Path(name).name != name or Path(name).suffix in UNSAFE_SUFFIXES:
            raise GoodRtError(
                f"{folder / 'state.json'} names {name!r}, which is no Arrow file in this folder; "
                "refused"
            )
    return [folder / name for name in names]


def _split_of(path: Path, folder: Path) -> str | None:
    """A Parquet file's split: the folder or the word in its name that is called so."""
    inside = path.relative_to(folder)
    for word in (*inside.parts[:-1], path.stem):
        part = PART_NAMES.get(word.lower()) or part_in(word)
        if part is not None:
            return part
    return None


def _type(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _guess_image(schema: Any) -> str | None:
    """The column of {bytes, path} structs, in files without Hugging Face's own description."""
    types = require("pyarrow", "datasets").types
    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    return None


def _content(value: object, name: str) -> bytes:
    if isinstance(value, bytes):
        return value
    content = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(content, bytes):
        raise GoodRtError(
            f"{name} is not embedded in the dataset, which names a file instead; save it again "
            "with "
            "embedded images, or give the folder of files"
        )
    return content


def _schema(file: Path) -> Any:
    pyarrow = require("pyarrow", "datasets")
    try:
        if file.suffix == ".parquet":
            return require("pyarrow.parquet", "datasets").read_schema(file)
        with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as reader:
            return reader.schema
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(file, error) from None


def _batches(file: Path, columns: list[str] | None) -> Iterator[Any]:
    """Record batches with these columns (None: no column is needed, only the number of rows)."""
    pyarrow = require("pyarrow", "datasets")
    try:
        if file.suffix == ".parquet":
            opened = require("pyarrow.parquet", "datasets").ParquetFile(file)
            yield from opened.iter_batches(ROWS, columns=columns)
            return
        with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as reader:
            for batch in reader:
                yield batch if columns is None else batch.select(columns)
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> GoodRtError:
    return GoodRtError(f"{file} is not a file of a dataset that can be read ({first_line(error)})")
