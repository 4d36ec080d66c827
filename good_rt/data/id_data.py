"""In-distribution data: labelled images in the parts ``train``, ``held_out`` and ``test``, which
share no image.

``train`` fills the feature bank and the fine-tuning; ``held_out`` was never trained on: it
standardises, fits the score and calibrates; ``test`` is used only by the evaluation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from good_rt.data.labelled import LabelledImages
from good_rt.data.sources.base import ImageSource
from good_rt.data.sources.npz import NPZ_HINT, NpzSource
from good_rt.data.sources.open import open_source
from good_rt.data.splits import SKIP_BAD_HINT, Splits, make_splits, recorded_splits
from good_rt.errors import GoodRtError, LeftOutWarning
from good_rt.files import DEMO_IMAGES, demo_path

BATCH = 500


@dataclass(frozen=True)
class IdData:
    """Labelled images from any source, or the splits.json of a source; parts are read on demand.

    A source without splits.json is divided by `good_rt.data.splits` with its defaults. ``classes``
    in the methods are the classifier's: their names, or their number where the data's labels are
    numbers as well.

    Attributes:
        folder: The source's path, or that of its splits.json.
    """

    folder: Path

    @classmethod
    def of(cls, images: IdData | Path | str) -> IdData:
        """The data itself, or that of a path.

        Args:
            images: The data, or the path of any source of images; "demo" names the demo's images.
        """
        return images if isinstance(images, IdData) else cls(demo_path(images, DEMO_IMAGES))

    @cached_property
    def source(self) -> ImageSource:
        """The source that the images are read from.

        Raises:
            GoodRtError: the path is not a source of images.
        """
        return open_source(self.folder if self.record is None else self.record.source)

    @cached_property
    def splits(self) -> Splits:
        """The parts.

        Raises:
            GoodRtError: the source has changed since they were recorded.
        """
        if self.record is None:
            return _splits(self.folder, self.source.listing)
        self.record.check_listing(self.source)
        return self.record

    @cached_property
    def record(self) -> Splits | None:
        """The splits.json that the path is, or that lies in it.

        Raises:
            GoodRtError: it is damaged, or of a newer version.
        """
        return recorded_splits(self.folder)

    def labels(self, classes: int | Sequence[str]) -> dict[int, int]:
        """The classifier's output index by label of the data.

        Args:
            classes: The classifier's classes, or their number.

        Raises:
            GoodRtError: the images have no labels, or not the classifier's classes.
        """
        labels = {entry.label for entry in self.source.entries}
        number = classes if isinstance(classes, int) else len(classes)
        if None in labels:
            raise GoodRtError(
                f"{self._path_of(None)} has no labels; give a folder for each class, or an array "
                "`labels`"
            )
        known = [label for label in labels if label is not None]
        if self.source.classes is not None and not isinstance(classes, int):
            from good_rt.classifier.class_names import class_outputs  # imports torch

            outputs = class_outputs(self.source.classes, classes, str(self.source.path))
            wrong = next((label for label in known if not 0 <= label < len(outputs)), None)
            if wrong is not None:
                raise GoodRtError(
                    f"{self._path_of(wrong)} has the label {wrong}, but {len(outputs)} classes "
                    "(from 0); leave out images without a class, or correct their labels"
                )
            return {label: outputs[label] for label in known}
        if min(known) < 0 or max(known) >= number:
            raise GoodRtError(
                f"{self._path_of(min(known) if min(known) < 0 else max(known))}: labels run from "
                f"{min(known)} to {max(known)}, the classifier has {number} classes (from 0)"
            )
        if len(known) < number:
            missing = next(label for label in range(number) if label not in labels)
            raise GoodRtError(
                f"{self.source.path} has images of {len(known)} of the classifier's {number} "
                f"classes, none of class {missing}; give images of every class that it "
                "was trained on, or another classifier"
            )
        return {label: label for label in known}

    @property
    def labelled(self) -> bool:
        """Whether any image has a class."""
        return any(entry.label is not None for entry in self.source.entries)

    def rows(self, name: str, limit: int | None = None) -> list[int]:
        """The source's rows of a part.

        Args:
            name: train, held_out or test.
            limit: At most so many, evenly spaced.

        Raises:
            GoodRtError: the part has no images.
        """
        rows = self.splits.rows(name)
        if not rows:
            if self.source.kind == "npz":
                raise GoodRtError(f"{self.source.path / name}.npz does not exist; {NPZ_HINT}")
            raise GoodRtError(
                f"{self.source.path} has no images for the part {name}; add some, or split it again"
            )
        return thinned(rows, limit)

    def part(
        self,
        name: str,
        classes: int | Sequence[str],
        channels: int,
        size: int,
        limit: int | None = None,
        rows: Sequence[int] | None = None,
    ) -> LabelledImages:
        """One part in memory: (N, size, size, channels) uint8 with labels (N,).

        Args:
            name: train, held_out or test.
            classes: The classifier's classes, or their number.
            channels: 1 (grey) or 3 (RGB).
            size: Height and width.
            limit: At most so many images, evenly spaced.
            rows: Only these rows of the source, of the part.

        Raises:
            GoodRtError: classes or images do not fit; it names the image.
        """
        outputs = self._checked(classes, channels, size)
        rows = self.rows(name, limit) if rows is None else rows
        position = {row: i for i, row in enumerate(rows)}
        images = np.empty((len(rows), size, size, channels), np.uint8)
        for row, image in self._decoded(rows, channels, size):
            images[position[row]] = image
        return LabelledImages(images, self._labels_of(rows, outputs))

    def batches(
        self,
        name: str,
        classes: int | Sequence[str] | None,
        channels: int,
        size: int,
        limit: int | None = None,
        rows: Sequence[int] | None = None,
        batch: int = BATCH,
    ) -> Iterator[LabelledImages]:
        """`part` batch by batch in the source's order, so that few images are in memory.

        Args:
            name: train, held_out or test.
            classes: The classifier's classes, or their number; None for images without labels.
            channels: 1 (grey) or 3 (RGB).
            size: Height and width.
            limit: At most so many images, evenly spaced.
            rows: Only these rows of the source.
            batch: Images in a batch.

        Raises:
            GoodRtError: classes or images do not fit; it names the image.
        """
        outputs = self._checked(classes, channels, size)
        wanted = sorted(self.rows(name, limit) if rows is None else rows)
        images: list[NDArray[np.uint8]] = []
        done: list[int] = []
        for row, image in self._decoded(wanted, channels, size):
            images.append(image)
            done.append(row)
            if len(images) == batch or len(done) == len(wanted):
                yield LabelledImages(
                    np.stack(images), self._labels_of(done[-len(images) :], outputs)
                )
                images = []

    def _checked(
        self, classes: int | Sequence[str] | None, channels: int, size: int
    ) -> dict[int, int] | None:
        """`labels`; refuses arrays of another shape before they are read."""
        if isinstance(self.source, NpzSource):
            self.source.check_shape(channels, size)
        return None if classes is None else self.labels(classes)

    def _decoded(
        self, rows: Sequence[int], channels: int, size: int
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for item in self.source.items(rows):
            try:
                image = item.image(channels, size)
            except GoodRtError as error:
                raise GoodRtError(
                    f"{error}"
                    if isinstance(item.content, np.ndarray)
                    else f"{error} ({SKIP_BAD_HINT})"
                ) from None
            if self.record is not None:  # else the contents were hashed just now
                self.splits.check_content(item)
            yield item.row, image

    def _labels_of(
        self, rows: Sequence[int], outputs: dict[int, int] | None
    ) -> NDArray[np.int64] | None:
        if outputs is None:
            return None
        labels = [self.source.entries[row].label for row in rows]
        return np.array([outputs[label] for label in labels if label is not None], np.int64)

    def _path_of(self, label: int | None) -> str:
        """The source, and the file of the first image with this label, for errors."""
        name = next(entry.name for entry in self.source.entries if entry.label == label)
        path = self.source.path
        return f"{path / name.rpartition('[')[0] if self.source.kind == 'npz' else path}"


@lru_cache(maxsize=8)
def _splits(folder: Path, listing: str) -> Splits:
    """The parts of a source; ``listing`` is the cache's key, so a changed source is split again."""
    splits = make_splits(open_source(folder))
    _warn_of_left_out(folder, splits.skipped)
    return splits


def _warn_of_left_out(path: Path, left_out: Sequence[str]) -> None:
    for line in left_out:
        warnings.warn(f"{path}: {line}", LeftOutWarning, stacklevel=3)


def unlabelled(path: Path, channels: int, size: int, limit: int = 10_000) -> NDArray[np.uint8]:
    """Images of any source, whatever their classes: (N, size, size, channels) uint8.

    Images of .npz files must have that shape, others are converted and resized.

    Args:
        path: The source.
        channels: 1 (grey) or 3 (RGB).
        size: Height and width.
        limit: At most so many images, evenly spaced.

    Raises:
        GoodRtError: an image is damaged, or an array has another shape.
    """
    source = open_source(path)
    _warn_of_left_out(path, source.left_out)
    count = len(source.entries)
    rows = thinned(range(count), limit)
    return np.stack([item.image(channels, size) for item in source.items(rows)])


def thinned(rows: Sequence[int], limit: int | None) -> list[int]:
    """At most ``limit`` rows, evenly spaced; all of them for None."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[place] for place in spaced(len(rows), limit)]


def spaced(size: int, count: int) -> NDArray[np.int64]:
    """``count`` evenly spaced indices below ``size``."""
    return np.linspace(0, size - 1, count).round().astype(np.int64)
