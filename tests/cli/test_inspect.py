"""`good-rt inspect`: the text, the JSON, and how it ends where a model cannot be run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_text_and_json(run: Callable[..., Any], model_dir: Path, classifier_dir: Path) -> None:
    said = run("inspect", model_dir, "--classifier", classifier_dir)
    assert said.code == 0, said
    for part in (
        "UNet, unconditional or by class label",
        "images: 1 x 32 x 32",
        "AutoencoderKL",
        "vae_decoder",
    ):
        assert part in said.out
    assert said.out.endswith("OK: this model can be exported and used for generation\n")
    found = run("inspect", model_dir, "--json").json
    assert found["runs"] and found["image_shape"] == [1, 32, 32] and found["problems"] == []


def test_what_does_not_work(
    run: Callable[..., Any], model_dir: Path, classifier_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_dir, tmp_path / "model")
    shutil.rmtree(folder / "scheduler")
    said = run("inspect", folder, "--image-size", 64, "--classifier", classifier_dir)
    assert "scheduler_config.json" in said.failed() and said.failed().endswith("(and 1 more)")
    assert said.out.count("problem: ") == 2
    assert "makes images of 64x64 pixels, 1 channel; the classifier takes 32x32" in said.out
    ended = run("inspect", folder, "--json")
    assert ended.code == 2 and not ended.json["runs"]
    assert "is not a diffusers folder" in run("inspect", tmp_path).failed()
