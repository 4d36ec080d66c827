"""Image files of every kind that users have, good and bad, against arrays that were written into
them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from good_rt.config.settings import ImageLimits
from good_rt.data import formats
from good_rt.data import image_files as images
from good_rt.data.image_files import (
    contact_sheet,
    decode_image,
    find_images,
    image_header,
    read_image,
)
from good_rt.data.limits import image_limits
from good_rt.errors import GoodRtError

GREY = (np.add.outer(np.arange(20), np.arange(30)) * 5).astype(np.uint8)  # H 20, W 30
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)
SIZE = (20, 30)


def saved(path: Path, array: NDArray[np.generic], **options: object) -> Path:
    if path.suffix == ".pgm" and array.dtype == np.uint16:  # which older Pillows do not write
        header = f"P5 {array.shape[1]} {array.shape[0]} 65535\n".encode()
        path.write_bytes(header + array.astype(">u2").tobytes())
    else:
        Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "gif"])
def test_lossless_grey_and_rgb_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    grey = saved(tmp_path / f"grey.{suffix}", GREY)
    if suffix != "gif":  # has palettes alone, below
        np.testing.assert_array_equal(read_image(grey, 1, SIZE), GREY[..., None])
        np.testing.assert_array_equal(
            read_image(saved(tmp_path / f"c.{suffix}", COLOUR), 3, SIZE), COLOUR
        )
    np.testing.assert_array_equal(
        read_image(grey, 3, SIZE, fit=True), np.repeat(GREY[..., None], 3, 2)
    )


def test_jpeg_and_webp_come_back_nearly(tmp_path: Path) -> None:
    for path in (
        saved(tmp_path / "c.jpg", COLOUR, quality=100, subsampling=0),
        saved(tmp_path / "c.webp", COLOUR),
    ):
        assert np.abs(read_image(path, 3, SIZE).astype(int) - COLOUR).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # what the eight values mean, after the EXIF standard's table: where row 0 and column 0 are
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: a.T[:, ::-1],
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: a.T[::-1],
    }[orientation](GREY)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", GREY, exif=exif)
    np.testing.assert_array_equal(read_image(path, 1, upright.shape)[..., 0], upright)


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray((GREY % 4).astype(np.uint8))
    image = image.convert("P")
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 8, 7)]
    image.putpalette([value for colour in colours for value in colour])
    image.save(tmp_path / "p.png")
    found = read_image(tmp_path / "p.png", 3, SIZE)
    np.testing.assert_array_equal(found, np.array(colours, np.uint8)[np.asarray(image)])


def test_a_transparent_palette_entry_becomes_black(tmp_path: Path) -> None:
    image = Image.fromarray((GREY % 2).astype(np.uint8)).convert("P")
    image.putpalette([200, 100, 50, 10, 20, 30])
    index = np.asarray(image)
    image.save(tmp_path / "p.png", transparency=int(index[0, 0]))
    found = read_image(tmp_path / "p.png", 3, SIZE)
    assert (found[index == index[0, 0]] == 0).all()
    assert (found[index != index[0, 0]] > 0).all()


@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_alpha_is_laid_over_black(tmp_path: Path, alpha: int) -> None:
    sheer = np.full((*SIZE, 1), alpha, np.uint8)
    expected = np.round(COLOUR * (alpha / 255))
    found = read_image(saved(tmp_path / "c.png", np.concatenate([COLOUR, sheer], 2)), 3, SIZE)
    assert np.abs(found - expected).max() <= 1
    grey = read_image(
        saved(tmp_path / "g.png", np.concatenate([GREY[..., None], sheer], 2)), 1, SIZE
    )
    assert np.abs(grey[..., 0] - np.round(GREY * (alpha / 255))).max() <= 1


def test_grey_with_a_transparent_level_stays_grey(tmp_path: Path) -> None:
    level = int(GREY[3, 4])
    path = saved(tmp_path / "g.png", GREY, transparency=level)
    expected = np.where(level == GREY, 0, GREY)
    np.testing.assert_array_equal(read_image(path, 1, SIZE)[..., 0], expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("brightest", [60000, 200])
def test_16_bits_become_8(tmp_path: Path, suffix: str, brightest: int) -> None:
    """A dark 16-bit image is dark, not stretched to 8 bits."""
    deep = np.linspace(0, brightest, GREY.size).reshape(SIZE).astype(np.uint16)
    path = saved(tmp_path / f"deep.{suffix}", deep)
    np.testing.assert_array_equal(read_image(path, 1, SIZE)[..., 0], np.round(deep / 257))


def test_bilevel(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "b.png", GREY > 99), 1, SIZE)[..., 0], (GREY > 99) * 255
    )


def test_cmyk(tmp_path: Path) -> None:
    ink = np.zeros((*SIZE, 4), np.uint8)
    ink[:, :10, 0], ink[:, 10:20, 3] = 255, 255  # cyan; black; paper
    Image.fromarray(ink, "CMYK").save(tmp_path / "c.jpg", quality=100)
    Image.fromarray(ink, "CMYK").save(tmp_path / "c.tif")
    for name, tolerance in (("c.tif", 0), ("c.jpg", 12)):
        found = read_image(tmp_path / name, 3, SIZE).astype(int)
        for columns, colour in (
            (slice(0, 7), (0, 255, 255)),
            (slice(12, 18), (0, 0, 0)),
            (slice(24, 30), (255,) * 3),
        ):
            assert np.abs(found[:, columns] - colour).max() <= tolerance, name


def test_fit_resizes_and_converts_as_pillow_does(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.png", COLOUR)
    found = read_image(path, 1, (8, 12), fit=True)
    reference = Image.fromarray(COLOUR).convert("L").resize((12, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found[..., 0], np.asarray(reference))


@pytest.mark.parametrize(
    ("array", "channels", "size", "message"),
    [
        (COLOUR, 1, SIZE, "is RGB, grey is expected; .*--fit"),
        (GREY, 3, SIZE, "is grey, RGB is expected; .*--fit"),
        (GREY, 1, (30, 20), "has 30x20 pixels, 20x30 are expected; .*--fit"),
        (GREY, 1, (20, 31), "has 30x20 pixels, 31x20 are expected"),
    ],
)
def test_without_fit_channels_and_size_must_be_right(
    tmp_path: Path, array: NDArray[np.uint8], channels: int, size: tuple[int, int], message: str
) -> None:
    path = saved(tmp_path / "odd.png", array)
    with pytest.raises(GoodRtError, match=f"odd.png {message}"):
        read_image(path, channels, size)
    assert read_image(path, channels, size, fit=True).shape == (*size, channels)


def test_bytes_are_read_as_files_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.png", COLOUR)
    found = decode_image(path.read_bytes(), "shard.tar/c.png", 3, SIZE)
    np.testing.assert_array_equal(found, read_image(path, 3, SIZE))
    assert image_header(path.read_bytes(), "c.png") == (30, 20, "RGB")
    for content in (b"", b"hello", path.read_bytes()[:60], header(60000, 60000)):
        with pytest.raises(GoodRtError, match=r"shard\.tar/c\.png "):
            decode_image(content, "shard.tar/c.png", 3, SIZE, fit=True)
    with pytest.raises(GoodRtError, match="has more than 64 MiB; refused"):
        decode_image(bytes(images.MAX_BYTES + 1), "big", 3, SIZE)


def test_of_an_animation_the_first_picture_is_taken(tmp_path: Path) -> None:
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 1, SIZE)[..., 0], GREY)


def header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and holds none."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in (ihdr, idat, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is not an image that can be read"),
        (b"hello", "is not an image that can be read"),
        (header(8192, 8193), r"has 8192x8193 pixels, more than 67108864; refused"),
        (header(60000, 60000), r"has more than 67108864 pixels; refused"),
        (header(30, 20), "is a damaged image"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    for fit in (False, True):
        with pytest.raises(GoodRtError, match=f"bad.png {message}"):
            read_image(path, 1, SIZE, fit)


def test_a_folder_and_too_many_bytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GoodRtError, match="is a folder, not an image"):
        read_image(tmp_path, 1, SIZE)
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(GoodRtError, match="has more than 64 MiB; refused"):
        read_image(tmp_path / "big.png", 1, SIZE)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_truncated_files_are_an_error(tmp_path: Path, suffix: str) -> None:
    whole = saved(tmp_path / f"whole.{suffix}", GREY).read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for share in (0.1, 0.3, 0.6):  # a PNG that lacks nothing but its end mark is still whole
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(GoodRtError, match=rf"cut\.{suffix} is (a damaged|not an) image"):
            read_image(cut, 1, SIZE, fit=True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flipped_bytes_give_an_image_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    suffix = data.draw(st.sampled_from(["png", "jpg", "gif", "tif", "bmp"]))
    path = saved(folder / f"x.{suffix}", GREY)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_image(path, 1, SIZE, fit=True)
    except GoodRtError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert found.shape == (*SIZE, 1)


def test_find_images_goes_down_folders_in_order(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/c/1.jpeg", "a.png", "note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    inside = [tmp_path / name for name in ("a.png", "b/2.PNG", "b/c/1.jpeg")]
    assert find_images([tmp_path]) == inside
    assert find_images([tmp_path / "note.txt", tmp_path / "b"]) == [
        tmp_path / "note.txt",
        *inside[1:],
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(GoodRtError, match="empty holds no image files"):
        find_images([tmp_path / "empty"])


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.just(3), st.just(4), st.sampled_from([1, 3]))),
    st.integers(1, 4),
)
def test_a_contact_sheet_holds_every_image_at_its_place(
    pictures: NDArray[np.uint8], columns: int
) -> None:
    sheet = np.asarray(contact_sheet(pictures, columns, scale=2)).reshape(
        -(-len(pictures) // columns) * 6, columns * 8, -1
    )
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        place = sheet[6 * row : 6 * row + 6, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(place, picture.repeat(2, 0).repeat(2, 1))
    assert (
        sheet[6 * (len(pictures) // columns) :, 8 * (len(pictures) % columns) :] == 0
    ).all() or len(pictures) % columns == 0


def test_a_float_image_has_white_at_1(tmp_path: Path) -> None:
    for top in (1.0, 0.5, 0.001):  # a dark image is dark
        floats = (GREY / 255 * top).astype(np.float32)
        found = read_image(saved(tmp_path / "f.tif", floats), 1, SIZE)
        np.testing.assert_array_equal(found[..., 0], np.round(GREY * top))


@pytest.mark.parametrize("value", [1.1, 255.0, -0.1, 65535.0, np.nan, np.inf])
def test_a_float_image_with_another_white_is_refused(tmp_path: Path, value: float) -> None:
    floats = (GREY / 255).astype(np.float32)
    floats[0, 0] = value
    path = saved(tmp_path / "f.tif", floats)
    with pytest.raises(GoodRtError, match=r"f\.tif holds values .* white is 1 in .*; save it as 8"):
        read_image(path, 1, SIZE)


@given(st.integers(0, 65535), st.integers(0, 65535), st.sampled_from(["png", "tif", "pgm", "jp2"]))
@settings(max_examples=60, deadline=None)
def test_a_pixels_level_does_not_depend_on_other_pixels(
    tmp_path_factory: pytest.TempPathFactory, value: int, other: int, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"deep.{suffix}"
    levels = []
    for rest in (0, other, 65535):
        deep = np.full(SIZE, rest, np.uint16)
        deep[:10] = value
        levels.append(read_image(saved(path, deep), 1, SIZE)[3, 3, 0])
    assert set(levels) == {np.uint8(round(value / 257))}


def twelve_bits(values: NDArray[np.integer], white_is_zero: bool = False) -> bytes:
    """A TIFF that says that its grey values have 12 bits each, two of them in three bytes."""
    flat = values.ravel().astype(np.uint16)
    first, second = flat[::2], flat[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, 12), (259, 1)]
    tags += [(262, 0 if white_is_zero else 1), (273, 8), (277, 1), (278, values.shape[0])]
    data = packed.astype(np.uint8).tobytes()
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    entries += struct.pack("<HHII", 279, 4, 1, len(data))
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return header + data + struct.pack("<H", len(tags) + 1) + entries + bytes(4)


def test_a_tiff_that_says_12_bits_has_white_at_4095(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, GREY.size).reshape(SIZE).astype(np.uint16)
    content = twelve_bits(values)
    found = decode_image(content, "x.tif", 1, SIZE)[..., 0]
    np.testing.assert_array_equal(found, np.round(values / 4095 * 255))


def test_white_may_be_zero_in_a_deep_tiff(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257
    for image in (Image.fromarray(deep), Image.fromarray((GREY / 255).astype(np.float32))):
        image.save(tmp_path / "x.tif", tiffinfo={262: 0})
        found = read_image(tmp_path / "x.tif", 1, SIZE)[..., 0]
        np.testing.assert_array_equal(found, 255 - GREY)


def test_whole_numbers_of_32_bits_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "i.tif", GREY.astype(np.int32) * 1000)
    with pytest.raises(GoodRtError, match=r"i\.tif holds signed or 32-bit whole numbers, whose"):
        read_image(path, 1, SIZE)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("name", ["photo.eps", "photo.png", "photo.jpg"])
def test_only_image_formats_start_decoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from PIL import EpsImagePlugin

    Image.init()  # every plugin of Pillow is there

    def ghostscript(*arguments: object, **options: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(GoodRtError, match=rf"{name} is not an image that can be read; PNG, JPEG"):
        read_image(tmp_path / name, 3, SIZE, fit=True)


@pytest.mark.parametrize("kind", ["EPS", "PSD", "ICO", "TGA", "PDF", "WMF", "FITS", "XPM", "SGI"])
def test_no_other_plugin_is_asked(kind: str) -> None:
    assert kind not in formats.decoders()


@pytest.mark.parametrize("suffix", ["avif", "jfif", "jpe", "jp2", "webp", "mpo", "apng", "pgm"])
def test_other_endings_are_read(tmp_path: Path, suffix: str) -> None:
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000", "apng": "PNG", "pgm": "PPM"}
    name = kinds.get(suffix, suffix.upper())
    if name != "MPO" and name not in formats.decoders():
        pytest.skip(f"Pillow without {name}")
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(GREY).save(path, name)
    assert np.abs(read_image(path, 1, SIZE, fit=True)[..., 0].astype(int) - GREY).mean() < 6


def test_a_pipe_or_device_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    reading, writing = os.pipe()
    try:
        for path in (tmp_path / "pipe.png", Path("/dev/zero"), Path(f"/dev/fd/{reading}")):
            with pytest.raises(GoodRtError, match=f"{path} is a pipe or device, not a file"):
                read_image(path, 1, SIZE)
    finally:
        os.close(reading)
        os.close(writing)


def test_limits_are_settings(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", COLOUR)
    with image_limits(ImageLimits(max_pixels=599)):
        with pytest.raises(GoodRtError, match=r"30x20 pixels, more than 599; .*--max-pixels"):
            read_image(path, 3, SIZE)
        with pytest.raises(GoodRtError, match="more than 599"):
            decode_image(path.read_bytes(), "x", 3, SIZE)
    with image_limits(ImageLimits(max_bytes=50)):
        for read in (
            lambda: read_image(path, 3, SIZE),
            lambda: decode_image(path.read_bytes(), "x", 3, SIZE),
        ):
            with pytest.raises(GoodRtError, match=r"has more than 4.*e-05 MiB; .*--max-bytes"):
                read()
    assert read_image(path, 3, SIZE).shape == (*SIZE, 3)
    huge = header(20000, 9000)  # above Pillow's own bound
    with (
        image_limits(ImageLimits(max_pixels=2**62)),
        pytest.raises(GoodRtError, match="is a damaged image"),
    ):
        decode_image(huge, "x", 1, SIZE, fit=True)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "CMYK", "I;16", "F"])
def test_a_large_image_is_nearly_what_plain_resizing_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))
    image = coarse.resize((611, 503), Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(image.getchannel(0))
    path = tmp_path / "x.tif"
    options = {"transparency": 3} if mode == "P" else {}
    image.save(path if mode != "P" else path.with_suffix(".png"), **options)
    path = path if mode != "P" else path.with_suffix(".png")
    plain = read_image(path, 3, (16, 16), fit=True).astype(int)
    monkeypatch.setattr(images, "LARGE_IMAGE", 1000)
    monkeypatch.setattr(images, "STRIP", 5000)
    found = read_image(path, 3, (16, 16), fit=True).astype(int)
    assert np.abs(found - plain).max() <= 6 and np.abs(found - plain).mean() < 1.5


def test_a_large_jpeg_is_reduced_by_its_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(COLOUR).resize((640, 480))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    plain = read_image(tmp_path / "x.jpg", 3, (16, 12), fit=True).astype(int)
    monkeypatch.setattr(images, "LARGE_IMAGE", 1000)
    found = read_image(tmp_path / "x.jpg", 3, (16, 12), fit=True).astype(int)
    assert np.abs(found - plain).mean() < 3


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(COLOUR).save(path, progressive=True)
    assert read_image(path, 3, SIZE).shape == (*SIZE, 3)
    content = path.read_bytes()
    scan = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + scan * 200 + content[-2:])
    with pytest.raises(GoodRtError, match=r"x\.jpg is a JPEG of more than 100 scans; refused"):
        read_image(path, 3, SIZE)


BOMB = """
import sys
from pathlib import Path
from PIL import Image
from good_rt.data.image_files import read_image
before = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
assert read_image(Path(sys.argv[1]), 3, (32, 32), fit=True).shape == (32, 32, 3)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "suffix", "side"),
    [
        ("RGBA", "png", 8192),
        ("I;16", "png", 8192),
        ("P", "gif", 8192),
        ("F", "tif", 8192),
        ("CMYK", "tif", 8192),
        ("RGB", "jpg", 8192),
        ("RGBA", "webp", 5792),
        ("RGB", "jp2", 5792),
        ("RGB", "avif", 5792),
    ],
)
def test_an_image_within_the_limits_takes_less_than_a_gibibyte(
    tmp_path: Path, mode: str, suffix: str, side: int
) -> None:
    path = tmp_path / f"bomb.{suffix}"
    options = {"compression": "tiff_deflate"} if suffix == "tif" else {}
    Image.new(mode, (side, side)).save(path, **options)
    ended = subprocess.run(
        [sys.executable, "-P", "-c", BOMB, path], capture_output=True, check=True, timeout=60
    )
    assert int(ended.stdout) < 700 * 1024, f"{int(ended.stdout) / 1024:.0f} MiB"
