"""`good-rt classifier`: what it shows, and a folder that the other commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 8))
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    images = (torch.randn(2, 3, 24, 24),)
    torch.export.save(
        torch.export.export(
            network.eval(), images, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        ),
        path,
    )
    return path


def test_show(run: Callable[..., Any], exported: Path, classifier_dir: Path, id_dir: Path) -> None:
    shown = run("classifier", "show", exported, "--mean", "0.5", "--std", "0.25,0.2,0.3", "--json")
    assert shown.code == 0, shown.err
    found = shown.json
    assert (found["source"], found["parameters"], len(found["classes"])) == (
        "exported",
        304 + 808,
        8,
    )
    assert (found["channels"], found["size"], found["feature_dimension"]) == (3, 24, 100)
    assert (found["mean"], found["std"]) == ([0.5], [0.25, 0.2, 0.3])
    assert found["trainable"] and found["gradient"] and found["features"] == "the input of 3"
    text = run("classifier", "show", classifier_dir).out
    assert "small_resnet" in text and "none: pixels in [-1, 1]" in text and "32 values" in text
    assert "nowhere does not exist" in run("classifier", "show", "nowhere").failed()
    assert "is not a classifier folder" in run("classifier", "show", id_dir).failed()
    assert run("classifier", "show", exported, "--mean", "a").code == 2


def test_a_saved_classifier_builds_a_detector(
    run: Callable[..., Any],
    exported: Path,
    id_dir: Path,
    generated_dirs: list[Path],
    tmp_path: Path,
) -> None:
    """A network of 24 colour pixels a side, for the demo's grey images of 32."""
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefgh"))
    saved = run("classifier", "save", exported, "--classes", names, "-o", tmp_path / "clf")
    assert saved.code == 0, saved.err
    built = run(
        "detector",
        "build",
        "--classifier",
        tmp_path / "clf",
        "--id",
        id_dir,
        "--generated",
        generated_dirs[0],
        "-o",
        tmp_path / "detector.onnx",
        "--json",
    )
    assert built.code == 0, built.err
    assert built.json["parity"]["class_disagreements"] == 0
    from good_rt.detector.runtime import Detector

    info = Detector(tmp_path / "detector.onnx").info
    assert (info.classes, info.channels, info.image_size) == (tuple("abcdefgh"), 1, 32)
