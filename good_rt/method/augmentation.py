"""How the images of a training vary: mirror images and shifts, where the classifier allows them.

Mirroring changes the class of a digit or a word. Whether that is so is read off the original
classifier: what leaves its held-out accuracy as it is does not change the class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from good_rt.classifier import predict
from good_rt.config.settings import AugmentationName
from good_rt.method.outputs import OriginalOutputs

TOLERATED_LOSS = 0.01
"""The share of held-out images that the accuracy may lose; one image is always allowed."""
LOST_CLASS = 4
"""Images of one class that may be lost, if they are more than half of the class."""
MAX_SHIFT = 1 / 16
"""The largest shift, as a share of the image's side."""
CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
"""Directions (rows, columns) of the largest shifts."""
CHECKED_IMAGES = 500
"""Images that are transformed at once; a multiple of the number of `CORNERS`."""


@dataclass(frozen=True)
class Augmentation:
    """Which transformations a training uses.

    Attributes:
        flip: Whether half of the images are mirrored.
        shift: Whether images are moved by up to `MAX_SHIFT` of their side.
        flip_loss: Held-out accuracy that the original classifier lost on mirrored images; None
            where it was not measured.
        shift_loss: The same on shifted images.
    """

    flip: bool
    shift: bool
    flip_loss: float | None = None
    shift_loss: float | None = None

    def __str__(self) -> str:
        names = [name for name in ("flip", "shift") if getattr(self, name)]
        return " and ".join(names) or "none"

    @property
    def explained(self) -> str:
        """The transformations, and the accuracy that each would cost the original classifier, such
        as "shift (accuracy lost: flip 0.4120, shift 0.0021)"."""
        losses = {"flip": self.flip_loss, "shift": self.shift_loss}
        measured = [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
        return f"{self} (accuracy lost: {', '.join(measured)})" if measured else str(self)


def chosen_augmentation(setting: AugmentationName, original: OriginalOutputs) -> Augmentation:
    """The augmentation that a setting names, or that ``auto`` finds harmless.

    A transformation is harmless if the original classifier loses at most `TOLERATED_LOSS` of its
    accuracy on held-out images (or one image), and no class loses both more than half of its images
    and more than `LOST_CLASS`: one class that the mirror turns into another hardly shows among
    many.

    Args:
        setting: ``auto``, ``none``, or names of transformations.
        original: What the original classifier gives for the held-out images.
    """
    if setting != "auto":
        names = setting.split("+")
        return Augmentation("flip" in names, "shift" in names)
    flip, flip_loss = _measured(original, lambda images: images.flip(3))
    shift, shift_loss = _measured(original, corner_shifts)
    return Augmentation(flip, shift, flip_loss, shift_loss)


def _measured(
    original: OriginalOutputs, transform: Callable[[Tensor], Tensor]
) -> tuple[bool, float]:
    """Whether a transformation is harmless, and the held-out accuracy that it costs."""
    labels = original.held_out.labels
    before = original.held_out.logits[: len(labels)].argmax(dim=1) == labels
    after = torch.cat(
        [
            predict(original.classifier, transform(part))[0].argmax(dim=1)
            for part in original.data.val_images.split(CHECKED_IMAGES)
        ]
    )
    right = after == labels
    loss = before.double().mean() - right.double().mean()
    return is_harmless(labels, before, right), float(loss)


def is_harmless(labels: Tensor, before: Tensor, after: Tensor) -> bool:
    """Whether a transformation of held-out images leaves their classes as they are; see
    `chosen_augmentation`.

    Args:
        labels: (N,) classes of the images.
        before: (N,) bool, whether the classifier recognises an image.
        after: (N,) bool, whether it recognises the transformed image.
    """
    lost = before.double() - after.double()
    lost_by_class = torch.bincount(labels, weights=lost)
    lost_classes = lost_by_class > (torch.bincount(labels) / 2).clamp_min(LOST_CLASS)
    tolerated = max(TOLERATED_LOSS * len(labels), 1)
    return float(lost.sum()) <= tolerated and not bool(lost_classes.any())


def corner_shifts(images: Tensor) -> Tensor:
    """The images (N, C, H, W), shifted as far as `augment` does, in four directions in turn."""
    rows, columns = _largest_shift(images)
    shifted = torch.empty_like(images)
    for first, (down, right) in enumerate(CORNERS):
        turn = slice(first, None, len(CORNERS))
        shifted[turn] = torch.roll(images[turn], (down * rows, right * columns), (2, 3))
    return shifted


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """The images (N, C, H, W), half of them mirrored, all shifted alike; what leaves the image at
    one side comes in at the other.

    Args:
        images: (N, C, H, W).
        augmentation: What is done.
        generator: Draws flips and the shift.
    """
    if augmentation.flip:
        flip = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    if augmentation.shift:
        limits = _largest_shift(images)
        rows, columns = (_drawn_shift(limit, generator) for limit in limits)
        images = torch.roll(images, (rows, columns), (2, 3))
    return images


def _largest_shift(images: Tensor) -> tuple[int, int]:
    """The largest shift in rows and columns, in pixels."""
    height, width = images.shape[2:]
    return max(1, round(MAX_SHIFT * height)), max(1, round(MAX_SHIFT * width))


def _drawn_shift(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(-limit, limit + 1, (1,), generator=generator))
