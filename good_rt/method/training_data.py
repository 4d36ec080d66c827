"""The images of a fine-tuning, and the batches that are drawn from them.

Some of the ID images of a batch come from the VAE's decoder, reconstructed or sampled without
guidance, since the network would otherwise learn that "looks generated" means OOD.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from good_rt.config.settings import TrainConfig
from good_rt.method.patches import shuffled_patches


@dataclass(frozen=True)
class TrainingImages:
    """The images of a fine-tuning: (N, C, H, W) in [-1, 1], with labels (N,) int64.

    Attributes:
        images: ID images to train on.
        labels: Their classes.
        val_images: Held-out ID images; they choose the state that is kept, and are never trained
            on.
        val_labels: Their classes.
        decoded: VAE reconstructions of the first ID images, in their order.
        ood: Guided images to train on; None for the control.
        val_ood: Held-out guided images.
        unguided: Samples without guidance, which are ID.
        unguided_labels: Their classes.
    """

    images: Tensor
    labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    decoded: Tensor | None = None
    ood: Tensor | None = None
    val_ood: Tensor | None = None
    unguided: Tensor | None = None
    unguided_labels: Tensor | None = None

    @property
    def control(self) -> TrainingImages:
        """The same without any generated image, as a baseline."""
        return replace(self, ood=None, val_ood=None, unguided=None, unguided_labels=None)


def drawn_batch(
    data: TrainingImages, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """ID images followed by OOD images, (id_batch + ood_batch, C, H, W), and the ID images' labels
    (id_batch,).

    The first ID images come from a decoder. The control has no OOD images.

    Args:
        data: The images to draw from.
        config: Sizes of the batch, and how ID images are drawn.
        generator: Draws the rows.
    """
    images, labels = _id_batch(data, config, generator)
    if data.ood is None:
        return images, labels
    rows = torch.randint(len(data.ood), (config.ood_batch,), generator=generator)
    ood = data.ood[rows]
    shuffled = round(config.shuffled_share * config.ood_batch)
    if shuffled:
        at = torch.randint(len(data.images), (shuffled,), generator=generator)
        ood[:shuffled] = shuffled_patches(data.images[at], generator)
    return torch.cat([images, ood]), labels


def _id_batch(
    data: TrainingImages, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    if config.balanced:
        index = balanced_rows(data.labels, config.id_batch, generator)
    else:
        index = torch.randint(len(data.images), (config.id_batch,), generator=generator)
    images, labels = data.images[index], data.labels[index]
    decoder_images = [
        (source, known)
        for source, known in ((data.decoded, data.labels), (data.unguided, data.unguided_labels))
        if source is not None and known is not None
    ]
    rows = torch.arange(round(config.decoded_share * config.id_batch))
    for (source, known), part in zip(
        decoder_images,
        rows.tensor_split(len(decoder_images)) if decoder_images else (),
        strict=True,
    ):
        if config.balanced:
            at = balanced_rows(known[: len(source)], len(part), generator)
        else:
            at = index[part] % len(source)
        images[part], labels[part] = source[at], known[at]
    return images, labels


def balanced_rows(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows, drawn with replacement so that each class that occurs is equally likely.

    Args:
        labels: (N,) int64, the rows' classes.
        count: How many rows.
        generator: Draws them.
    """
    labels = labels.cpu()
    weights = 1 / torch.bincount(labels).double()[labels]
    if count == 0:
        return torch.zeros(0, dtype=torch.int64)
    return torch.multinomial(weights, count, replacement=True, generator=generator)
