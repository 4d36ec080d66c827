"""Splits: the same images always give the same parts, copies are together, and what is recorded
holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from good_rt.classifier.class_names import class_outputs
from good_rt.config.settings import SplitConfig
from good_rt.data.id_data import IdData
from good_rt.data.sources.base import PARTS, Item, ListedImage
from good_rt.data.sources.open import open_source
from good_rt.data.splits import Splits, make_splits
from good_rt.errors import GoodRtError


class Memory:
    """A source of a few bytes an image."""

    kind, path, classes, left_out = "memory", Path("memory"), None, ()

    def __init__(
        self, contents: list[int], labels: list[int], parts: list[str] | None = None
    ) -> None:
        self.contents = contents
        given = parts or [None] * len(contents)
        pairs = zip(labels, given, strict=True)
        self.entries = [
            ListedImage(f"{i}.png", label, part) for i, (label, part) in enumerate(pairs)
        ]
        self.listing = str(contents)

    def items(self, rows: object = None) -> Iterator[Item]:
        for row, value in enumerate(self.contents):
            yield Item(row, f"memory/{row}.png", str(value).encode())


@st.composite
def contents(draw: st.DrawFn) -> Memory:
    """Images of up to four classes with copies inside each class."""
    values, labels = [], []
    for label in range(draw(st.integers(1, 4))):
        distinct = draw(st.integers(3, 40))
        for value in range(distinct):
            copies = draw(st.sampled_from([1, 1, 1, 2, 3]))
            values += [1000 * label + value] * copies
            labels += [label] * copies
    order = draw(st.permutations(range(len(values))))
    return Memory([values[i] for i in order], [labels[i] for i in order])


@settings(max_examples=60, deadline=None)
@given(contents(), st.integers(0, 3))
def test_parts_share_no_content_and_have_their_shares(source: Memory, seed: int) -> None:
    config = SplitConfig(0.25, 0.15, seed)
    splits = make_splits(source, config)
    part_of: dict[int, set[str]] = {}
    for row, file in splits.files.items():
        part_of.setdefault(source.contents[row], set()).add(file.part)
    assert all(len(parts) == 1 for parts in part_of.values())  # every copy is in one part
    rows = {part: splits.rows(part) for part in PARTS}
    used = [source.contents[row] for found in rows.values() for row in found]
    assert sorted(used) == sorted(set(source.contents))  # each content is used once
    for label in {entry.label for entry in source.entries}:
        count = {
            part: sum(source.entries[row].label == label for row in found)
            for part, found in rows.items()
        }
        total = sum(count.values())
        for part, share in (("train", 0.6), ("held_out", 0.25), ("test", 0.15)):
            assert count[part] >= 1 and abs(count[part] - share * total) <= 1.5


@settings(max_examples=30, deadline=None)
@given(contents())
def test_order_and_names_change_nothing(source: Memory) -> None:
    def parts(found: Splits, contents: list[int]) -> dict[int, str]:
        return {contents[row]: file.part for row, file in found.files.items()}

    order = np.random.default_rng(0).permutation(len(source.contents))
    labels = [source.entries[i].label or 0 for i in order]
    other = Memory([source.contents[i] for i in order], labels)
    assert parts(make_splits(source), source.contents) == parts(make_splits(other), other.contents)


def test_grown_data_keeps_its_parts() -> None:
    before = Memory(list(range(20)), [0] * 20)
    after = Memory(list(range(100)), [0] * 100)
    old = make_splits(before)
    grown = make_splits(after, before=old)
    assert all(grown.files[row].part == file.part for row, file in old.files.items())
    assert len(grown.rows("train")) == pytest.approx(60, abs=2)


def test_given_parts_are_kept_and_the_missing_one_is_half_of_the_other() -> None:
    source = Memory(list(range(30)), [i % 2 for i in range(30)], ["train"] * 18 + ["test"] * 12)
    splits = make_splits(source)
    assert splits.given and splits.rows("train") == list(range(18))
    held_out, test = splits.rows("held_out"), splits.rows("test")
    assert len(held_out) == len(test) == 6 and sorted(held_out + test) == list(range(18, 30))
    assert sum(row % 2 for row in held_out) == 3
    without = Memory([1, 2, 3, 4], [0] * 4, ["test", "test", "held_out", "held_out"])
    with pytest.raises(GoodRtError, match="has the parts held_out, test but no train"):
        make_splits(without)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            Memory([1, 2, 3, 1], [0, 0, 0, 0], ["train", "train", "test", "test"]),
            r"memory: 0\.png and 3\.png are the same image in two parts of the data; keep one",
        ),
        (
            Memory([1, 2, 3, 1], [0, 0, 0, 1]),
            r"0\.png and 3\.png are the same image in two classes",
        ),
        (
            Memory([1, 1, 2, 3, 1], [0, 0, 0, 0, 1]),
            r"0\.png and 4\.png are the same image in two classes \(so are 1\.png\)",
        ),
        (Memory([1, 2, 2], [0, 0, 0]), r"class 0 has 2 different images; at least 3 are needed"),
    ],
)
def test_contradictions_name_the_files(source: Memory, message: str) -> None:
    with pytest.raises(GoodRtError, match=message):
        make_splits(source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 20 random images each."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def test_what_is_written_is_read_and_the_folder_can_move(folder: Path, tmp_path: Path) -> None:
    splits = make_splits(open_source(folder))
    splits.write(tmp_path / "splits.json")
    again = Splits.read(tmp_path / "splits.json")
    assert (
        replace(again, source=splits.source) == splits and again.fingerprint == splits.fingerprint
    )
    (tmp_path / "moved").mkdir()
    for name in ("data", "splits.json"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    data = IdData(tmp_path / "moved" / "splits.json")
    assert len(data.part("train", ("cat", "dog"), 3, 8)) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [1, 2]}, r"classes\.0 is 1, but must be a text"),
        ({"classes": "cat"}, "classes is 'cat', but must be a list"),
        ({"files": {"0": ["../../x.png", 0, "train", "d", False]}}, r"files\.0\.0 is .*inside"),
        ({"files": {"0": ["/etc/x.png", 0, "train", "d", False]}}, r"files\.0\.0 is .*inside"),
        ({"files": {"0": ["x.png", 0, "val", "d", False]}}, r"files\.0\.2 is 'val', but must be o"),
        ({"files": {"0": ["x.png", 0, "train"]}}, r"files\.0 has 3 values, but must have 5"),
        ({"files": {"-1": ["x.png", 0, "train", "d", False]}}, "files has the row '-1'"),
        ({"files": []}, "files is a list, but must be an object"),
        ({"given": None}, "given is None, but must be true or false"),
        ({"config": {"seed": -1}}, "config: seed is -1, but must be at least 0"),
        ({"source": {"path": 3}}, r"source\.kind is missing"),
        ({"skipped": 3}, "skipped is 3, but must be a list"),
    ],
)
def test_a_damaged_splits_file_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "splits.json"
    make_splits(open_source(folder)).write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(GoodRtError, match=rf"splits\.json is damaged \(.*{message}.*; split again"):
        IdData(path).rows("train")


def test_a_splits_file_that_names_other_images_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    make_splits(open_source(folder)).write(path)
    record = json.loads(path.read_text())
    for row, name in (("40", "cat/40.png"), ("0", "cat/40.png")):
        files = {**record["files"], row: [name, 0, "train", "d", False]}
        path.write_text(json.dumps({**record, "files": files}))
        with pytest.raises(
            GoodRtError, match=r"has changed since it was split .*another name or size"
        ):
            IdData(path).rows("train")


def test_a_splits_file_in_the_folder_is_used(folder: Path) -> None:
    make_splits(open_source(folder), SplitConfig(held_out=0.5, seed=7)).write(
        folder / "splits.json"
    )
    assert IdData(folder).splits.config.seed == 7
    assert len(IdData(folder).rows("held_out")) == 20


def test_changed_data_is_found(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    make_splits(open_source(folder)).write(path)
    row = IdData(path).rows("train")[0]
    name = IdData(path).splits.files[row].name
    content = (folder / name).read_bytes()
    other = next(
        p
        for p in folder.rglob("*.png")
        if p.stat().st_size == len(content) and p.read_bytes() != content
    )
    (folder / name).write_bytes(other.read_bytes())
    with pytest.raises(GoodRtError, match=rf"{name} has changed since it was split"):
        IdData(path).part("train", 2, 3, 8)
    (folder / name).unlink()
    with pytest.raises(GoodRtError, match=r"has changed since it was split .*split it again"):
        IdData(path).rows("train")


def test_a_damaged_image_is_named_when_it_is_read(folder: Path) -> None:
    (folder / "cat" / "3.png").write_bytes((folder / "cat" / "3.png").read_bytes()[:60])
    with pytest.raises(GoodRtError, match=r"cat/3\.png is a damaged image .*--skip-bad"):
        [IdData(folder).part(part, 2, 3, 8) for part in PARTS]


def test_bad_and_contradicting_images_are_left_out_and_said(folder: Path) -> None:
    (folder / "cat" / "3.png").write_bytes((folder / "cat" / "3.png").read_bytes()[:60])
    shutil.copy(folder / "cat" / "4.png", folder / "dog" / "copy.png")
    with pytest.raises(
        GoodRtError, match=r"cat/3\.png is a damaged image .*--skip-bad of `good-rt split`"
    ):
        make_splits(open_source(folder), check=True)
    splits = make_splits(open_source(folder), SplitConfig(skip_bad=True))
    assert len(splits.skipped) == 2
    names = {file.name for file in splits.files.values()}
    assert not names & {"cat/3.png", "cat/4.png", "dog/copy.png"} and len(names) == 38


def test_images_come_batch_by_batch_and_few_at_a_time(folder: Path) -> None:
    data = IdData(folder)
    whole = data.part("train", ("cat", "dog"), 3, 8)
    batches = list(data.batches("train", ("cat", "dog"), 3, 8, batch=7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 3]
    pairs = {
        (image.tobytes(), label)
        for b in batches
        for image, label in zip(b.images, b.labels, strict=True)
    }  # type: ignore[arg-type]
    assert pairs == {
        (image.tobytes(), label) for image, label in zip(whole.images, whole.labels, strict=True)
    }  # type: ignore[arg-type]
    few = data.part("train", ("cat", "dog"), 3, 8, limit=6)
    assert len(few) == 6 and {image.tobytes() for image in few.images} <= {
        image.tobytes() for image in whole.images
    }


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 0.8])
def test_shares_that_cannot_be(held_out: float) -> None:
    with pytest.raises(GoodRtError, match="held_out"):
        SplitConfig(held_out=held_out, test=0.2)


@pytest.mark.parametrize(
    "text", ["{}", '{"format": 1}', '{"format": 1, "source": {"path": 3}, "classes": null}']
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(GoodRtError, match=r"splits\.json.*split again"):
        IdData(tmp_path / "splits.json").splits  # noqa: B018


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (["cat", "dog"], ["Dog", "Cat"], [1, 0]),
        (["T-shirt", "ankle boot"], ["ankle_boot", "t shirt"], [1, 0]),
        (["0", "2", "1"], ["a", "b", "c"], [0, 2, 1]),
        (["cat", "dog"], ["class 0", "class 1"], [0, 1]),
    ],
)  # fmt: skip
def test_classes_are_matched(found: list[str], wanted: list[str], expected: list[int]) -> None:
    assert class_outputs(found, wanted, "x") == expected


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (["cat"], ["cat", "dog"], r"x has 1 class \(cat\), the classifier 2 \(cat, dog\)"),
        (
            ["cat", "cow"],
            ["cat", "dog"],
            "classes cow are not among the classifier's, which also has dog",
        ),
        (["1", "2"], ["a", "b"], "classes 1, 2 are not among the classifier's"),
    ],
)
def test_classes_that_do_not_match(found: list[str], wanted: list[str], message: str) -> None:
    with pytest.raises(GoodRtError, match=message):
        class_outputs(found, wanted, "x")
