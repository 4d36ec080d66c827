"""Images in .npz files: one file, or the three parts train.npz, held_out.npz and test.npz. Rows are
read in blocks."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from good_rt.data.sources.base import PARTS, Item, ListedImage, hash_of
from good_rt.errors import GoodRtError

BLOCK_BYTES = 4 * 2**20
NPZ_HINT = "give an .npz file with uint8 images (N, H, W[, C])"


@dataclass(frozen=True)
class NpzSource:
    """``files`` by part, or one file of no part (""); labels are numbers."""

    path: Path
    files: dict[str, Path]
    kind: str = "npz"
    classes: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def parts(cls, folder: Path) -> NpzSource:
        """The parts whose file exists."""
        files = {part: folder / f"{part}.npz" for part in PARTS}
        return cls(folder, {part: path for part, path in files.items() if path.exists()})

    @classmethod
    def single(cls, path: Path) -> NpzSource:
        return cls(path, {"": path})

    @cached_property
    def entries(self) -> tuple[ListedImage, ...]:
        listed: list[ListedImage] = []
        for part, path in self.files.items():
            count, labels = _labels(path)
            name, numbers = path.name, [None] * count if labels is None else labels.tolist()
            listed += [
                ListedImage(f"{name}[{row}]", label, part or None)
                for row, label in enumerate(numbers)
            ]
        return tuple(listed)

    @cached_property
    def listing(self) -> str:
        return hash_of(f"{path.name} {path.stat().st_size}" for path in self.files.values())

    def check_shape(self, channels: int, size: int) -> None:
        """Checks the shape of every file's images, without reading an image.

        Args:
            channels: 1 (grey) or 3 (RGB).
            size: Height and width.

        Raises:
            GoodRtError: a file's images have another shape.
        """
        for path in self.files.values():
            with zipfile.ZipFile(path) as archive, archive.open("images.npy") as file:
                shape = (*_header(file, path)[0][1:], 1)[:3]
            if shape != (size, size, channels):
                actual = "x".join(map(str, shape))
                raise GoodRtError(
                    f"{path}: images are {actual}, the classifier takes {size}x{size}x{channels}; "
                    "convert them"
                )

    def items(self, rows: Collection[int] | None = None) -> Iterator[Item]:
        wanted = None if rows is None else set(rows)
        first = 0
        for path in self.files.values():
            row = first
            for images in _blocks(path):
                for image in images:
                    if wanted is None or row in wanted:
                        yield Item(row, f"{path}[{row - first}]", image)
                    row += 1
            first = row


def has_image_array(path: Path) -> bool:
    """Whether an .npz file has an array of images.

    Raises:
        GoodRtError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return "images.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise GoodRtError(f"{path} is not an .npz file of images ({error})") from None


def _labels(path: Path) -> tuple[int, NDArray[np.int64] | None]:
    """The number of images of a file, and their labels where it has them."""
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open("images.npy") as file:
                shape = _header(file, path)[0]
            if "labels.npy" not in archive.namelist():
                return shape[0], None
            with archive.open("labels.npy") as file:
                labels = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise GoodRtError(f"{path} does not exist; {NPZ_HINT}") from None
    except GoodRtError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds on damaged files
        raise GoodRtError(
            f"{path} is not an .npz file of images ({type(error).__name__}: {error})"
        ) from None
    if labels.shape != (shape[0],):
        raise GoodRtError(f"{path}: {shape[0]} images but labels of shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise GoodRtError(f"{path}: labels must be whole numbers, not {labels.dtype}")
    return shape[0], labels.astype(np.int64)


def _blocks(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The images of a file, (n, H, W, C) a block."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("images.npy") as file:
            shape, fortran = _header(file, path)
            pixels = int(np.prod(shape[1:]))
            if fortran:  # rows do not lie one after the other: read whole
                whole = np.frombuffer(file.read(), np.uint8).reshape(shape, order="F")
                yield whole if len(shape) == 4 else whole[..., None]
                return
            rows = max(1, BLOCK_BYTES // max(pixels, 1))
            for first in range(0, shape[0], rows):
                count = min(rows, shape[0] - first)
                content = _exactly(file, count * pixels)
                block = np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
                yield block if len(shape) == 4 else block[..., None]
            file.read()  # to the end, where the checksum is compared
    except GoodRtError:
        raise
    except Exception as error:
        raise GoodRtError(
            f"{path} is not an .npz file of images ({type(error).__name__}: {error})"
        ) from None


def _exactly(file: object, count: int) -> bytes:
    content: bytes = file.read(count)  # type: ignore[attr-defined]
    while len(content) < count:
        more: bytes = file.read(count - len(content))  # type: ignore[attr-defined]
        if not more:
            raise EOFError("images end too early")
        content += more
    return content


def _header(file: object, path: Path) -> tuple[tuple[int, ...], bool]:
    """Shape and order of an array of images."""
    version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)  # type: ignore[arg-type]
    if dtype != np.uint8 or len(shape) not in (3, 4) or shape[0] == 0:
        raise GoodRtError(
            f"{path}: images must be uint8 (N, H, W[, C]) with N > 0, not {dtype} {shape}"
        )
    return shape, fortran
