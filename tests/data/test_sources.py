"""Sources of every kind: the same images come out of each, one at a time, and what is bad is
named."""

from __future__ import annotations

import io
import json
import os
import tarfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from good_rt.config.settings import ImageLimits, SplitConfig
from good_rt.data.id_data import IdData, unlabelled
from good_rt.data.limits import image_limits
from good_rt.data.sources.base import PARTS, ImageSource, part_in
from good_rt.data.sources.open import open_source
from good_rt.data.splits import make_splits
from good_rt.demo import assets
from good_rt.errors import GoodRtError, LeftOutWarning

COUNT = 24
CLASSES = assets.CLASSES[:3]
SKIP = SplitConfig(skip_bad=True)
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
    (item,) = open_source(tmp_path).items()
    with pytest.raises(GoodRtError, match="is not embedded in the dataset"):
        item.readable()


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


def stray_tar(folder: Path) -> None:
    with tarfile.open(folder / "backup.tar", "w") as archive:
        add(archive, "notes/readme.txt", b"hello")


def stray_damaged_tar(folder: Path) -> None:
    (folder / "backup.tar").write_bytes(b"no tar at all")


def stray_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"w": [3], "hash": [b"\1\2"]}), folder / "metadata.parquet")


def stray_npz(folder: Path) -> None:
    np.savez(folder / "features.npz", x=np.zeros(3))


def stray_npz_of_a_class(folder: Path) -> None:
    np.savez(folder / CLASSES[0] / "features.npz", images=pictures(), labels=LABELS)


STRAYS = [stray_tar, stray_damaged_tar, stray_parquet, stray_npz, stray_npz_of_a_class]


@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_file_does_not_replace_a_folder_of_classes(
    tmp_path: Path, stray: Callable[[Path], None]
) -> None:
    before = set(write_folder(tmp_path).rglob("*"))
    stray(tmp_path)
    (name,) = (path.name for path in set(tmp_path.rglob("*")) - before)
    source = open_source(tmp_path)
    assert source.kind == "folder" and source.classes == tuple(sorted(CLASSES))
    assert len(source.entries) == COUNT
    assert any(name in line for line in source.left_out)
    assert any("notes.txt" in line for line in source.left_out)


@pytest.mark.parametrize(
    "writer", ["npz", "webdataset", "huggingface, arrow", "huggingface, parquet"]
)
def test_two_ways_to_read_a_folder_are_an_error_that_names_both(
    tmp_path: Path, writer: str
) -> None:
    write_folder(tmp_path)
    WRITERS[writer](tmp_path)
    other = {"npz": r"x\.npz", "huggingface, arrow": "saved dataset"}
    other |= {"webdataset": r"shard-0\.tar", "webdataset, compressed": r"shard-0\.tar\.gz"}
    second = other.get(writer, r"data/train-00000-of-00001\.parquet")
    with pytest.raises(
        GoodRtError, match=rf"holds 24 image files \(such as .*\.png\) and .*{second}.*move one"
    ):
        open_source(tmp_path)


def test_two_kinds_of_container_are_an_error_that_names_both(tmp_path: Path) -> None:
    write_tars(tmp_path)
    write_npz(tmp_path)
    with pytest.raises(GoodRtError, match=r"holds shard-0\.tar and x\.npz, either of which could"):
        open_source(tmp_path)


def test_a_stray_file_does_not_replace_shards(tmp_path: Path) -> None:
    write_tars(tmp_path)
    stray_parquet(tmp_path)
    stray_npz(tmp_path)
    assert open_source(tmp_path).kind == "webdataset"


def test_shards_in_hidden_folders_are_not_the_users(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    write_tars(tmp_path / ".cache")
    write_folder(tmp_path)
    source = open_source(tmp_path)
    assert source.kind == "folder" and any("shard-0.tar" in line for line in source.left_out)


def test_images_beside_the_folders_of_classes_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "preview.png").write_bytes(png(pictures()[0]))
    source = open_source(tmp_path)
    assert len(source.entries) == COUNT
    assert "images beside the folders of classes: 1 (preview.png)" in source.left_out


def test_a_flat_folder_with_a_folder_in_it_is_an_error_that_names_both_readings(
    tmp_path: Path,
) -> None:
    (tmp_path / "rejected").mkdir()
    for name in ("1.png", "2.png", "rejected/3.png"):
        (tmp_path / name).write_bytes(png(pictures()[0]))
    with pytest.raises(
        GoodRtError, match=r"has 2 images beside its folders \(such as 1\.png\) and 1 in them: .*"
    ):
        open_source(tmp_path)
    (tmp_path / "rejected" / "3.png").unlink()
    assert len(open_source(tmp_path).entries) == 2  # a folder of something else


