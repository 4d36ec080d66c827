"""Hugging Face datasets on disk: what `Dataset.save_to_disk` writes (Arrow), or a folder of Parquet
files.

Read with pyarrow, record batch by record batch; no script of the dataset is run, and nothing is
unpickled.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from good_rt.data.image_files import image_header
from good_rt.data.sources.base import (
    PART_NAMES,
    Item,
    ListedImage,
    content_or_error,
    hash_of,
    numbered,
    part_in,
)
from good_rt.errors import GoodRtError, first_line, require
from good_rt.files import read_json

UNSAFE_SUFFIXES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin"})
IMAGE_NAMES = ("image", "img", "images", "picture", "jpg", "png")
"""Names of the column that holds the image, where others hold images as well."""
LABEL_NAMES = ("label", "labels", "cls", "class", "category", "target")
"""Names of the column of labels, where the dataset does not describe it."""
ROWS = 64
"""Rows of a Parquet file that are held at once."""


@dataclass(frozen=True)
class HuggingFaceSource:
    """``files`` in order, each with the split it is of (None for a dataset without splits).

    Labels are whole numbers, which the dataset may name, or texts, which are then the classes in
    alphabetical order.
    """

    path: Path
    files: tuple[tuple[Path, str | None], ...]
    kind: str = "huggingface"

    @property
    def left_out(self) -> tuple[str, ...]:
        return ()

    @cached_property
    def columns(self) -> DatasetColumns:
        """The columns of images and labels.

        Raises:
            GoodRtError: there is no column of images, or several could be meant.
        """
        return _columns_of(self.files[0][0])

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self._listed[0]

    @property
    def entries(self) -> tuple[ListedImage, ...]:
        return self._listed[1]

    @cached_property
    def _listed(self) -> tuple[tuple[str, ...] | None, tuple[ListedImage, ...]]:
        # a split that no part is named after is of none; parts count when there are several
        parts = {
            split: PART_NAMES.get(split.lower()) for _, split in self.files if split is not None
        }
        known = (
            None not in parts.values()
            and "train" in parts.values()
            and len(set(parts.values())) > 1
        )
        names: list[tuple[str, str | None]] = []
        values: list[object] = []
        counts: dict[str | None, int] = {}
        for file, split in self.files:
            part = parts[split] if known and split is not None else None
            for value in self._label_values(file):
                row = counts.get(split, 0)
                counts[split] = row + 1
                names.append((f"{split or 'row'}[{row}]", part))
                values.append(value)
        classes, labels = self._labels(values, [name for name, _ in names])
        listed = zip(names, labels, strict=True)
        return classes, tuple(ListedImage(name, label, part) for (name, part), label in listed)

    def _label_values(self, file: Path) -> Iterator[object]:
        column = self.columns.label
        for batch in _batches(file, None if column is None else [column]):
            yield from [None] * batch.num_rows if column is None else batch.column(0).to_pylist()

    def _labels(
        self, values: Sequence[object], names: Sequence[str]
    ) -> tuple[tuple[str, ...] | None, list[int | None]]:
        """The names of the labels, and the labels as numbers."""
        texts = [value for value in values if isinstance(value, str)]
        if texts:
            numbers = numbered(texts)
            classes = tuple(sorted(set(texts))) if numbers is None else None
            index = (
                {name: label for label, name in enumerate(classes)}
                if classes is not None
                else dict(zip(texts, numbers or (), strict=True))
            )
        else:
            classes, index = self.columns.classes, {}
        labels: list[int | None] = []
        for value, name in zip(values, names, strict=True):
            if isinstance(value, str):
                labels.append(index[value])
            elif value is None or (isinstance(value, int) and not texts):
                labels.append(value if value is None else int(value))
            else:
                raise GoodRtError(
                    f"{self.path}: {name} has the label {value!r}; labels must be whole numbers, "
                    "or all be texts"
                )
        return classes, labels

    @cached_property
    def listing(self) -> str:
        return hash_of(
            f"{file.relative_to(self.path)} {file.stat().st_size}" for file, _ in self.files
        )

    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]:
        wanted = None if rows is None else set(rows)
        first = 0
        for file, _ in self.files:
            for batch in _batches(file, [self.columns.image]):
                chosen = [i for i in range(batch.num_rows) if wanted is None or first + i in wanted]
                for i in chosen:
                    name = f"{self.path}/{self.entries[first + i].name}"
                    value = batch.column(0)[i].as_py()
                    yield Item(first + i, name, content_or_error(partial(_content, value, name)))
                first += batch.num_rows


@dataclass(frozen=True)
class DatasetColumns:
    """Which columns of a dataset hold images and labels, and the labels' names."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def _columns_of(file: Path) -> DatasetColumns:
    schema = _schema(file)
    features = _features(schema)
    image = _only(file, _image_columns(file, schema), IMAGE_NAMES, "of images")
    if image is None:
        raise GoodRtError(f"{file} has no column of images; it has {', '.join(schema.names)}")
    named = [name for name, feature in features.items() if _type(feature) == "ClassLabel"]
    label = _only(
        file, named or [n for n in LABEL_NAMES if n in schema.names], LABEL_NAMES[:1], "of labels"
    )
    names = features[label].get("names") if label in named else None
    return DatasetColumns(image, label, tuple(names) if names else None)


