"""Reads image files as a model takes them, and lays out contact sheets; needs only Pillow and
numpy.

What white is in an image deeper than 8 bits follows from its format, never from its values:
65535 in 16 bits, the declared depth in a TIFF of fewer bits, 1 in floating point. An image whose
format does not say it is refused.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from good_rt.config.settings import ImageLimits
from good_rt.data.folder_tree import UNASKED, LeftOut, folder_tree, left_out_lines, merged, path_in
from good_rt.data.formats import decoders, open_image
from good_rt.data.limits import limits_now
from good_rt.errors import GoodRtError

MAX_BYTES, MAX_PIXELS = ImageLimits.max_bytes, ImageLimits.max_pixels
"""The limits where the user sets no others."""
LARGE_IMAGE = 16 * 2**20
"""Pixels from which on an image is reduced, strip by strip, before it is resized."""
STRIP = 2**20
"""Pixels of a strip."""
REDUCING_GAP = 3
"""A reduced image is still so many times larger than what it is resized to."""
MOST_SCANS = 100
"""Scans of a progressive JPEG, of which each takes the time of a whole image; ten are usual."""
HELD_TWICE = ("WEBP", "AVIF", "JPEG2000")
"""Formats whose decoders hold an image twice: half as many pixels are allowed."""
TWELVE_BITS = 4095
MODES = {1: "L", 3: "RGB"}


def read_image(
    path: Path, channels: int, size: tuple[int, int], fit: bool = False
) -> NDArray[np.uint8]:
    """An image file as (H, W, C) uint8.

    EXIF orientation is applied; palettes are looked up, alpha is composited over black, deeper
    images become 8 bits, CMYK becomes RGB; of an animation the first frame is taken.

    Args:
        path: The file.
        channels: 1 (grey) or 3 (RGB).
        size: (H, W).
        fit: Converts to the channels and resizes (Lanczos); without it, the image must have them.

    Raises:
        GoodRtError: the file is missing, damaged, too large, or does not fit.
    """
    return decode_image(read_image_file(path), str(path), channels, size, fit)


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Args:
        path: The file.

    Raises:
        GoodRtError: it is missing, too large, or no regular file: a pipe could be endless.
    """
    with _named(str(path)):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise GoodRtError(
                f"{path} is a pipe or device, not a file; write the image to a file first"
            )
        if status.st_size <= limits_now().max_bytes:
            with path.open("rb") as file:
                content = file.read(limits_now().max_bytes + 1)
            if len(content) <= limits_now().max_bytes:
                return content
        raise too_many_bytes(str(path))


def too_many_bytes(name: str) -> GoodRtError:
    """The error for a file that is larger than the limit."""
    return GoodRtError(
        f"{name} has more than {limits_now().max_bytes / 2**20:g} MiB; refused (--max-bytes, "
        "max_bytes in a job file)"
    )


def decode_image(
    content: bytes, name: str, channels: int, size: tuple[int, int], fit: bool = False
) -> NDArray[np.uint8]:
    """`read_image` of a file's bytes.

    Args:
        content: The file's bytes.
        name: The file's name, for errors.
        channels: 1 (grey) or 3 (RGB).
        size: (H, W).
        fit: Converts to the channels and resizes (Lanczos).

    Raises:
        GoodRtError: the image is damaged, too large, or does not fit.
    """
    if len(content) > limits_now().max_bytes:
        raise too_many_bytes(name)
    mode, (height, width) = MODES[channels], size
    with _opened(content, name) as opened:
        if not fit and sorted(opened.size) != sorted((width, height)):
            raise _other_size(name, opened.size, size)
        factor = _reduction(opened, max(size)) if fit else 1
        if factor > 1:  # a JPEG's decoder can reduce by itself
            opened.draft(None, (REDUCING_GAP * max(size),) * 2)
            factor = _reduction(opened, max(size))
        ImageOps.exif_transpose(opened, in_place=True)
        image = _in_eight_bits(opened, name, factor)
        if fit:
            image = image if image.mode == mode else image.convert(mode)
            if image.size != (width, height):
                whole = (0, 0, opened.width / factor, opened.height / factor)
                image = image.resize((width, height), Image.Resampling.LANCZOS, whole)
        if image.mode != mode:
            names = {"L": "grey", "RGB": "RGB"}
            raise GoodRtError(
                f"{name} is {names[image.mode]}, {names[mode]} is expected; convert it, or use "
                "--fit"
            )
        if image.size != (width, height):
            raise _other_size(name, image.size, size)
        return np.asarray(image, np.uint8).reshape(height, width, channels)


