"""`good-rt detector score`: table, CSV and JSON with the detector's own figures, and every kind of
bad input."""

from __future__ import annotations

import csv
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detector_files import write_sealed
from PIL import Image

from good_rt.cli.detector_score import _common_folder, safe_cell
from good_rt.demo import assets
from good_rt.detector.runtime import Detector, Scores

Run = Callable[..., Any]
IMAGES = np.concatenate(
    [assets.load_images("test").images[:3], assets.load_images("emoji").images[:3]]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six grey images of the right size."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def expected(detector_path: Path) -> Scores:
    return Detector(detector_path).score(IMAGES)


def test_json(run: Run, folder: Path, detector_path: Path, expected: Scores) -> None:
    found = run("detector", "score", folder, "--detector", detector_path, "--json").json
    assert found["alpha"] == 0.1 and found["skipped"] == []
    assert [Path(image["file"]).name for image in found["images"]] == [f"{i}.png" for i in range(6)]
    for i, image in enumerate(found["images"]):
        assert image["label"] == assets.CLASSES[expected.label[i]]
        assert image["is_ood"] == bool(expected.is_ood[i])
        assert set(expected.discrepancies) == {"energy", "knn_distance", "mahalanobis"}
        columns = {"score": expected.score, "p_value": expected.p_value, **expected.discrepancies}
        for name, values in columns.items():
            assert image[name] == pytest.approx(float(values[i]), rel=1e-4)


def test_many_images_are_scored_part_by_part(
    run: Run, folder: Path, detector_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "2.png").write_bytes(b"no image")
    words = ["detector", "score", folder, "--detector", detector_path, "--skip-bad"]
    whole = run(*words, "--json").json
    monkeypatch.setattr("good_rt.cli.detector_score.AT_ONCE", 2)
    found = run(*words, "--json").json
    assert (
        found["skipped"] == whole["skipped"] and len(found["images"]) == len(whole["images"]) == 5
    )
    for part, one in zip(found["images"], whole["images"], strict=True):
        assert (part["file"], part["label"]) == (one["file"], one["label"])
        assert part["score"] == pytest.approx(one["score"], rel=1e-4)
    assert "scoring ..." in run(*words).err  # a bar where that is a terminal


def test_csv_to_a_file_and_to_standard_output(
    run: Run, folder: Path, detector_path: Path, expected: Scores, tmp_path: Path
) -> None:
    printed = run("detector", "score", folder, "--detector", detector_path, "--csv", "-")
    written = run(
        "detector",
        "score",
        folder,
        "--detector",
        detector_path,
        "--csv",
        tmp_path / "deep" / "s.csv",
    )
    assert (tmp_path / "deep" / "s.csv").read_text() == printed.out
    assert (
        written.out
        == f"{expected.is_ood.sum()} of 6 OOD; scores in {tmp_path / 'deep' / 's.csv'}\n"
    )
    # what is there already stays what it is
    (tmp_path / "link.csv").symlink_to(tmp_path / "deep" / "s.csv")
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    for place in ("link.csv", "pipe"):
        assert (
            run(
                "detector", "score", folder, "--detector", detector_path, "--csv", tmp_path / place
            ).code
            == 0
        )
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "pipe").is_fifo()
    assert reader.communicate(timeout=60)[0] == printed.out
    onto_a_folder = run(
        "detector", "score", folder, "--detector", detector_path, "--csv", tmp_path / "deep"
    )
    assert f"cannot write {tmp_path / 'deep'}" in onto_a_folder.failed()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["is_ood"] for row in rows] == [str(bool(value)) for value in expected.is_ood]
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected.score, rtol=1e-4)


def test_table(
    run: Run, folder: Path, detector_path: Path, expected: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    ended = run("detector", "score", folder, "--detector", detector_path)
    assert ended.code == 0 and ended.err == ""
    title = ended.out.partition("┏")[0]  # folded where the folder's path is long
    assert "".join(title.split()) == f"in{folder}"
    assert ended.out.endswith(f"{expected.is_ood.sum()} of 6 OOD\n")
    lines = [line for line in ended.out.splitlines() if ".png" in line]
    for i, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells == [
            f"{i}.png", assets.CLASSES[expected.label[i]], f"{expected.score[i]:.3f}",
            f"{expected.p_value[i]:.4f}", "yes" if expected.is_ood[i] else "no",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        (["a.png", "b.png"], ""),
        (["../p/a.png", "../p/b.png"], "../p"),
        ([".c/a.png", ".c/b.png"], ".c"),
        (["/x/a.png", "/y/a.png"], ""),
        (["/x/y/a.png", "/x/b.png"], "/x"),
        (["/x/a.png", "a.png"], ""),
        (["p/a.png"], ""),
    ],
)
def test_a_folder_that_all_files_have_in_common(files: list[str], folder: str) -> None:
    assert _common_folder([Path(file) for file in files]) == folder


