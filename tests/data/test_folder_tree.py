"""What lies in a folder: every image is used, or counted with the reason why it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from good_rt.data.folder_tree import (
    BROKEN_LINK,
    HIDDEN,
    NO_DECODER,
    OTHER_KIND,
    REPEATED,
    SHEET,
    SPECIAL,
    folder_tree,
    left_out_lines,
)
from good_rt.data.formats import FORMATS, decoders


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/1.png",
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        "cat/.Trash-1000/files/2.png",
        "cat/deep/er/.thumbnails/3.jpg",
        "cat/@eaDir/4.jpg",
        "__MACOSX/cat/5.png",
        "cat/._6.png",
        "$RECYCLE.BIN/7.png",
        "cat/.hidden/8.heic",
    ],
)
def test_hidden_folders_at_any_depth_are_left_out_and_counted(tmp_path: Path, hidden: str) -> None:
    tree = folder_tree(touch(tmp_path / "data", "cat/1.png", "cat/.DS_Store", hidden))
    assert tree.images == ("cat/1.png",) and tree.left_out == {HIDDEN: [hidden]}
    assert left_out_lines(tree.left_out) == (f"{HIDDEN}: 1 ({hidden})",)


def test_a_folder_below_a_hidden_one_is_the_users(tmp_path: Path) -> None:
    assert folder_tree(touch(tmp_path / ".cache/photos", "1.png")).images == ("1.png",)


def test_every_ending_whose_decoder_is_there_is_an_image(tmp_path: Path) -> None:
    names = [f"x{ending}" for _, endings in FORMATS.values() for ending in endings]
    tree = folder_tree(touch(tmp_path, *names, "y.WEBP", "z.JFIF"))
    readable = {f"x{ending}" for name in decoders() for ending in FORMATS[name][1]}
    assert set(tree.images) == readable | {"y.WEBP", "z.JFIF"}
    assert {"x.jfif", "x.jpe", "x.jp2", "x.webp"} <= readable
    assert set(tree.left_out.get(NO_DECODER, [])) == set(names) - readable


def test_files_of_other_kinds_are_counted_by_their_endings(tmp_path: Path) -> None:
    tree = folder_tree(touch(tmp_path, "1.png", "2.dng", "notes.txt", "raw"))
    assert left_out_lines(tree.left_out) == (
        f"{OTHER_KIND}: 3 (.dng, .txt, no ending, such as 2.dng, notes.txt, raw)",
    )


def test_linked_folders_are_entered_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "pool", "a.png", "deep/b.png")
    root = touch(tmp_path / "root", "cat/1.png", "dog/2.png")
    for link in ("cat/more", "dog/more"):
        (root / link).symlink_to(tmp_path / "pool")
    (root / "cat/up").symlink_to(root)
    (root / "dog/self").symlink_to(root / "dog")
    (root / "itself.png").symlink_to(root / "itself.png")
    tree = folder_tree(root)
    expected = [f"{name}/more/{inner}" for name in ("cat", "dog") for inner in ("a", "deep/b")]
    assert set(tree.images) == {"cat/1.png", "dog/2.png", *(f"{name}.png" for name in expected)}
    assert sorted(tree.left_out[REPEATED]) == ["cat/up", "dog/self"]
    assert tree.left_out[BROKEN_LINK] == ["itself.png"]


def test_broken_links_and_pipes_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / "annexed.png").symlink_to("/nowhere/object")
    os.mkfifo(tmp_path / "pipe.png")
    tree = folder_tree(tmp_path)
    assert tree.images == ("1.png",)
    assert tree.left_out == {BROKEN_LINK: ["annexed.png"], SPECIAL: ["pipe.png"]}


def test_a_contact_sheet_of_a_generated_set_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "images/0.png", "contact_sheet.png", "manifest.jsonl")
    touch(tmp_path, "other/contact_sheet.png")
    tree = folder_tree(tmp_path)
    assert tree.images == ("images/0.png", "other/contact_sheet.png")
    assert tree.left_out[SHEET] == ["contact_sheet.png"]


NAMES = st.sampled_from(["a", "B", "b c", ".h", "x.d", "ä", "#1", "@", "~", "10", "9", "-"])
FILES = st.sampled_from(["1.png", "10.png", "9.JPG", ".x.png", "n.txt", "z.tar", "é.webp"])
PATHS = st.tuples(st.lists(NAMES, max_size=3), FILES).map(
    lambda path: "/".join([*path[0], path[1]])
)


@settings(max_examples=60, deadline=None)
@given(st.sets(PATHS))
def test_every_file_is_in_one_list_and_ordinary_ones_in_the_order_of_paths(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    root = touch(tmp_path_factory.mktemp("tree"), *names)
    tree = folder_tree(root)
    left_out = [name for group in tree.left_out.values() for name in group]
    hidden = {name for name in names if any(part[0] == "." for part in name.split("/"))}
    texts = {name for name in hidden if name.endswith(".txt")}
    assert sorted([*tree.images, *tree.containers, *left_out]) == sorted(names - texts)
    images = {".png", ".jpg", ".webp"}
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in images)
    inside = [path.relative_to(root).as_posix() for path in paths]
    assert list(tree.images) == [name for name in inside if name not in hidden]
