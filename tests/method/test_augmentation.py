"""Which images are mirrored or shifted in training: what the classifier tells apart is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.classifier import Classifier, ClassifierConfig, load_classifier
from good_rt.config.settings import AugmentationName, TrainConfig
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
from good_rt.method.augmentation import (
    MAX_SHIFT,
    Augmentation,
    augment,
    chosen_augmentation,
    corner_shifts,
    is_harmless,
)
from good_rt.method.outputs import OriginalOutputs
from good_rt.method.training import finetune
from good_rt.method.training_data import TrainingImages

SNEAKER = 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sneakers() -> tuple[Tensor, Tensor]:
    """Sneakers that point left, class 0, and the same number that point right, class 1; shifted, so
    that a network that was trained on them does not mind."""
    data = assets.load_images("train")
    assert data.labels is not None
    images = from_uint8(data.images[data.labels == SNEAKER][:400])
    labels = torch.arange(400) % 2
    images = torch.where(labels[:, None, None, None] == 1, images.flip(3), images)
    shifts = torch.randint(-2, 3, (400, 2), generator=generator()).tolist()
    shifted = [
        torch.roll(image, tuple(by), (1, 2)) for image, by in zip(images, shifts, strict=True)
    ]
    return torch.stack(shifted), labels


@pytest.fixture(scope="module")
def left_or_right(sneakers: tuple[Tensor, Tensor]) -> Classifier:
    """A network of width 8 that tells left from right, trained for a few seconds."""
    torch.manual_seed(0)
    images, labels = (part[:300] for part in sneakers)
    network = SmallResNet(num_classes=2, width=8)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(40):
        rows = torch.randint(300, (32,), generator=generator(step))
        optimiser.zero_grad()
        F.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimiser.step()
    config = ClassifierConfig(
        "small_resnet", ("left", "right"), 1, 32, arguments={"num_classes": 2, "width": 8}
    )
    return Classifier(network.eval(), config)


@pytest.fixture(scope="module")
def directed(sneakers: tuple[Tensor, Tensor]) -> TrainingImages:
    images, labels = sneakers
    return TrainingImages(images[:300], labels[:300], images[300:], labels[300:])


def test_a_classifier_of_directions_is_not_trained_with_mirrored_images(
    left_or_right: Classifier, directed: TrainingImages
) -> None:
    original = OriginalOutputs(left_or_right, directed)
    found = chosen_augmentation("auto", original)
    assert not found.flip and found.shift, found
    assert found.flip_loss is not None and found.flip_loss > 0.5
    assert str(found) == "shift" and found.explained.startswith("shift (accuracy lost: flip 0.")
    config = TrainConfig(steps=1, id_batch=4, max_accuracy_drop=1.0)
    assert finetune(left_or_right, directed, config).augmentation == found
    upright = replace(directed, val_images=directed.val_images.flip(2))
    assert not chosen_augmentation("auto", OriginalOutputs(left_or_right, upright)).flip


def test_the_demos_classifier_allows_both() -> None:
    """Its training stays as it was. It was trained with both, too."""
    val = assets.load_images("held_out")
    assert val.labels is not None
    images, labels = from_uint8(val.images[::2]), torch.from_numpy(val.labels[::2])
    data = TrainingImages(images[:1], labels[:1], images, labels)
    found = chosen_augmentation("auto", OriginalOutputs(load_classifier(assets.CLASSIFIER), data))
    assert found.flip and found.shift, found


@pytest.mark.parametrize(
    ("setting", "flip", "shift"),
    [
        ("none", False, False),
        ("flip", True, False),
        ("shift", False, True),
        ("flip+shift", True, True),
    ],
)
def test_a_named_augmentation_is_taken_without_asking(
    left_or_right: Classifier, directed: TrainingImages, setting: AugmentationName, flip: bool,
    shift: bool,
) -> None:  # fmt: skip
    found = chosen_augmentation(setting, OriginalOutputs(left_or_right, directed))
    assert found == Augmentation(flip, shift)


def test_augmenting_flips_and_shifts_and_does_nothing_else() -> None:
    image = torch.zeros(64, 1, 32, 32)
    image[:, 0, 16, 20] = 1
    moved = augment(image, Augmentation(True, True), generator())
    assert (moved.sum(dim=(1, 2, 3)) == 1).all()
    columns = moved.amax(dim=2)[:, 0].argmax(dim=1)
    rows = moved.amax(dim=3)[:, 0].argmax(dim=1)
    assert len(set(rows.tolist())) == 1 and abs(int(rows[0]) - 16) <= 2
    left, right = sorted(set(columns.tolist()))
    assert right - left == 20 - 11 and abs(right - 20) <= 2  # the mirror image of column 20 is 11
    assert 16 < int((columns == right).sum()) < 48


def test_only_what_is_chosen_is_done() -> None:
    images = torch.randn(32, 1, 16, 16, generator=generator())
    assert torch.equal(augment(images, Augmentation(False, False), generator()), images)
    flipped = augment(images, Augmentation(True, False), generator())
    is_flipped = (flipped == images.flip(3)).all(dim=(1, 2, 3))
    assert 4 < int(is_flipped.sum()) < 28
    assert torch.equal(flipped[~is_flipped], images[~is_flipped])
    shifts = {
        (rows, columns): torch.roll(images, (rows, columns), (2, 3))
        for rows in (-1, 0, 1)
        for columns in (-1, 0, 1)
    }
    drawn = [
        [by for by, moved in shifts.items() if torch.equal(moved, shifted)]
        for shifted in (
            augment(images, Augmentation(False, True), generator(seed)) for seed in range(40)
        )
    ]
    assert all(len(by) == 1 for by in drawn) and len({by[0] for by in drawn}) == 9


@pytest.mark.parametrize("side", [8, 32, 224])
def test_the_shifts_that_are_checked_are_the_largest(side: int) -> None:
    images = torch.zeros(8, 1, side, side)
    images[:, :, side // 2, side // 2] = 1
    places = corner_shifts(images).nonzero()[:, 2:] - side // 2
    largest = max(1, round(MAX_SHIFT * side))
    assert places.abs().unique().tolist() == [largest]
    assert len({tuple(place) for place in places[:4].tolist()}) == 4


@pytest.mark.parametrize(
    ("lost", "harmless"),
    [
        (range(10), True),  # a point, of ten classes
        (range(11), False),
        (range(0, 600, 100), False),  # six of the ten images of one class
        (range(0, 500, 100), True),
    ],
)
def test_accuracy_may_fall_by_a_point_but_no_class_may_be_lost(lost: range, harmless: bool) -> None:
    labels = torch.arange(1000) % 100
    before = torch.ones(1000, dtype=torch.bool)
    after = before.clone()
    after[list(lost)] = False
    assert is_harmless(labels, before, after) == harmless
    assert is_harmless(labels, after, before)


def test_one_image_of_few_may_be_lost() -> None:
    labels, right = torch.arange(12) % 3, torch.ones(12, dtype=torch.bool)
    assert is_harmless(labels, right, right & (torch.arange(12) != 5))
    assert not is_harmless(labels, right, right & (torch.arange(12) > 1))
