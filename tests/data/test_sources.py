"""Sources of every kind: the same images come out of each, one at a time, and what is bad is
named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from good_rt.data.id_data import IdData
from good_rt.data.sources.base import PARTS, ImageSource, part_in
from good_rt.data.sources.open import open_source
from good_rt.demo import assets
from good_rt.errors import GoodRtError

COUNT = 24
CLASSES = assets.CLASSES[:3]
LABELS = np.arange(COUNT) % len(CLASSES)


@cache
def pictures() -> NDArray[np.uint8]:
    return assets.load_images("test").images[:COUNT]


def png(image: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image[..., 0]).save(content, "PNG")
    return content.getvalue()


def write_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "x.npz", images=pictures(), labels=LABELS)
    return folder / "x.npz"


def write_folder(folder: Path) -> Path:
    for i, image in enumerate(pictures()):
        path = folder / CLASSES[LABELS[i]] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    (folder / ".hidden").mkdir()
    (folder / CLASSES[0] / "notes.txt").write_text("no image")
    return folder


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_tars(folder: Path, mode: str = "w", suffix: str = "tar") -> Path:
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.{suffix}", mode) as archive:  # type: ignore[call-overload]
            for i in range(shard, COUNT, 2):
                add(archive, f"{i:03}.png", png(pictures()[i]))
                add(archive, f"{i:03}.cls", str(LABELS[i]).encode())
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def table() -> object:
    import pyarrow

    pyarrow_images = [{"bytes": png(image), "path": None} for image in pictures()]
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(CLASSES)},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.table(
        {"image": pyarrow_images, "label": LABELS.tolist()}
    ).replace_schema_metadata(metadata)


def write_arrow(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", table().schema) as writer:  # type: ignore[attr-defined]
        writer.write_table(table(), max_chunksize=7)
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_indices_data_files": None,
    }
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def write_parquet(folder: Path) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir()
    parquet.write_table(table(), folder / "data" / "train-00000-of-00001.parquet")
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "npz": write_npz,
    "folder": write_folder,
    "webdataset": write_tars,
    "webdataset, compressed": lambda folder: write_tars(folder, "w:gz", "tar.gz"),
    "huggingface, arrow": write_arrow,
    "huggingface, parquet": write_parquet,
}


@pytest.fixture(params=list(WRITERS))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSource:
    found = open_source(WRITERS[request.param](tmp_path))
    assert found.kind == request.param.partition(",")[0]
    return found


def test_every_source_gives_the_same_images_and_classes(source: ImageSource) -> None:
    expected = {
        image.tobytes(): CLASSES[label] for image, label in zip(pictures(), LABELS, strict=True)
    }
    found = {}
    for row, item in enumerate(source.items()):
        assert item.row == row
        label = source.entries[row].label
        assert label is not None
        name = CLASSES[label] if source.classes is None else source.classes[label]
        found[item.image(1, 32).tobytes()] = name
    assert found == expected
    assert len({entry.name for entry in source.entries}) == COUNT


def test_id_data_divides_every_source(source: ImageSource) -> None:
    data = IdData(source.path)
    parts = {name: data.part(name, CLASSES, 1, 32) for name in PARTS}
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 15,
        "held_out": 5,
        "test": 4,
    }
    found = {}
    for part in parts.values():
        assert part.labels is not None
        found |= {
            image.tobytes(): label for image, label in zip(part.images, part.labels, strict=True)
        }
    assert found == {
        image.tobytes(): label for image, label in zip(pictures(), LABELS, strict=True)
    }


def test_rows_are_those_of_the_listing(source: ImageSource) -> None:
    every = {item.row: item.digest() for item in source.items()}
    rows = [3, 4, 17, 23]
    assert {item.row: item.digest() for item in source.items(rows)} == {
        row: every[row] for row in rows
    }
    assert list(source.items([])) == []
    assert len(set(every.values())) == COUNT


def test_the_listing_tells_a_changed_source(source: ImageSource) -> None:
    before = source.listing
    assert open_source(source.path).listing == before
    for path in sorted(source.path.rglob("*") if source.path.is_dir() else [source.path]):
        if path.suffix in {".png", ".tar", ".gz", ".npz", ".arrow", ".parquet"}:
            with path.open("ab") as file:
                file.write(b"\0" * 512)
            break
    assert (
        type(source)(
            **{k: v for k, v in vars(source).items() if k in source.__dataclass_fields__}
        ).listing
        != before
    )  # type: ignore[attr-defined]


def test_colour_is_made_of_grey_files_and_sizes_are_fitted(tmp_path: Path) -> None:
    item = next(open_source(write_folder(tmp_path)).items())
    assert item.image(3, 16).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train-000", "train"),
        ("imagenet-val-0001", "held_out"),
        ("held_out", "held_out"),
        ("x_test_3", "test"),
        ("training1", "train"),
        ("shard-0", None),
        ("train-test", None),
        ("latest", None),
    ],
)
def test_names_of_parts(name: str, part: str | None) -> None:
    assert part_in(name) == part


def test_parts_given_by_folders_shards_and_splits(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_folder(tmp_path / "folder" / part)
        (tmp_path / "tar").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tar" / f"{part}-00.tar", "w") as archive:
            add(archive, f"shirt/{part}.png", png(pictures()[0]))
    expected = {"train", "held_out", "test"}
    assert {entry.part for entry in open_source(tmp_path / "folder").entries} == expected
    shards = open_source(tmp_path / "tar")
    assert [entry.part for entry in shards.entries] == ["test", "train", "held_out"]
    assert shards.classes == ("shirt",)


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("train", "plane"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(pictures()[0]))
    source = open_source(tmp_path)
    assert source.classes == ("plane", "train")
    assert {entry.part for entry in source.entries} == {None}


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(pictures()[0]))
    source = open_source(tmp_path)
    assert source.classes is None and [entry.label for entry in source.entries] == [None]


def bad_tar(folder: Path, name: str, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(folder / "x.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return folder


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "gone", "gone does not exist; give a folder per class"),
        (lambda p: p, "holds no images that good-rt knows; give a folder per class"),
        (lambda p: bad_tar(p, "../1.png"), "'../1.png' is no plain file, or leads outside"),
        (lambda p: bad_tar(p, "/1.png"), "'/1.png' is no plain file, or leads outside"),
        (lambda p: bad_tar(p, "1.png", tarfile.SYMTYPE), "'1.png' is no plain file"),
        (lambda p: bad_tar(p, "1.png", tarfile.LNKTYPE), "'1.png' is no plain file"),
        (lambda p: bad_tar(p, "1.png", tarfile.CHRTYPE), "'1.png' is no plain file"),
        (lambda p: cut(write_tars(p) / "shard-0.tar", 0.3).parent, "shard-0.tar"),
        (lambda p: cut(write_npz(p), 0.5), "x.npz is not an .npz file of images"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(GoodRtError, match=message):
        list(open_source(make(tmp_path)).items())


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "hat").mkdir()
    with pytest.raises(GoodRtError, match="class 'hat' has no images"):
        open_source(tmp_path)


def test_a_sample_without_its_class_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "1.png", png(pictures()[0]))
        add(archive, "1.cls", b"0")
        add(archive, "2.png", png(pictures()[1]))
    with pytest.raises(
        GoodRtError, match=r"x\.tar: 2\.png has no class, others have; add KEY\.cls"
    ):
        open_source(tmp_path)


def test_json_gives_a_sample_its_class(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for i, name in enumerate(("cat", "dog")):
            add(archive, f"{i}.png", png(pictures()[i]))
            add(archive, f"{i}.json", json.dumps({"label": name}).encode())
    source = open_source(tmp_path)
    assert source.classes == ("cat", "dog") and [entry.label for entry in source.entries] == [0, 1]
    with tarfile.open(tmp_path / "y.tar", "w") as archive:
        add(archive, "3.png", png(pictures()[3]))
        add(archive, "3.json", b"{not json")
    with pytest.raises(GoodRtError, match=r"y\.tar/3\.json is not a class that can be read"):
        open_source(tmp_path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(b"x")
    with pytest.raises(GoodRtError, match=r"data\.pkl is a pickle and is not read"):
        open_source(tmp_path)
    state = {"_data_files": [{"filename": "../../secret.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(GoodRtError, match="which is no Arrow file in this folder; refused"):
        open_source(tmp_path)
    np.savez(tmp_path / "odd.npz", images=np.array([{}], dtype=object))
    with pytest.raises(GoodRtError, match=r"odd\.npz"):
        open_source(tmp_path / "odd.npz")


def test_damaged_arrow_and_images_elsewhere_are_named(tmp_path: Path) -> None:
    write_arrow(tmp_path)
    cut(tmp_path / "data-00000-of-00001.arrow", 0.5)
    with pytest.raises(GoodRtError, match=r"arrow is not a file of a dataset that can be read"):
        list(open_source(tmp_path).items())


def test_images_that_a_dataset_only_names_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array([{"bytes": None, "path": "/etc/passwd"}], pyarrow.struct(
        {"bytes": pyarrow.binary(), "path": pyarrow.string()}))  # fmt: skip
    parquet.write_table(pyarrow.table({"image": column, "label": [0]}), tmp_path / "x.parquet")
    with pytest.raises(GoodRtError, match="is not embedded in the dataset"):
        list(open_source(tmp_path).items())


def test_what_the_datasets_library_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    rows = {
        "image": [{"bytes": png(image), "path": None} for image in pictures()],
        "label": LABELS.tolist(),
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made, "test": made.select(range(3))}).save_to_disk(
        tmp_path / "d"
    )
    source = open_source(tmp_path / "d")
    assert source.classes == CLASSES
    assert [entry.part for entry in source.entries] == ["train"] * COUNT + ["test"] * 3
    for item, image in zip(source.items(range(COUNT)), pictures(), strict=True):
        np.testing.assert_array_equal(item.image(1, 32), image)
