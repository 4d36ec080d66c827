"""Outputs without names are compared with the classes of held-out images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from good_rt.classifier import Classifier, ClassifierConfig
from good_rt.classifier.class_names import placeholder_names
from good_rt.data.id_data import IdData
from good_rt.errors import GoodRtError
from good_rt.workflow.class_order import check_class_order

CLASSES = 12
PER_CLASS = 40


class Brightness(nn.Module):
    """An ideal classifier of images whose grey value is 20 times their class; its outputs in an
    order of its own."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(order) * 20 / 127.5 - 1)

    def forward_features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        return -((features - self.levels) ** 2)


def classifier(
    order: list[int], classes: tuple[str, ...] = placeholder_names(CLASSES)
) -> Classifier:
    return Classifier(Brightness(order), ClassifierConfig("test", classes, 1, 8)).eval()


def photos(folder: Path, names: list[str]) -> IdData:
    """Images of each class under its name; they differ in one corner."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            image = np.full((8, 8), 20 * label, np.uint8)
            image[0, 0] = number
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return IdData(folder)


NAMES = [f"{letter}nimal" for letter in "abcdefghijkl"]
IN_ORDER = list(range(CLASSES))
BY_TEXT = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


def test_the_right_order_passes(tmp_path: Path) -> None:
    check_class_order(photos(tmp_path / "data", NAMES), classifier(IN_ORDER))


def test_another_order_is_an_error_that_says_which(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", NAMES)
    with pytest.raises(
        GoodRtError, match=r"in another order they agree better: .* of 'cnimal' get"
    ) as caught:
        check_class_order(data, classifier(BY_TEXT))
    assert "\n" not in str(caught.value) and "--classes names.txt" in str(caught.value)
    swapped = [1, 0, *IN_ORDER[2:]]
    with pytest.raises(GoodRtError, match="images of 'animal' get output 1, 0 get output 0"):
        check_class_order(data, classifier(swapped))


def test_near_chance_is_an_error(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", NAMES)
    for order in ([*IN_ORDER[1:], 0], [50] * CLASSES, [3, *[90 + i for i in range(11)]]):
        with pytest.raises(GoodRtError, match=r"near chance \(\d+%\); name the folders"):
            check_class_order(data, classifier(order))


def test_names_are_not_looked_at(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", NAMES)
    check_class_order(data, classifier(BY_TEXT, tuple(NAMES)))


def test_numbered_folders_of_a_classifier_in_text_order_are_an_error(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", [str(i) for i in range(CLASSES)])
    check_class_order(data, classifier(IN_ORDER))
    with pytest.raises(GoodRtError, match="in another order they agree better"):
        check_class_order(data, classifier(BY_TEXT))