def test_file_names_are_printed_as_they_are(run: Run, folder: Path, detector_path: Path) -> None:
    odd = folder / "[bold]x.png"
    (folder / "0.png").rename(odd)
    assert "[bold]x.png" in run("detector", "score", odd, "--detector", detector_path).out.replace(
        "\n", ""
    )


def test_alpha_and_threads(run: Run, folder: Path, detector_path: Path) -> None:
    found = run(
        "detector",
        "score",
        folder,
        "--detector",
        detector_path,
        "--alpha",
        "0.5",
        "--threads",
        1,
        "--json",
    ).json
    assert found["alpha"] == 0.5
    assert [image["is_ood"] for image in found["images"]] == [
        image["p_value"] <= 0.5 for image in found["images"]
    ]


def test_fit_takes_any_image(run: Run, detector_path: Path, tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0, ..., 0]).convert("RGB").resize((90, 50)).save(tmp_path / "large.jpg")
    assert "use --fit" in run("detector", "score", tmp_path, "--detector", detector_path).failed()
    assert (
        len(
            run("detector", "score", tmp_path, "--detector", detector_path, "--fit", "--json").json[
                "images"
            ]
        )
        == 1
    )


def spoil(folder: Path, kind: str) -> str:
    """Makes one file bad; returns what the error says of it."""
    path = folder / "1.png"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:80])
        return "1.png is a damaged image"
    if kind == "no image":
        path.write_bytes(b"not an image at all")
        return "1.png is not an image that can be read"
    if kind == "colour":
        Image.fromarray(IMAGES[0, ..., 0]).convert("RGB").save(path)
        return "1.png is RGB, grey is expected"
    if kind == "size":
        Image.fromarray(IMAGES[0, :20, :, 0]).save(path)
        return "1.png has 32x20 pixels, 32x32 are expected"
    path.unlink()
    path.mkdir()
    (path / "empty.png").touch()
    return "empty.png is not an image that can be read"


@pytest.mark.parametrize("kind", ["truncated", "no image", "colour", "size", "empty"])
def test_bad_images_are_refused_or_skipped_by_name(
    run: Run, folder: Path, detector_path: Path, tmp_path: Path, kind: str
) -> None:
    reason = spoil(folder, kind)
    options = ["detector", "score", folder, "--detector", detector_path]
    refused = run(*options, "--csv", tmp_path / "scores.csv")
    assert reason in refused.failed() and "--skip-bad leaves such files out" in refused.failed()
    assert "; the other 5 were scored" in refused.failed()
    with (tmp_path / "scores.csv").open(newline="") as file:
        names = [Path(row["file"]).name for row in csv.DictReader(file)]
    assert len(names) == 5 and "1.png" not in names
    ended = run(*options, "--skip-bad", "--json")
    assert ended.code == 0
    assert ended.err.startswith("skipped: ") and reason in ended.err
    assert len(ended.json["images"]) == 5
    (skipped,) = ended.json["skipped"]
    assert reason in skipped


def test_when_every_file_is_bad_nothing_is_scored(
    run: Run, tmp_path: Path, detector_path: Path
) -> None:
    (tmp_path / "x.png").touch()
    ended = run("detector", "score", tmp_path, "--detector", detector_path, "--skip-bad")
    assert ended.failed().endswith("none of the files could be read; nothing was scored")