def test_parts_beside_another_folder_are_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("train/cat", "val/cat", "docs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(png(pictures()[0]))
    with pytest.raises(GoodRtError, match=r"the folders train, val, which are parts .*, and docs"):
        open_source(tmp_path)


def test_an_empty_class_says_what_was_skipped_there(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "hat").mkdir()
    (tmp_path / "hat" / "1.dng").touch()
    with pytest.raises(GoodRtError, match=r"class 'hat' has no images; .*skipped: .*\.dng"):
        open_source(tmp_path)


def write_fields(folder: Path, *fields: str, count: int = 3) -> Path:
    """A shard whose samples have an image in each field."""
    with tarfile.open(folder / "x.tar", "w") as archive:
        for i in range(count):
            for shift, field in enumerate(fields):
                add(archive, f"{i}.{field}", png(pictures()[i + shift]))
            add(archive, f"{i}.cls", b"0")
    return folder


@pytest.mark.parametrize(
    "fields", [("png", "seg.png"), ("seg.png", "png"), ("png", "left.png", "right.jpg")]
)
def test_of_several_images_the_one_named_by_its_key_is_taken(
    tmp_path: Path, fields: tuple[str, ...]
) -> None:
    source = open_source(write_fields(tmp_path, *fields))
    assert [entry.name for entry in source.entries] == [f"x.tar/{i}.png" for i in range(3)]
    assert [entry.label for entry in source.entries] == [0, 0, 0]
    for item, image in zip(source.items(), pictures()[fields.index("png") :], strict=False):
        np.testing.assert_array_equal(item.image(1, 32), image)
    (line,) = source.left_out
    assert line.startswith(f"further images of samples: {3 * len(fields) - 3} (x.tar/0.")


def test_a_sample_that_only_has_a_mask_is_counted(tmp_path: Path) -> None:
    write_fields(tmp_path, "png", "seg.png")
    with tarfile.open(tmp_path / "y.tar", "w") as archive:
        add(archive, "9.seg.png", png(pictures()[9]))
        add(archive, "9.cls", b"0")
    source = open_source(tmp_path)
    assert len(source.entries) == 3
    assert "further images of samples: 4 " in source.left_out[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("left.png", "right.png"), r"several images \(KEY\.left and KEY\.right\).* first dot"),
        (("jpg", "png"), r"0\.jpg and 0\.png are two images of one sample; leave one out"),
        (("img.jpg", "img.png"), r"0\.img\.jpg and 0\.img\.png are two images of one sample"),
        (("jpg", "png", "seg.png"), r"0\.jpg and 0\.png are two images of one sample"),
    ],
)
def test_several_images_of_equal_rank_are_an_error_that_names_both(
    tmp_path: Path, fields: tuple[str, ...], message: str
) -> None:
    with pytest.raises(GoodRtError, match=message):
        open_source(write_fields(tmp_path, *fields))


def test_names_with_dots_stay_images_where_each_key_has_one(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("cat/a.v1.png", "cat/b.png", "dog/IMG.2020.png", "dog/._b.png"):
            add(archive, name, png(pictures()[0]))
        add(archive, "dog/caption.txt", b"a dog")
    source = open_source(tmp_path)
    assert [entry.label for entry in source.entries] == [0, 0, 1]
    assert any("dog/._b.png" in line for line in source.left_out)
    assert any("dog/caption.txt" in line for line in source.left_out)


def write_columns(path: Path, **columns: object) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        parquet.write_table(pyarrow.table(columns), file)
    return path


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
@pytest.mark.parametrize("labels", ["string", "large_string", "dictionary", "int8"])
def test_parquet_of_other_column_types(tmp_path: Path, kind: str, labels: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    contents = [png(image) for image in pictures()]
    if kind == "struct":
        images = pyarrow.array([{"bytes": content, "path": None} for content in contents])
    else:
        images = pyarrow.array(contents, getattr(pyarrow, kind)())
    names = [CLASSES[label] for label in LABELS]
    column = {
        "dictionary": lambda: pyarrow.array(names).dictionary_encode(),
        "int8": lambda: pyarrow.array(LABELS, pyarrow.int8()),
    }.get(labels, lambda: pyarrow.array(names, getattr(pyarrow, labels)()))()
    path = write_columns(tmp_path / "a#b c%20.parquet", image=images, label=column)
    for source in (open_source(path), open_source(tmp_path)):
        found = [entry.label for entry in source.entries]
        if labels == "int8":
            assert source.classes is None and found == LABELS.tolist()
        else:
            assert source.classes == tuple(sorted(CLASSES))
            assert [source.classes[label] for label in found] == names  # type: ignore[index]
        for item, image in zip(source.items(), pictures(), strict=True):
            np.testing.assert_array_equal(item.image(1, 32), image)


def test_texts_that_are_numbers_are_labels_as_numbers(tmp_path: Path) -> None:
    contents = [png(image) for image in pictures()[:3]]
    write_columns(tmp_path / "x.parquet", image=contents, label=["10", "9", "0"])
    source = open_source(tmp_path)
    assert source.classes is None and [entry.label for entry in source.entries] == [10, 9, 0]


def test_other_columns_of_bytes_are_no_images(tmp_path: Path) -> None:
    contents = [png(image) for image in pictures()[:3]]
    write_columns(tmp_path / "x.parquet", digest=[b"a", b"b", b"c"], photo=contents, cls=[0, 1, 0])
    assert [item.digest() for item in open_source(tmp_path).items()]
    assert [entry.label for entry in open_source(tmp_path).entries] == [0, 1, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("before", "after"), r"several columns of images: before, after; .*call the right one"),
        (("image", "img"), r"several columns of images: image, img"),
        (("image", "mask"), ""),
    ],
)
def test_several_columns_of_images(tmp_path: Path, columns: tuple[str, ...], message: str) -> None:
    contents = {
        name: [png(image) for image in pictures()[i : i + 3]] for i, name in enumerate(columns)
    }
    write_columns(tmp_path / "x.parquet", **contents)
    if message:
        with pytest.raises(GoodRtError, match=message):
            open_source(tmp_path / "x.parquet")
    else:
        item = next(iter(open_source(tmp_path).items()))
        np.testing.assert_array_equal(item.image(1, 32), pictures()[0])


