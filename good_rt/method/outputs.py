"""What a classifier gives for the images of a fine-tuning: a batch of it, and all that the original
classifier gives, from which a training sets itself up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from good_rt.classifier import Classifier, IdFeatures, predict
from good_rt.method.training_data import TrainingImages


@dataclass(frozen=True, eq=False)
class BatchOutputs:
    """Outputs for n ID images, followed by those for OOD images.

    Attributes:
        logits: (N, K) float32.
        features: (N, D) float32, as the network gives them.
        labels: (n,) int64, classes of the ID images.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor

    @classmethod
    def held_out(cls, classifier: Classifier, data: TrainingImages) -> BatchOutputs:
        """Those of the held-out ID and generated images, in evaluation mode, on the CPU.

        Args:
            classifier: The classifier.
            data: Has the images.
        """
        parts = [predict(classifier, data.val_images)]
        if data.val_ood is not None:
            parts.append(predict(classifier, data.val_ood))
        logits, features = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
        return cls(logits, features, data.val_labels.cpu())

    @property
    def id_count(self) -> int:
        """n."""
        return len(self.labels)

    @property
    def is_id(self) -> Tensor:
        """(N,) 1 for ID images, 0 for OOD images, as numbers of the logits' type."""
        rows = torch.arange(len(self.logits), device=self.logits.device)
        return (rows < self.id_count).to(self.logits.dtype)

    def to(self, device: torch.device) -> BatchOutputs:
        return BatchOutputs(*(part.to(device) for part in vars(self).values()))

    def detach(self) -> BatchOutputs:
        return BatchOutputs(*(part.detach() for part in vars(self).values()))


@dataclass(frozen=True, eq=False)
class OriginalOutputs:
    """What the original classifier gives for the images of a training; each is computed when it is
    first asked for.

    Attributes:
        classifier: The original classifier.
        data: The images.
    """

    classifier: Classifier
    data: TrainingImages

    @cached_property
    def held_out(self) -> BatchOutputs:
        """Outputs for the held-out images."""
        return BatchOutputs.held_out(self.classifier, self.data)

    def id_features(self, limit: int) -> IdFeatures:
        """Features of ID training images, in an order that does not depend on their classes.

        Args:
            limit: At most so many images.
        """
        order = torch.randperm(len(self.data.images), generator=torch.Generator().manual_seed(0))
        rows = order[:limit]
        batch = (self.data.images[rows], self.data.labels[rows].cpu())
        return IdFeatures.of(self.classifier, [batch])
