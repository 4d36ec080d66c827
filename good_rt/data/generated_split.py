"""Which generated images train and which are held out, and both as tensors that a classifier takes.

Every fifth image of a generated set is held out: it chooses the state of the training that is kept,
and some combinations of the unified score are fitted on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from good_rt.classifier import Classifier
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.pixels import from_uint8
from good_rt.errors import GoodRtError

HELD_OUT_EVERY = 5


def generated_parts(folders: Sequence[Path], classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Guided images of all sets, (N, C, H, W) in [-1, 1]: training images and held-out images.

    Args:
        folders: The generated sets.
        classifier: Decides the shape.

    Raises:
        GoodRtError: a set has too few images, unguided ones, or not the classifier's shape.
    """
    trained, held_out = [], []
    for folder in folders:
        images = generated_images(folder, classifier, guided=True)
        is_held_out = torch.arange(len(images)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        if not is_held_out.any():
            raise GoodRtError(
                f"{folder} holds {len(images)} images; generate at least {HELD_OUT_EVERY}"
            )
        trained.append(images[~is_held_out])
        held_out.append(images[is_held_out])
    return torch.cat(trained), torch.cat(held_out)


def generated_images(folder: Path, classifier: Classifier, *, guided: bool) -> Tensor:
    """A generated set's images (N, C, H, W) in [-1, 1].

    Args:
        folder: The generated set.
        classifier: Decides the shape.
        guided: Whether the images are to be guided ones (OOD), or unguided ones (ID).

    Raises:
        GoodRtError: an image was not generated as ``guided`` says, or has another shape.
    """
    generated = GeneratedSet(folder)
    rows = generated.rows()
    for row in rows:
        if (row.guidance != "none") != guided:
            needed = (
                "OOD images must be guided"
                if guided
                else "create unguided images with `good-rt generate --guidance none`"
            )
            raise GoodRtError(
                f"{folder}: {row.file} was generated with guidance {row.guidance!r}; {needed}"
            )
    config = classifier.config
    shape = (config.image_size, config.image_size, config.channels)
    images = generated.images(rows)
    if images.shape[1:] != shape:
        raise GoodRtError(
            f"{folder}: images are {images.shape[1:]}, the classifier takes {shape}; generate them "
            "again"
        )
    return from_uint8(images)
