"""Folders get the outputs that their names mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from good_rt.data.id_data import IdData
from good_rt.errors import GoodRtError


def photos(folder: Path, names: list[str]) -> IdData:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / name / "1.png")
    return IdData(folder)


@pytest.mark.parametrize(
    "classes",
    [
        tuple(f"LABEL_{i}" for i in range(12)),
        ("C#", "C++", "C"),
        ("A-", "A+"),
        ("Maße", "Masse"),
        ("🐶", "🐱"),
        ("cat", "Cat"),
        tuple(str(i) for i in range(11)),
    ],
)
def test_folders_called_as_the_classes_get_their_outputs(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    data = photos(tmp_path / "data", list(classes))
    names = data.source.classes
    assert names is not None
    outputs = data.labels(classes)
    assert [classes[outputs[label]] for label in sorted(outputs)] == list(names)


def test_numbers_that_contradict_the_classifiers_are_refused(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", [str(i) for i in range(1, 13)])
    with pytest.raises(GoodRtError, match="are numbered otherwise than the classifier's"):
        data.labels(tuple(f"class {i}" for i in range(12)))