def test_several_columns_of_labels_are_an_error_that_names_both(tmp_path: Path) -> None:
    contents = [png(image) for image in pictures()[:3]]
    write_columns(
        tmp_path / "x.parquet", image=contents, category=["a", "b", "c"], target=[0, 1, 2]
    )
    with pytest.raises(
        GoodRtError, match=r"several columns of labels: category, target; .*'label'"
    ):
        open_source(tmp_path)


def test_mixed_labels_are_named(tmp_path: Path) -> None:
    contents = [png(image) for image in pictures()[:3]]
    write_columns(tmp_path / "x.parquet", image=contents, label=[0.5, 1.0, 2.0])
    with pytest.raises(GoodRtError, match=r"row\[0\] has the label 0\.5; labels must be whole"):
        open_source(tmp_path)


@pytest.mark.parametrize("writer", WRITERS)
def test_names_of_any_bytes_are_read(tmp_path: Path, writer: str) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9 #1@x")
    (tmp_path / "x").mkdir()
    path = WRITERS[writer](tmp_path / "x")
    (tmp_path / "x").rename(folder)
    path = folder / path.name if path.suffix == ".npz" else folder
    source = open_source(path)
    assert len(list(source.items())) == COUNT
    make_splits(source).write(tmp_path / "splits.json")
    assert len(IdData(tmp_path / "splits.json").part("train", CLASSES, 1, 32)) == 15


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GoodRtError, match="pipe is a pipe or device, not a file"):
        open_source(tmp_path / "pipe")


@pytest.mark.parametrize("writer", ["folder", "webdataset", "huggingface, parquet"])
def test_skip_bad_skips_what_the_source_cannot_read(tmp_path: Path, writer: str) -> None:
    limits = ImageLimits(max_bytes=max(len(png(image)) for image in pictures()) - 1)
    source = open_source(WRITERS[writer](tmp_path))
    with image_limits(limits):
        with pytest.raises(GoodRtError, match=r"has more than .* MiB; refused .*--skip-bad"):
            make_splits(source, check=True)
        splits = make_splits(source, SplitConfig(skip_bad=True))
    too_large = [line for line in splits.skipped if "has more than" in line]
    assert 0 < len(too_large) == COUNT - len(splits.files)


def test_an_image_that_vanishes_is_skipped_by_name(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    (tmp_path / source.entries[5].name).unlink()
    with pytest.raises(GoodRtError, match=r"005\.png|\.png does not exist .*--skip-bad"):
        make_splits(source)
    assert any("does not exist" in line for line in make_splits(source, SKIP).skipped)


def test_12_bits_in_a_container_of_16_are_refused_by_all_images_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(6):
        (tmp_path / f"class {i % 2}").mkdir(exist_ok=True)
        values = rng.integers(0, 4096, (32, 32), np.uint16)
        Image.fromarray(values).save(tmp_path / f"class {i % 2}" / f"{i}.png")
    with pytest.raises(GoodRtError, match=r"no value of 6 grey images of 16 bits is above 40\d\d"):
        make_splits(open_source(tmp_path), check=True)
    bright = np.full((32, 32), 60000, np.uint16)
    Image.fromarray(bright).save(tmp_path / "class 0" / "bright.png")
    make_splits(open_source(tmp_path), check=True)  # one image tells that the others are dark


def test_what_is_left_out_is_said_where_no_splits_are_recorded(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / CLASSES[0] / "1.dng").touch()
    with pytest.warns(LeftOutWarning, match=r"files of other kinds: 2 \(\.dng, \.txt"):
        IdData(tmp_path).rows("train")
    with pytest.warns(LeftOutWarning, match=r"files of other kinds: 2"):
        unlabelled(tmp_path, 1, 32)
    splits = make_splits(open_source(tmp_path))
    assert any("1.dng" in line for line in splits.skipped)
    splits.write(tmp_path / "splits.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        IdData(tmp_path).rows("train")