def _only(file: Path, columns: Sequence[str], preferred: Sequence[str], what: str) -> str | None:
    """The one column; of several the one that has a preferred name; None where there is none."""
    usual = [name for name in columns if name in preferred]
    chosen = usual if len(columns) > 1 and usual else columns
    if len(chosen) > 1:
        raise GoodRtError(
            f"{file} has several columns {what}: {', '.join(chosen)}; remove the others, or call "
            f"the right one {preferred[0]!r}"
        )
    return chosen[0] if chosen else None


def saved_files(folder: Path) -> tuple[tuple[Path, str | None], ...]:
    """The Arrow files that a saved dataset lists, with their splits, in order; empty when the
    folder holds no such dataset."""
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
    return ()


def parquet_files(folder: Path, files: Sequence[Path]) -> tuple[tuple[Path, str | None], ...]:
    """Parquet files of a folder with their splits."""
    return tuple((file, _split_of(file, folder)) for file in files)


def has_image_column(file: Path) -> bool:
    """Whether a Parquet file has a column of images.

    Raises:
        GoodRtError: it cannot be read.
    """
    return bool(_image_columns(file, _schema(file)))


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


def _features(schema: Any) -> Mapping[str, Any]:
    """Hugging Face's description of the columns; empty where there is none."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_columns(file: Path, schema: Any) -> list[str]:
    """The columns that are described as images; without a description those of {bytes, path}
    structs, or of bytes whose first value is an image."""
    described = [name for name, feature in _features(schema).items() if _type(feature) == "Image"]
    if described:
        return described
    types = require("pyarrow", "datasets").types
    structs = [
        str(field.name)
        for field in schema
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    if structs:
        return structs
    binary = (
        str(field.name)
        for field in schema
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or types.is_binary_view(field.type)
    )
    return [name for name in binary if _begins_with_an_image(file, name)]


def _begins_with_an_image(file: Path, column: str) -> bool:
    for batch in _batches(file, [column]):
        for value in batch.column(0):
            if value.is_valid:
                try:
                    image_header(value.as_py(), column)
                except GoodRtError:
                    return False
                return True
    return False


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
        with file.open("rb") as opened:  # pyarrow itself takes no path that is not UTF-8
            if file.suffix == ".parquet":
                return require("pyarrow.parquet", "datasets").read_schema(opened)
            with pyarrow.ipc.open_stream(opened) as reader:
                return reader.schema
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(file, error) from None


def _batches(file: Path, columns: list[str] | None) -> Iterator[Any]:
    """Record batches with these columns (None: no column is needed, only the number of rows)."""
    pyarrow = require("pyarrow", "datasets")
    try:
        with file.open("rb") as opened:
            if file.suffix == ".parquet":
                parquet = require("pyarrow.parquet", "datasets").ParquetFile(opened)
                yield from parquet.iter_batches(ROWS, columns=columns)
                return
            mapped = pyarrow.py_buffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
            with pyarrow.ipc.open_stream(mapped) as reader:
                for batch in reader:
                    yield batch if columns is None else batch.select(columns)
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> GoodRtError:
    return GoodRtError(f"{file} is not a file of a dataset that can be read ({first_line(error)})")
