"""Image files of every kind that users have, good and bad, against arrays that were written into
them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from good_rt.data import image_files as images
from good_rt.data.image_files import (
    contact_sheet,
    decode_image,
    find_images,
    image_header,
    read_image,
)
from good_rt.errors import GoodRtError

GREY = (np.add.outer(np.arange(20), np.arange(30)) * 5).astype(np.uint8)  # H 20, W 30
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)
SIZE = (20, 30)


def saved(path: Path, array: NDArray[np.generic], **options: object) -> Path:
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
