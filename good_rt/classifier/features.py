"""Features of in-distribution images with their classes, which the feature discrepancies are fitted
on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from good_rt.classifier.base import Classifier, predict
from good_rt.errors import GoodRtError


@dataclass(frozen=True, eq=False)
class IdFeatures:
    """Penultimate features of ID images, on the CPU.

    Attributes:
        features: (M, D) float32, as the network gives them.
        labels: (M,) int64, indices of the classifier's classes.
        classes: Number of the classifier's classes, K.
    """

    features: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) == 0:
            raise GoodRtError(
                "discrepancies are fitted on an (M, D) matrix of features with M > 0, not on "
                f"shape {tuple(self.features.shape)}"
            )
        wrong = (~self.features.isfinite().all(dim=1)).nonzero()
        if len(wrong):
            raise GoodRtError(
                f"the features of ID image {int(wrong[0])} are not finite; check the classifier "
                "and the image"
            )

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of(
        cls, classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor | None]]
    ) -> IdFeatures:
        """The features of ID images.

        Args:
            classifier: Gives the features.
            batches: Images (n, C, H, W) in [-1, 1] and their labels (n,) int64; without labels,
                an image is of the class that the classifier predicts.
        """
        features, labels = [], []
        for images, of_images in batches:
            logits, found = predict(classifier, images)
            features.append(found)
            labels.append(logits.argmax(dim=1) if of_images is None else of_images)
        return cls(torch.cat(features), torch.cat(labels), len(classifier.config.classes))
