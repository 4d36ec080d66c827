"""Images as peers take them: in batches, with what the network gives for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from good_rt.classifier import Classifier, outputs
from good_rt.classifier.base import PIXELS
from good_rt.data.pixels import from_uint8

ImageBatches = Callable[[], Iterable[Tensor]]
"""Images (n, C, H, W) in [-1, 1], batch by batch; each call starts again."""
ARRAY_BATCH = 500
"""Images of an array that are converted at once."""
GRADIENT_BATCH = 128
"""Largest number of images whose gradients are computed at once."""


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """A set of N images, as peers score it.

    Attributes:
        logits: (N, K) float32, on the CPU.
        features: (N, D) float32 penultimate features, as the network gives them.
        batches: The same images in the same order, for peers that need gradients.
    """

    logits: Tensor
    features: Tensor
    batches: ImageBatches

    @classmethod
    def of(cls, classifier: Classifier, batches: ImageBatches) -> ScoredImages:
        """The set after one pass of the network.

        Args:
            classifier: Images to logits and features.
            batches: The images.
        """
        return cls(*outputs(classifier, batches()), batches)


def array_batches(images: NDArray[np.uint8]) -> ImageBatches:
    """Images (N, H, W, C) uint8 in batches that can be read again and again."""

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(images), ARRAY_BATCH):
            yield from_uint8(images[start : start + ARRAY_BATCH])

    return batches


def network_inputs(classifier: Classifier, batches: ImageBatches) -> Iterator[Tensor]:
    """Images as the network takes them, on its device, in batches that gradients fit for."""
    for batch in batches():
        size = max(1, PIXELS // (4 * batch.shape[2] * batch.shape[3]))
        for images in batch.split(min(GRADIENT_BATCH, size)):
            yield classifier.prepare(images.to(classifier.device)).detach()
