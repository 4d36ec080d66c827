"""Reads image files as a model takes them, and lays out contact sheets; needs only Pillow and
numpy.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from good_rt.errors import GoodRtError

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20
"""Larger files and images are refused unread: a small file can unpack to gigabytes."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
MODES = {1: "L", 3: "RGB"}
SET_MANIFEST, CONTACT_SHEET = "manifest.jsonl", "contact_sheet.png"
"""Files of a generated set, beside its folder of images."""


def read_image(
    path: Path, channels: int, size: tuple[int, int], fit: bool = False
) -> NDArray[np.uint8]:
    """An image file as (H, W, C) uint8.

    EXIF orientation is applied; palettes are looked up, alpha is composited over black, 16 bits
    become 8, CMYK becomes RGB; of an animation the first frame is taken.

    Args:
        path: The file.
        channels: 1 (grey) or 3 (RGB).
        size: (H, W).
        fit: Converts to the channels and resizes (Lanczos); without it, the image must have them.

    Raises:
        GoodRtError: the file is missing, damaged, too large, or does not fit.
    """
    with _named(str(path)):
        if path.stat().st_size > MAX_BYTES:
            raise GoodRtError(f"{path} has more than {MAX_BYTES >> 20} MiB; refused")
        return _decode(path, str(path), channels, size, fit)


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
    with _named(name):
        if len(content) > MAX_BYTES:
            raise GoodRtError(f"{name} has more than {MAX_BYTES >> 20} MiB; refused")
        return _decode(io.BytesIO(content), name, channels, size, fit)


def image_header(content: bytes, name: str) -> tuple[int, int, str]:
    """Width and height before EXIF orientation, and Pillow's mode, without decoding the image.

    Args:
        content: The file's bytes.
        name: The file's name, for errors.

    Raises:
        GoodRtError: it is not an image.
    """
    with _named(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as file:
            return file.width, file.height, file.mode


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
        raise GoodRtError(f"{name} has more than {MAX_PIXELS} pixels; refused") from None
    except UnidentifiedImageError:
        raise GoodRtError(f"{name} is not an image that can be read") from None
    except GoodRtError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged files
        raise GoodRtError(
            f"{name} is a damaged image ({str(error) or type(error).__name__})"
        ) from None


def _decode(
    file: Path | io.BytesIO, name: str, channels: int, size: tuple[int, int], fit: bool
) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pixel bound below replaces Pillow's warnings
        with Image.open(file) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise GoodRtError(
                    f"{name} has {opened.width}x{opened.height} pixels, more than {MAX_PIXELS}; "
                    "refused"
                )
            image = _plain(ImageOps.exif_transpose(opened))
    mode, (height, width) = MODES[channels], size
    if fit:
        image = image.convert(mode)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
    if image.mode != mode:
        names = {"L": "grey", "RGB": "RGB"}
        raise GoodRtError(
            f"{name} is {names[image.mode]}, {names[mode]} is expected; convert it, or use --fit"
        )
    if image.size != (width, height):
        actual = f"{image.width}x{image.height}"
        raise GoodRtError(
            f"{name} has {actual} pixels, {width}x{height} are expected; resize it, or use --fit"
        )
    return np.asarray(image, np.uint8).reshape(height, width, channels)


def _plain(image: Image.Image) -> Image.Image:
    """Any Pillow image as L or RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        # 16-bit files come as I;16, or as I or F, which may hold 8 bits as well
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        coloured = image.convert("RGBA")
        flat = Image.alpha_composite(
            Image.new("RGBA", image.size, (0, 0, 0, 255)), coloured
        ).convert("RGB")
        return flat.convert("L") if image.mode in {"1", "L", "LA"} else flat
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def visible(path: Path) -> bool:
    """Whether a file or folder is the user's and not the operating system's."""
    return not path.name.startswith((".", "__MACOSX"))


def image_files(folder: Path) -> list[Path]:
    """The image files anywhere in a folder, in order; of a generated set not its contact sheet."""
    files = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and visible(p) and p.is_file()
    )
    return [p for p in files if p.name != CONTACT_SHEET or not p.with_name(SET_MANIFEST).exists()]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files, and the image files in the folders, in order.

    Args:
        paths: Files and folders.

    Raises:
        GoodRtError: a path does not exist, or a folder holds no images.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = image_files(path)
            if not inside:
                raise GoodRtError(f"{path} holds no image files")
            files += inside
        elif not path.exists():
            raise GoodRtError(f"{path} does not exist; give image files, or folders of them")
        else:
            files.append(path)
    return files


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
