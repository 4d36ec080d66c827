"""A corpus of odd but legal data: whatever names, order, nesting and kind of source the same images
come in, parts, fingerprints and classes are the same; and each image is used, or said not to be."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from good_rt.config.settings import SplitConfig
from good_rt.data.formats import FORMATS, decoders
from good_rt.data.sources.open import open_source
from good_rt.data.splits import Splits, make_splits

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "F", "I;16"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
}
CLASSES = (
    "C#",
    "cat dog",
    "Maße",
    "日本",
    "10",
    "a@b",
    "~x",
    "-",
    "=1",
    "🙂",
    "x.y",
    "$(ls)",
    "train",
)
WORDS = (
    "a",
    "B",
    "10",
    "9",
    "é",
    "日本",
    "a b",
    "#",
    "@",
    "~",
    "=1",
    "x.y",
    "-",
    "%20",
    "a\nb",
    "\x1b[31m",
)
RAW = (b"caf\xe9", b"\xff\xfe")
"""Names of files that are not UTF-8."""


@dataclass(frozen=True)
class Picture:
    """An image file: its content, its class, and an ending that is right for it."""

    content: bytes
    label: str
    ending: str


@st.composite
def pictures(draw: st.DrawFn) -> list[Picture]:
    """Three to five different images in each of two or three classes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for label in draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=3, unique=True)):
        for _ in range(draw(st.integers(3, 5))):
            kind = draw(st.sampled_from(sorted(set(MODES) & set(decoders()))))
            mode = draw(st.sampled_from(MODES[kind]))
            size = draw(st.tuples(st.integers(7, 20), st.integers(7, 20)))
            values = rng.integers(0, 256, (*size, 3), np.uint8)
            if mode == "I;16":
                image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
            elif mode == "F":
                image = Image.fromarray(values[..., 0].astype(np.float32) / 255)
            else:
                image = Image.fromarray(values).convert(mode)
            content = io.BytesIO()
            image.save(content, kind)
            ending = draw(st.sampled_from(FORMATS[kind][1]))
            found.append(
                Picture(content.getvalue(), label, draw(st.sampled_from([ending, ending.upper()])))
            )
    return found


@st.composite
def names(draw: st.DrawFn, count: int) -> list[bytes]:
    """Different paths, within a class, without an ending and without dots that end a key."""
    words = st.sampled_from([*(word.encode() for word in WORDS), *RAW])
    folders = st.lists(words, max_size=2).map(lambda parts: b"".join(part + b"/" for part in parts))
    return [
        draw(folders) + str(i).encode() + draw(words) for i in draw(st.permutations(range(count)))
    ]


def write_folder(root: Path, images: Sequence[Picture], inside: Sequence[bytes]) -> Path:
    for image, name in zip(images, inside, strict=True):
        path = root / image.label / os.fsdecode(name + image.ending.encode())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.content)
    return root


def write_tar(root: Path, images: Sequence[Picture], inside: Sequence[bytes]) -> Path:
    root.mkdir()
    with tarfile.open(root / "shard.tar", "w") as archive:
        for image, name in zip(images, inside, strict=True):
            key = f"{os.path.dirname(os.fsdecode(name))}/k{re.sub(rb'[^0-9]', b'', name).decode()}"
            for ending, content in ((image.ending, image.content), (".cls", image.label.encode())):
                member = tarfile.TarInfo(f"{key}-{images.index(image)}{ending}".lstrip("/"))
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return root


def write_parquet(root: Path, images: Sequence[Picture], inside: Sequence[bytes]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    root.mkdir()
    labels = [image.label for image in images]
    table = pyarrow.table({"image": [image.content for image in images], "label": labels})
    parquet.write_table(table, root / "x.parquet")
    return root


corpus = settings(
    max_examples=int(os.environ.get("GOOD_RT_CORPUS", "2000")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""How many inputs each property is tried with."""
WRITERS = (write_folder, write_tar, write_parquet)


def divided(splits: Splits) -> dict[str, tuple[str, str]]:
    """The class and part of each content."""
    return {
        file.digest: (splits.class_name(file.label), file.part) for file in splits.files.values()
    }


@pytest.mark.slow
@corpus
@given(st.data())
def test_the_same_images_are_divided_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("corpus")
    images = data.draw(pictures())
    first = make_splits(
        open_source(write_folder(root / "a", images, data.draw(names(len(images)))))
    )
    order = data.draw(st.permutations(images))
    writer = data.draw(st.sampled_from(WRITERS))
    other = make_splits(
        open_source(writer(root / "b", order, data.draw(names(len(images))))), check=True
    )
    assert divided(first) == divided(other)
    assert set(first.classes or ()) == set(other.classes or ()) == {i.label for i in images}
    again = make_splits(open_source(root / "a"))
    assert again.fingerprint == first.fingerprint and again.listing == first.listing
    first.write(root / "splits.json")
    assert Splits.read(root / "splits.json").fingerprint == first.fingerprint


EXTRAS = (
    ".hidden.png", ".trash/x.png", "@eaDir/x.jpg", "notes.txt", "raw.dng", "x.npz", "x.tar",
    "broken.png", "empty.jpg", "float.tif", "link.png", "pipe.png", "beside.png", "copy.png",
)  # fmt: skip


def add_extra(root: Path, images: Sequence[Picture], name: str) -> None:
    """A file that is not used, or an image that has a copy."""
    path = root / ("" if name == "beside.png" else images[0].label) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "link.png":
        path.symlink_to("/nowhere/object")
    elif name == "pipe.png":
        os.mkfifo(path)
    elif name == "float.tif":
        Image.fromarray(np.full((5, 5), 200, np.float32)).save(path)
    elif name in ("beside.png", "copy.png"):
        path.write_bytes(images[0].content)
    else:
        path.write_bytes(b"" if name == "empty.jpg" else b"nothing that can be read")


@pytest.mark.slow
@corpus
@given(st.data())
def test_every_file_is_used_or_said_not_to_be(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("corpus") / "data"
    images = data.draw(pictures())
    write_folder(root, images, data.draw(names(len(images))))
    extras = data.draw(st.lists(st.sampled_from(EXTRAS), unique=True))
    for name in extras:
        add_extra(root, images, name)
    source = open_source(root)
    splits = make_splits(source, SplitConfig(skip_bad=True))
    said = "\n".join(splits.skipped)
    grouped = [int(count) for count in re.findall(r": (\d+) \(", "\n".join(source.left_out))]
    used = len(splits.files)
    bad = len(splits.skipped) - len(source.left_out)
    assert used + sum(grouped) + bad == len(images) + len(extras)
    assert used == len(images) + ("copy.png" in extras)
    for name in extras:
        assert name == "copy.png" or name in said or "..." in said
    plain = make_splits(source, SplitConfig(skip_bad=True))
    assert plain.fingerprint == splits.fingerprint
