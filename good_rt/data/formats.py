"""The image formats that are read: their files' endings, and the decoders that Pillow may start.

Only these decoders see a file's content, whatever the file is called: Pillow also knows formats
that start other programs (EPS starts Ghostscript) or accept any content.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from functools import cache

from PIL import Image, features

FORMATS = {
    "PNG": ("Png", (".png", ".apng")),
    "JPEG": ("Jpeg", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")),
    "WEBP": ("WebP", (".webp",)),
    "TIFF": ("Tiff", (".tif", ".tiff")),
    "GIF": ("Gif", (".gif",)),
    "BMP": ("Bmp", (".bmp", ".dib")),
    "PPM": ("Ppm", (".ppm", ".pgm", ".pbm", ".pnm", ".pfm")),
    "AVIF": ("Avif", (".avif",)),
    "JPEG2000": ("Jpeg2K", (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc")),
    "HEIF": ("", (".heic", ".heif", ".hif")),
}
"""Pillow's plugin of each format, "" for that of pillow-heif, and the endings of its files."""
OPTIONAL_LIBRARIES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Libraries that Pillow may have been built without."""
IMAGE_ENDINGS = frozenset(ending for _, endings in FORMATS.values() for ending in endings)
"""Endings of image files, whether or not their decoder is there."""


@cache
def decoders() -> tuple[str, ...]:
    """Pillow's names of the formats that can be decoded here."""
    usable = []
    for name, (plugin, _) in FORMATS.items():
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a library that an older Pillow does not know
            if plugin:
                importlib.import_module(f"PIL.{plugin}ImagePlugin")
            else:
                importlib.import_module("pillow_heif").register_heif_opener()
            library = OPTIONAL_LIBRARIES.get(name)
            if library is None or features.check(library):
                usable.append(name)
    return tuple(usable)


@cache
def readable_endings() -> frozenset[str]:
    """The endings of image files that can be decoded here."""
    return frozenset(ending for name in decoders() for ending in FORMATS[name][1])


def open_image(content: bytes) -> Image.Image:
    """An image's header, by one of the `decoders`; pixels are decoded when they are asked for.

    Args:
        content: The file's bytes.

    Raises:
        Exception: what Pillow raises on bad files.
    """
    return Image.open(io.BytesIO(content), formats=decoders())
