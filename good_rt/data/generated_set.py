"""A generated set on disk: PNG images, a manifest with one row an image, the job's settings, a
contact sheet.

The sampler's batches end here; training and calibration read it. Rows are appended batch by batch,
so an interrupted job resumes where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from good_rt.config.settings import GuidanceKind
from good_rt.data.folder_tree import CONTACT_SHEET, SET_MANIFEST
from good_rt.data.image_files import contact_sheet, decode_image, image_header, read_image_file
from good_rt.errors import GoodRtError
from good_rt.files import atomic_path, different_names, read_content, remove_leftovers
from good_rt.records import Count, Index, InnerPath, RecordType, drop_format

Record = TypeVar("Record")
SHEET_IMAGES = 64
SET_RECORD = RecordType("generated-set", "generate the set again", (drop_format,))


@dataclass(frozen=True)
class Row:
    """The manifest's row of one generated image.

    Attributes:
        index: Position in the generated set, from 0.
        file: Path of the image in the set's folder.
        seed: Seed of the sample.
        label: Class that it was generated for.
        guidance: Kind of guidance: none, img, feat or both.
        strength: Factor of μ and ρ.
        energy: ℓ_img of the image.
        knn_distance: ℓ_feat of the image.
        energy_before: ℓ_img of the unguided twin of the same seed, where it was sampled.
        knn_distance_before: ℓ_feat of the unguided twin.
        start_row: Row of the ID data's source that sampling started from; None for noise.
    """

    index: Index
    file: InnerPath
    seed: int
    label: Index
    guidance: GuidanceKind
    strength: float
    energy: float
    knn_distance: float
    energy_before: float | None
    knn_distance_before: float | None
    start_row: Index | None = None


@dataclass(frozen=True)
class Rejected:
    """A line of rejected.jsonl: a sample that was not kept.

    Attributes:
        index: Its index, which no image of the set has.
        reason: The criterion that it did not meet.
    """

    index: Index
    reason: str


@dataclass(frozen=True)
class BegunSettings:
    """The settings of job.json that a set is resumed with, whatever the job asks for.

    Attributes:
        batch: Images that were generated at once.
    """

    batch: Count | None = None


class GeneratedSet:
    """A folder with images/, manifest.jsonl, job.json and contact_sheet.png.

    Args:
        folder: The folder; it need not exist before `begin`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest, self._job = folder / SET_MANIFEST, folder / "job.json"
        self._rejections = folder / "rejected.jsonl"

    def begin(self, job: Mapping[str, Any]) -> None:
        """Creates the folder, or resumes in it.

        Args:
            job: The settings that determine the images.

        Raises:
            GoodRtError: the folder holds another job's images, or cannot be written to.
        """
        changed = self.differences(job)
        if changed:
            raise GoodRtError(
                f"{self.folder} holds images of another job (different: {', '.join(changed)}); "
                "choose another folder, or delete it"
            )
        if self._job.exists() and (self.rows() or self.rejections()):
            self._remove_partial_writes()
            return
        if self._manifest.exists() and not self._job.exists():
            raise GoodRtError(
                f"{self.folder} has a manifest but no job.json; choose another folder, or delete it"
            )
        try:
            (self.folder / "images").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GoodRtError(
                f"cannot write to {self.folder} ({error.strerror}); choose another folder"
            ) from None
        self._rejections.unlink(missing_ok=True)
        SET_RECORD.write(self._job, job)

    def settings(self) -> dict[str, Any]:
        """What job.json says of the images; empty where there is none.

        Raises:
            GoodRtError: it is damaged, or of a newer version.
        """
        return SET_RECORD.read(self._job) if self._job.exists() else {}

    def begun(self) -> BegunSettings:
        """The settings that the set is resumed with.

        Raises:
            GoodRtError: job.json is damaged, or of a newer version.
        """
        batch = self.settings().get("batch")
        return SET_RECORD.as_fields(BegunSettings, {"batch": batch}, self._job)

    def differences(self, job: Mapping[str, Any]) -> list[str]:
        """Names of the settings that differ from those of the folder's images; none without images.

        Args:
            job: The settings that determine the images.
        """
        begun = self.rows() or self.rejections()
        if not self._job.exists() or not begun:  # without samples any settings are fine
            return []
        return different_names(self.settings(), json.loads(json.dumps(job)))

    def _remove_partial_writes(self) -> None:
        """Removes half-written images and an incomplete last line of the manifest."""
        remove_leftovers(self.folder)
        remove_leftovers(self.folder / "images")
        kinds: dict[Path, type[Row] | type[Rejected]]
        kinds = {self._manifest: Row, self._rejections: Rejected}
        for path, kind in kinds.items():
            if path.exists() and not read_content(path).endswith(b"\n"):
                whole = "".join(map(_line, _read_lines(path, kind)))
                with atomic_path(path) as temporary:
                    temporary.write_text(whole, encoding="utf-8")

    def rows(self) -> list[Row]:
        """The manifest's rows by index; a last line cut short by an interruption does not count.

        Raises:
            GoodRtError: a line is not a row; it names the line.
        """
        rows = {row.index: row for row in _read_lines(self._manifest, Row)}
        return [rows[index] for index in sorted(rows)]

    def append(self, images: NDArray[np.uint8], rows: Sequence[Row]) -> None:
        """Writes images and then their rows, so that a row's image always exists.

        Args:
            images: (N, H, W, C) uint8.
            rows: Their N rows.
        """
        for image, row in zip(images, rows, strict=True):
            with atomic_path(self.folder / row.file) as temporary:
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
                    temporary, "PNG"
                )
        with self._manifest.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, rows))

    def reject(self, rejections: Sequence[Rejected]) -> None:
        """Records samples that are not kept.

        Args:
            rejections: Their indices and reasons.
        """
        if rejections:
            with self._rejections.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, rejections))

    def rejections(self) -> dict[int, str]:
        """The reason of every rejected sample by its index.

        Raises:
            GoodRtError: a line is not a rejection; it names the line.
        """
        return {one.index: one.reason for one in _read_lines(self._rejections, Rejected)}

    def images(self, rows: Sequence[Row] | None = None) -> NDArray[np.uint8]:
        """The images of rows, (N, H, W, C) uint8.

        Args:
            rows: Rows of the manifest; None for all.

        Raises:
            GoodRtError: there are none, one is damaged, or lies outside the set's folder.
        """
        rows = self.rows() if rows is None else rows
        if not rows:
            raise GoodRtError(
                f"{self.folder} holds no generated images; create them with `good-rt generate`"
            )
        folder = (self.folder / "images").resolve()
        loaded = []
        for row in rows:
            path = (self.folder / row.file).resolve()
            if path.parent != folder:
                raise GoodRtError(
                    f"{self._manifest}: image {row.index} lies outside {folder}; generate the set "
                    "again"
                )
            try:
                content = read_image_file(path)
                width, height, mode = image_header(content, str(path))
                channels = 1 if mode == "L" else 3
                loaded.append(decode_image(content, str(path), channels, (height, width)))
            except GoodRtError as error:
                raise GoodRtError(f"{error}; generate the set again") from None
            if loaded[-1].shape != loaded[0].shape:
                raise GoodRtError(
                    f"{path} is not of the shape of the other images; generate the set again"
                )
        return np.stack(loaded)

    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image.

        Raises:
            GoodRtError: there is none, or it is damaged.
        """
        height, width, channels = self.images(self.rows()[:1]).shape[1:]
        return channels, height, width

    def write_contact_sheet(self) -> Path:
        """Writes the first images as one PNG, eight to a row, and returns its path.

        Raises:
            GoodRtError: there are no images, or one is damaged.
        """
        path = self.folder / CONTACT_SHEET
        with atomic_path(path) as temporary:
            contact_sheet(self.images(self.rows()[:SHEET_IMAGES]), columns=8, scale=2).save(
                temporary, "PNG"
            )
        return path


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(path: Path, kind: type[Record]) -> Iterator[Record]:
    """The lines of a file, none where it is missing; a last line cut short does not count."""
    if not path.exists():
        return
    *lines, last = read_content(path).split(b"\n")
    if _is_json(last):  # only the line's end is missing
        lines.append(last)
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        yield SET_RECORD.as_fields(kind, SET_RECORD.json_object(line, where), where)


def _line(row: Row | Rejected) -> str:
    return json.dumps(asdict(row)) + "\n"