def test_missing_files_and_empty_folders(run: Run, tmp_path: Path, detector_path: Path) -> None:
    assert (
        "gone.png does not exist"
        in run("detector", "score", tmp_path / "gone.png", "--detector", detector_path).failed()
    )
    assert (
        "holds no image files"
        in run("detector", "score", tmp_path, "--detector", detector_path).failed()
    )


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "not ours", "NaN"])
def test_bad_detectors(
    run: Run, folder: Path, detector_path: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "d.onnx"
    message = "d.onnx is damaged or not an ONNX file"
    if kind == "missing":
        message = (
            "d.onnx does not exist; give a detector.onnx, which `good-rt detector build` writes"
        )
    elif kind == "text":
        path.write_text("hello")
    elif kind == "truncated":
        path.write_bytes(detector_path.read_bytes()[:20_000])
    else:
        model = onnx.load(detector_path)
        if kind == "not ours":
            del model.metadata_props[:]
            message = "d.onnx is an ONNX file, but not a good-rt detector"
        else:
            for tensor in model.graph.initializer:
                if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
                    nan = np.full(tuple(tensor.dims), np.nan, np.float32)
                    tensor.CopyFrom(onnx.numpy_helper.from_array(nan, tensor.name))
            message = (
                "gives a value that is not finite (image 0 of 6); its weights or its calibration "
                "are damaged"
            )
        if kind == "NaN":
            write_sealed(model, path)
        else:
            onnx.save(model, path)
    ended = run("detector", "score", folder, "--detector", path, "--csv", tmp_path / "scores.csv")
    assert message in ended.failed()
    assert ended.out == "" and not (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize("alpha", ["0", "1", "nan", "-0.5", "0.001"])
def test_bad_alphas(run: Run, folder: Path, detector_path: Path, alpha: str) -> None:
    ended = run("detector", "score", folder, "--detector", detector_path, "--alpha", alpha)
    assert "alpha must be at least 0.00826" in ended.failed()


def test_outputs_that_cannot_be_written(
    run: Run, folder: Path, detector_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    ended = run(
        "detector",
        "score",
        folder,
        "--detector",
        detector_path,
        "--csv",
        tmp_path / "file.txt" / "s.csv",
    )
    assert "cannot write" in ended.failed() and "choose another place" in ended.failed()
    assert sorted(tmp_path.rglob("*")) == before
    both = run("detector", "score", folder, "--detector", detector_path, "--csv", "-", "--json")
    assert "would both print to standard output" in both.failed()


@pytest.mark.parametrize("at_once", [2, 256])
@pytest.mark.parametrize("bad", ["a.png", "2b.png", "z.png"])
def test_one_bad_file_does_not_lose_the_rest(
    run: Run, folder: Path, detector_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    at_once: int, bad: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("good_rt.cli.detector_score.AT_ONCE", at_once)
    (folder / bad).write_bytes(b"no image")
    words = ["detector", "score", folder, "--detector", detector_path]
    ended = run(*words, "--csv", tmp_path / "s.csv")
    assert f"{bad} is not an image" in ended.failed() and "the other 6 were scored" in ended.err
    with (tmp_path / "s.csv").open(newline="") as file:
        assert [Path(row["file"]).name for row in csv.DictReader(file)] == [
            f"{i}.png" for i in range(6)
        ]
    ended = run(*words, "--json")
    assert ended.code == 2 and len(ended.json["images"]) == 6
    assert any(bad in line for line in ended.json["skipped"])
    table = run(*words)
    assert table.code == 2 and "5.png" in table.out


def test_rows_are_there_before_the_end(
    run: Run, folder: Path, detector_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interruption leaves behind: the header and whole rows."""
    monkeypatch.setattr("good_rt.cli.detector_score.AT_ONCE", 2)
    scored = Detector.score
    batches: list[str] = []

    def interrupted(self: Detector, images: Any, batch: int = 64) -> Scores:
        batches.append((tmp_path / "s.csv").read_text() if batches else "")
        if len(batches) == 3:
            raise KeyboardInterrupt
        return scored(self, images, batch)

    monkeypatch.setattr(Detector, "score", interrupted)
    words = ["detector", "score", folder, "--detector", detector_path, "--csv", tmp_path / "s.csv"]
    assert run(*words).code == 130
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("file,label,")
    assert len({line.count(",") for line in lines}) == 1


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+x", "'+x"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("＝1", "'＝1"),
        ("\t=1", r"\t=1"),
        ("\r=1", r"\r=1"),
        ("'x", "''x"),
        ("a=b", "a=b"),
        ("a\x1b[2J", r"a\x1b[2J"),
        ("caf\udce9", "caf\udce9"),
        (-1.5, -1.5),
        (True, True),
    ],
)
def test_a_cell_is_no_formula(value: object, cell: object) -> None:
    assert safe_cell(value) == cell


def test_what_is_left_out_of_a_folder_is_said(run: Run, folder: Path, detector_path: Path) -> None:
    (folder / ".trash").mkdir()
    for name in (".trash/1.png", "notes.txt", "1.dng", "x.tar"):
        (folder / name).touch()
    ended = run("detector", "score", folder, "--detector", detector_path, "--json")
    assert len(ended.json["images"]) == 6 and len(ended.json["skipped"]) == 3
    for line in ended.json["skipped"]:
        assert f"skipped: {line}\n" in ended.err
    for name in (".trash/1.png", "notes.txt", "1.dng", "x.tar"):
        assert name in ended.err


def test_12_bits_in_a_container_of_16_are_doubted(
    run: Run, tmp_path: Path, detector_path: Path
) -> None:
    for i, image in enumerate(IMAGES[..., 0]):
        Image.fromarray(image.astype(np.uint16) * 16).save(tmp_path / f"{i}.png")
    ended = run("detector", "score", tmp_path, "--detector", detector_path, "--json")
    assert ended.code == 0 and "warning: no value of 6 grey images of 16 bits is above" in ended.err


def test_limits_are_options(run: Run, folder: Path, detector_path: Path) -> None:
    words = ["detector", "score", folder, "--detector", detector_path]
    assert "more than 1000; refused" in run(*words, "--max-pixels", 1000).failed()
    assert run(*words, "--max-pixels", 1024, "--max-bytes", 100_000).code == 0
