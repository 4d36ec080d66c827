"""Generated sets: what is appended is read back, an interruption costs no finished image, and
nothing else is taken."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from good_rt.data.generated_set import GeneratedSet, Row
from good_rt.data.image_files import find_images
from good_rt.errors import GoodRtError

JOB = {"seed": 3, "strengths": (0.5, 1.0), "nested": {"mu": 0.1}}
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def row(index: int) -> Row:
    return Row(
        index,
        f"images/{index:06d}.png",
        77 + index,
        index % 3,
        "both",
        0.5,
        -7.25,
        0.125,
        None,
        0.1,
    )


def filled(folder: Path, images: np.ndarray = GREY) -> GeneratedSet:  # type: ignore[type-arg]
    made = GeneratedSet(folder)
    made.begin(JOB)
    made.append(images[:3], [row(i) for i in range(3)])
    return made


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "rgb"])
def test_appended_is_read_back(tmp_path: Path, images: np.ndarray) -> None:  # type: ignore[type-arg]
    made = filled(tmp_path / "set", images)
    made.append(images[3:][::-1], [row(5), row(4), row(3)])  # in any order
    again = GeneratedSet(tmp_path / "set")
    assert again.rows() == [row(i) for i in range(6)]
    np.testing.assert_array_equal(again.images(), images)


def test_the_contact_sheet_shows_the_images(tmp_path: Path) -> None:
    made = filled(tmp_path)
    with Image.open(made.write_contact_sheet()) as sheet:
        assert sheet.size == (8 * 8 * 2, 8 * 2)
        np.testing.assert_array_equal(np.asarray(sheet)[:16:2, :48:2], np.hstack(GREY[:3, ..., 0]))


def test_a_sets_image_files_are_found_without_its_contact_sheet(tmp_path: Path) -> None:
    made = filled(tmp_path / "set")
    sheet = made.write_contact_sheet()
    assert find_images([tmp_path]) == [made.folder / row(index).file for index in range(3)]
    assert find_images([sheet]) == [sheet]  # asked for by name, it is a picture like any other


def test_images_of_some_rows_read_no_others(tmp_path: Path) -> None:
    made = filled(tmp_path)
    (tmp_path / row(0).file).unlink()
    np.testing.assert_array_equal(made.images(made.rows()[1:]), GREY[1:3])


def test_the_same_job_goes_on(tmp_path: Path) -> None:
    filled(tmp_path)
    again = GeneratedSet(tmp_path)
    again.begin(JOB)
    assert len(again.rows()) == 3


@pytest.mark.parametrize(
    ("job", "changed"),
    [
        ({**JOB, "seed": 4}, "seed"),
        ({**JOB, "nested": {"mu": 0.2}}, r"nested\.mu"),
        ({**JOB, "new": 1}, "new"),
        ({"seed": 3, "nested": {"mu": 0.1}}, "strengths"),
    ],
)
def test_another_job_is_refused_and_told_apart(
    tmp_path: Path, job: dict[str, Any], changed: str
) -> None:
    made = filled(tmp_path)
    with pytest.raises(GoodRtError, match=rf"holds images of another job \(different: {changed}\)"):
        made.begin(job)
    assert len(made.rows()) == 3


def test_a_manifest_without_its_job_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "job.json").unlink()
    with pytest.raises(GoodRtError, match=r"has a manifest but no job\.json"):
        GeneratedSet(tmp_path).begin(JOB)


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(GoodRtError, match=r"cannot write to .*file\.txt/set"):
        GeneratedSet(tmp_path / "file.txt" / "set").begin(JOB)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_row_cut_short_anywhere_does_not_count_and_is_made_anew(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    made = filled(tmp_path)
    whole = manifest.read_text()
    last = whole.rindex("\n", 0, -1) + 1
    for cut in [*range(last, len(whole), 9), len(whole) - 1]:
        manifest.write_text(whole[:cut])
        again = GeneratedSet(tmp_path)
        complete = cut == len(whole) - 1  # only the line's end is missing
        assert again.rows() == [row(i) for i in range(3 if complete else 2)]
        again.begin(JOB)
        again.append(GREY[2:4], [row(2), row(3)])
        assert again.rows() == [row(i) for i in range(4)]
        assert manifest.read_text().endswith("\n")
    np.testing.assert_array_equal(made.images(), GREY[:4])


def test_what_a_killed_process_left_half_written_is_taken_away(tmp_path: Path) -> None:
    made = filled(tmp_path)
    for folder in (tmp_path, tmp_path / "images"):
        holder = Path(
            tempfile.mkdtemp(prefix=".000003.png.", dir=folder)
        )  # as atomic_path makes them
        (holder / "000003.png").write_bytes(b"half")
    (tmp_path / ".mine.12345678").touch()
    made.begin(JOB)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        f"{i:06d}.png" for i in range(3)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        ".mine.12345678",
        "images",
        "job.json",
        "manifest.jsonl",
    }


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    made = filled(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    for broken in ("not json", json.dumps({"index": 1}), json.dumps([1])):
        manifest.write_text("\n".join([lines[0], broken, lines[2], ""]))
        with pytest.raises(GoodRtError, match=r"manifest\.jsonl, line 2 .*generate the set again"):
            made.rows()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": -1}, "index is -1, but must be at least 0"),
        ({"index": "1"}, "index is '1', but must be a whole number"),
        ({"label": -2}, "label is -2, but must be at least 0"),
        ({"label": None}, "label is None, but must be a whole number"),
        ({"energy": "low"}, "energy is 'low', but must be a finite number"),
        ({"energy": float("nan")}, "energy is nan, but must be a finite number"),
        ({"knn_distance": [1.0]}, "knn_distance is a list, but must be a finite number"),
        ({"guidance": "x"}, "guidance is 'x', but must be one of none, img, feat, both"),
        ({"file": 3}, "file is 3, but must be a text"),
        ({"file": "images/\0.png"}, "but must be a path inside the folder"),
        ({"weight": 1}, "weight is not a known key"),
    ],
)
def test_a_row_of_wrong_values_is_refused_wherever_it_stands(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    made = filled(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    for number in range(3):
        damaged = list(lines)
        damaged[number] = json.dumps({**json.loads(lines[number]), **change})
        manifest.write_text("\n".join([*damaged, ""]))
        with pytest.raises(GoodRtError) as caught:
            made.rows()
        assert f"manifest.jsonl, line {number + 1} is damaged (" in str(caught.value)
        assert message in str(caught.value)


def test_a_manifest_that_is_not_text_is_refused(tmp_path: Path) -> None:
    made = filled(tmp_path)
    with (tmp_path / "manifest.jsonl").open("ab") as manifest:
        manifest.write(b"\xff\xfe\n")
    with pytest.raises(GoodRtError, match=r"manifest\.jsonl, line 4 is not valid JSON"):
        made.rows()


def test_a_set_begun_with_an_impossible_batch_is_refused(tmp_path: Path) -> None:
    for batch in (0, "x", [8], 1.5):
        GeneratedSet(tmp_path).begin({"batch": batch})
        with pytest.raises(GoodRtError, match=r"job\.json is damaged \(batch is "):
            GeneratedSet(tmp_path).begun()
    GeneratedSet(tmp_path).begin({"batch": 8})
    assert GeneratedSet(tmp_path).begun().batch == 8


@pytest.mark.parametrize(
    "file", ["../secret.png", "images/../../secret.png", "{tmp}/secret.png", "manifest.jsonl"]
)
def test_paths_out_of_the_set_are_refused(tmp_path: Path, file: str) -> None:
    Image.fromarray(GREY[0, ..., 0]).save(tmp_path / "secret.png")
    made = filled(tmp_path / "set")
    line = json.dumps(vars(replace(row(1), file=file.format(tmp=tmp_path))))
    with (tmp_path / "set" / "manifest.jsonl").open("a") as manifest:
        manifest.write(line + "\n")
    with pytest.raises(GoodRtError, match=r"image 1 lies outside|a path inside the folder"):
        made.images()


def test_a_link_out_of_the_set_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY[0, ..., 0]).save(tmp_path / "secret.png")
    made = filled(tmp_path / "set")
    (tmp_path / "set" / row(1).file).unlink()
    (tmp_path / "set" / row(1).file).symlink_to(tmp_path / "secret.png")
    with pytest.raises(GoodRtError, match="image 1 lies outside"):
        made.images()


def test_missing_damaged_and_odd_images_are_named(tmp_path: Path) -> None:
    made = filled(tmp_path)
    path = tmp_path / row(1).file
    whole = path.read_bytes()
    for content in (None, b"", whole[:40], whole[:-30]):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(GoodRtError, match=r"000001\.png"):
            made.images()
        path.touch()
    Image.fromarray(GREY[0, :4, :, 0]).save(path)
    with pytest.raises(GoodRtError, match=r"000001\.png is not of the shape of the other images"):
        made.images()
    Image.fromarray(COLOUR[0]).convert("RGBA").save(path)
    with pytest.raises(GoodRtError, match=r"000001\.png is not of the shape"):
        made.images()


def test_an_empty_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        GoodRtError, match="holds no generated images; create them with `good-rt generate`"
    ):
        GeneratedSet(tmp_path).images()