def image_header(content: bytes, name: str) -> tuple[int, int, str]:
    """Width and height before EXIF orientation, and Pillow's mode, without decoding the image.

    Args:
        content: The file's bytes.
        name: The file's name, for errors.

    Raises:
        GoodRtError: it is not an image.
    """
    with _opened(content, name) as opened:
        return opened.width, opened.height, opened.mode


def largest_value(content: bytes, name: str) -> int | None:
    """The largest value of a grey image of 16 bits; None for any other image.

    Args:
        content: The file's bytes.
        name: The file's name, for errors.

    Raises:
        GoodRtError: the image is damaged or too large.
    """
    with _opened(content, name) as opened:
        if not opened.mode.startswith("I") or _scale_of(opened, name).white != 65535:
            return None
        return int(np.asarray(opened).max(initial=0))


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """An image's header; what Pillow raises within the block becomes an error that names the
    file."""
    with _named(name), _pillows_bound(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pixel bound replaces Pillow's warnings
        with open_image(content) as opened:
            most = limits_now().max_pixels // (2 if opened.format in HELD_TWICE else 1)
            if opened.width * opened.height > most:
                raise GoodRtError(
                    f"{name} has {opened.width}x{opened.height} pixels, more than {most}; "
                    "refused (--max-pixels, max_pixels in a job file)"
                )
            if opened.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > MOST_SCANS:
                raise GoodRtError(
                    f"{name} is a JPEG of more than {MOST_SCANS} scans; refused: save it again"
                )
            yield opened


@contextmanager
def _pillows_bound() -> Iterator[None]:
    """Raises Pillow's own bound where the user's limit is above it."""
    before = Image.MAX_IMAGE_PIXELS
    if before is not None:
        Image.MAX_IMAGE_PIXELS = max(before, limits_now().max_pixels)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns whatever Pillow raises on bad files into a GoodRtError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise GoodRtError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise GoodRtError(f"{name} is a folder, not an image") from None
    except PermissionError:
        raise GoodRtError(f"{name} cannot be read: permission denied") from None
    except Image.DecompressionBombError:  # Pillow's bound is reached before ours
        raise GoodRtError(
            f"{name} has more than {limits_now().max_pixels} pixels; refused (--max-pixels, "
            "max_pixels in a job file)"
        ) from None
    except UnidentifiedImageError:
        raise GoodRtError(
            f"{name} is not an image that can be read; {', '.join(decoders())} can"
        ) from None
    except GoodRtError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged files
        raise GoodRtError(
            f"{name} is a damaged image ({str(error) or type(error).__name__})"
        ) from None


def _other_size(name: str, actual: tuple[int, int], size: tuple[int, int]) -> GoodRtError:
    return GoodRtError(
        f"{name} has {actual[0]}x{actual[1]} pixels, {size[1]}x{size[0]} are expected; resize it, "
        "or use --fit"
    )


def _reduction(image: Image.Image, side: int) -> int:
    """By how much an image is reduced before it is resized to ``side``: 1 but for large ones."""
    if image.width * image.height <= LARGE_IMAGE:
        return 1
    return max(1, min(image.size) // (REDUCING_GAP * side))


def _in_eight_bits(opened: Image.Image, name: str, factor: int) -> Image.Image:
    """Any Pillow image as L or RGB, reduced by ``factor``. Large images are converted strip by
    strip, so that no second image of their size is in memory."""
    deep = opened.mode.startswith("I") or opened.mode == "F"
    scale = _scale_of(opened, name) if deep else None
    if factor == 1:
        return _plain(opened, scale)
    width, height = opened.size
    rows = max(1, STRIP // (width * factor)) * factor
    reduced = None
    for top in range(0, height, rows):
        strip = opened.crop((0, top, width, min(top + rows, height)))
        part = _plain(strip, scale).reduce(factor)
        if reduced is None:
            reduced = Image.new(part.mode, (part.width, -(-height // factor)))
        reduced.paste(part, (0, top // factor))
    assert reduced is not None
    return reduced


@dataclass(frozen=True)
class _Scale:
    """What a deep image's values mean: ``white``, or black where ``inverted``, is the largest."""

    name: str
    white: int
    inverted: bool

    def in_eight_bits(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Values as uint8; values beyond black and white are refused."""
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        slack = 0.001 if self.white == 1 else 0  # floats are rounded
        if not (-slack <= low and high <= self.white + slack):  # nor NaN
            raise GoodRtError(
                f"{self.name} holds values from {low:g} to {high:g}, and white is {self.white} in "
                "images of its kind; save it as 8 or 16 bits, with the white that you mean"
            )
        if self.white == 1:
            levels = (
                (values.astype(np.float32, copy=False) * 255).clip(0, 255).round().astype(np.uint8)
            )
        else:  # a table, so that no image of floats is in memory
            table = (np.arange(self.white + 1) / self.white * 255).round().astype(np.uint8)
            levels = table[values]
        return 255 - levels if self.inverted else levels


def _scale_of(image: Image.Image, name: str) -> _Scale:
    """The scale of a deep image, as its format says."""
    inverted = False
    white = {"F": 1, "I": None}.get(image.mode, 65535)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if white == 65535:
            white = 2 ** image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    elif image.mode == "I":  # where Pillow has no mode of 16 bits
        white = 65535
    if white is None:
        raise GoodRtError(
            f"{name} holds signed or 32-bit whole numbers, whose white no format says; save it as "
            "8 or 16 bits"
        )
    return _Scale(name, white, inverted)


def _plain(image: Image.Image, scale: _Scale | None) -> Image.Image:
    """Any Pillow image as L or RGB."""
    if scale is not None:
        return Image.fromarray(scale.in_eight_bits(np.asarray(image)))
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        coloured = image if image.mode == "RGBA" else _with_alpha(image)
        flat = Image.alpha_composite(
            Image.new("RGBA", image.size, (0, 0, 0, 255)), coloured
        ).convert("RGB")
        return flat.convert("L") if image.mode in {"1", "L", "LA", "La"} else flat
    mode = "L" if image.mode in {"1", "L"} else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _with_alpha(image: Image.Image) -> Image.Image:
    straight = {"La": "LA"}.get(image.mode)  # Pillow has no direct way from La
    return (image if straight is None else image.convert(straight)).convert("RGBA")


@dataclass(frozen=True)
class ImageListing:
    """Image files, and what was found beside them.

    Attributes:
        files: The files, in order.
        left_out: What was left out: a line for each reason.
    """

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


def list_images(paths: Sequence[Path]) -> ImageListing:
    """The files, and the image files in the folders, in order.

    Args:
        paths: Files and folders.

    Raises:
        GoodRtError: a path does not exist, or a folder holds no images.
    """
    files: list[Path] = []
    left_out: list[LeftOut] = []
    for path in paths:
        if path.is_dir():
            tree = folder_tree(path)
            left_out.append(tree.left_out | {UNASKED: list(tree.containers)})
            if not tree.images:
                lines = left_out_lines(left_out[-1])
                found = f"; skipped: {'; '.join(lines)}" if lines else ""
                raise GoodRtError(f"{path} holds no image files{found}")
            files += (path_in(path, name) for name in tree.images)
        elif not path.exists():
            raise GoodRtError(f"{path} does not exist; give image files, or folders of them")
        else:
            files.append(path)
    return ImageListing(tuple(files), left_out_lines(merged(*left_out)))


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files of `list_images`."""
    return list(list_images(paths).files)


class DepthCheck:
    """Whether grey images of 16 bits only use the lower 12: then they are probably of 12 bits, and
    would be read as nearly black ones. No single image tells."""

    def __init__(self) -> None:
        self.count, self.largest = 0, 0

    def see(self, content: bytes, name: str) -> None:
        """Looks at one image.

        Args:
            content: The file's bytes.
            name: The file's name, for errors.

        Raises:
            GoodRtError: the image is damaged or too large.
        """
        value = largest_value(content, name)
        if value is not None:
            self.count, self.largest = self.count + 1, max(self.largest, value)

    def doubt(self) -> str | None:
        """What is doubtful about all images together; None where nothing is."""
        if not self.count or self.largest > TWELVE_BITS:
            return None
        return (
            f"no value of {self.count} grey images of 16 bits is above {self.largest}, and white "
            f"is 65535: if {TWELVE_BITS} is meant to be white, multiply all values by 16; if they "
            "are dark, save them as 8 bits"
        )


def contact_sheet(images: NDArray[np.uint8], columns: int, scale: int = 2) -> Image.Image:
    """Images side by side in one picture.

    Args:
        images: (N, H, W, C) uint8.
        columns: Images in a row.
        scale: Factor by which each is enlarged.
    """
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:n] = images
    sheet = padded.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
