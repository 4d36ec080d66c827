"""Help and errors about a path answer before torch is imported, and what needs no torch runs
without it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from good_rt.demo import assets

NO_TORCH = """
import sys
from good_rt.cli.main import main
sys.argv = ["good-rt", *{words!r}]
code = 0
try:
    main()
except SystemExit as ended:
    code = ended.code or 0
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""
SECONDS = 1.5
"""The longest that help and errors may take on a machine that others use as well; on an idle one
it is 0.4 s."""


def without_torch(words: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """`good-rt WORDS` in a new process, which fails when it imports torch."""
    code = NO_TORCH.format(words=[str(word) for word in words])
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with an empty folder, and jobs each with one missing path."""
    (tmp_path / "images").mkdir()
    for missing in ("images", "classifier", "diffusion", "test_sets"):
        paths = {"images": "demo", "classifier": "demo", "diffusion": "demo", "test_sets": "images"}
        paths[missing] = "no"
        (tmp_path / f"{missing}.toml").write_text(
            f'version = 3\n[data]\nimages = "{paths["images"]}"\n[models]\n'
            f'classifier = "{paths["classifier"]}"\ndiffusion = "{paths["diffusion"]}"\n'
            f'[test_sets]\nstreet = "{paths["test_sets"]}"\n'
        )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("inspect no", "no does not exist; give a diffusers folder"),
        ("inspect images --classifier no", "no does not exist; give a classifier folder"),
        ("init no", "no does not exist; give a folder per class"),
        ("init images --classifier no", "no does not exist; give a classifier folder"),
        ("init images --model no", "no does not exist; give a diffusers folder"),
        ("init images --test-set a=no", "no does not exist; give a folder per class"),
        ("split no", "no does not exist; give a folder per class"),
        ("export --model no", "no does not exist; give a diffusers folder"),
        ("export --classifier no", "no does not exist; give a classifier folder"),
        ("export --to tensorrt --onnx no", "no does not exist; give an ONNX file"),
        ("generate --classifier no", "no does not exist; give a classifier folder"),
        ("generate --classifier timm:resnet18@no", "no does not exist (in 'timm:resnet18@no')"),
        ("generate --model no", "no does not exist; give a diffusers folder"),
        ("generate --gradient-decoder no", "no does not exist; give the folder of an Autoenc"),
        ("generate --id no", "no does not exist; give a folder per class"),
        ("train --generated no", "no holds no generated images; create them with `good-rt gen"),
        ("train --control --unguided no", "no holds no generated images; create them with"),
        ("train --control --classifier no", "no does not exist; give a classifier folder"),
        ("detector build --classifier no", "no does not exist; give a classifier folder"),
        ("detector build --generated no", "no holds no generated images; create them with"),
        ("detector score images --detector no", "no does not exist; give a detector.onnx"),
        (
            "evaluate --generated images --classifier x=no",
            "no does not exist; give a classifier folder",
        ),
        (
            "evaluate --generated images --test-set x=no",
            "no does not exist; give a folder per class",
        ),
        ("bench sampler --classifier no", "no does not exist; give a classifier folder"),
        ("classifier show no", "no does not exist; give a classifier folder"),
        ("classifier save no", "no does not exist; give a classifier folder"),
        ("classifier show images --classes no", "no does not exist; give a text file of class"),
        ("run gone.toml", "gone.toml does not exist; write one with `good-rt init`"),
        ("run images.toml", "no does not exist; give a folder per class"),
        ("run classifier.toml", "no does not exist; give a classifier folder"),
        ("run diffusion.toml", "no does not exist; give a diffusers folder"),
        ("run test_sets.toml", "no does not exist; give a folder per class"),
    ],
)
def test_a_missing_path_is_named_before_torch_is_imported(
    words: str, message: str, here: Path
) -> None:
    before = sorted(here.rglob("*"))
    ended = without_torch(words.split(), here)
    assert ended.returncode == 2, ended
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert message in ended.stderr
    assert ended.stdout == "" and sorted(here.rglob("*")) == before


def test_split_needs_no_torch(tmp_path: Path) -> None:
    data = assets.load_images("test")
    assert data.labels is not None
    for index, (image, label) in enumerate(zip(data.images[:60], data.labels[:60], strict=True)):
        folder = tmp_path / "photos" / assets.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{index}.png")
    ended = without_torch(["split", "photos", "--json"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    counts = json.loads(ended.stdout)["counts"]
    assert sum(sum(by_class.values()) for by_class in counts.values()) == 60
    again = without_torch(["split", "photos"], tmp_path)
    assert again.returncode == 0 and "60 images" in again.stdout, again


@pytest.mark.parametrize("output", [[], ["--json"], ["--csv", "scores.csv"]])
def test_detector_score_needs_no_torch(
    output: list[str], detector_path: Path, tmp_path: Path
) -> None:
    for index, image in enumerate(assets.load_images("emoji").images[:3]):
        Image.fromarray(np.squeeze(image)).save(tmp_path / f"{index}.png")
    ended = without_torch(
        ["detector", "score", tmp_path, "--detector", detector_path, *output], tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "0.png" in ended.stdout or (tmp_path / "scores.csv").exists()


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["generate", "--classifier", "no"], 2)]
)
def test_help_and_errors_answer_quickly(words: list[str], code: int, tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-c", "from good_rt.cli.main import main; main()", *words],
            capture_output=True,
            check=False,
            cwd=tmp_path,
        )
        seconds.append(time.perf_counter() - began)
        assert ended.returncode == code, ended
    sys.stdout.write(f"good-rt {' '.join(words)}: {min(seconds):.2f} s\n")
    assert min(seconds) < SECONDS, seconds


def test_errors_import_no_numpy(tmp_path: Path) -> None:
    """It takes as long as all the rest of such a start."""
    code = NO_TORCH.replace('"torch"', '"numpy"').format(words=["generate", "--classifier", "no"])
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
