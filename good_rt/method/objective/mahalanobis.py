"""A logistic loss of the discrepancies that the detector's default score is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from good_rt.classifier import IdFeatures
from good_rt.errors import GoodRtError
from good_rt.method.discrepancy import fit_discrepancy
from good_rt.method.objective.base import objective
from good_rt.method.objective.separation import Separation
from good_rt.method.outputs import BatchOutputs, OriginalOutputs

SEPARATED_BY = ("mahalanobis", "relative_mahalanobis")
"""The discrepancies whose standardised mean is compared; the detector's default ones."""
FIT_EVERY = 20
"""Steps after which they are fitted again."""
RECENT, RECENT_PER_FEATURE, RECENT_PER_CLASS = 4096, 4, 16
"""ID features that are kept to fit on: so many, but as many for each of the D features and for each
class."""


@objective
class MahalanobisObjective(Separation):
    """BCE(g(−u), is ID) of u = mean of the standardised Mahalanobis distance (unit-norm features)
    and relative Mahalanobis distance (features as they are), with a learned head g.

    Class means and shrunk covariances are those of `good_rt.method.discrepancy`, fitted on ID
    features: at first the original classifier's for training images, then the latest ones that the
    training itself has computed, every `FIT_EVERY` steps. So they follow the network, without any
    further image going through it. Between two fits they are constants; the gradient reaches the
    features of all images. Half of the features fit the distances, the other half standardises
    them, by one mean and standard deviation, where the detector has a scale for each class.

    Args:
        known: ID features to start with.
        limit: How many features are kept.

    Raises:
        GoodRtError: there are fewer than 4 features, they do not vary, or they are of one class.
    """

    name, title = "mahalanobis", "logistic loss of the Mahalanobis distances"

    features: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, known: IdFeatures, limit: int) -> None:
        super().__init__()
        self.classes, self.limit = known.classes, limit
        self.register_buffer("features", known.features)
        self.register_buffer("labels", known.labels)
        if len(known) < 4 or not (known.labels[::2] != known.labels[0]).any():
            raise GoodRtError(
                "the objective mahalanobis needs ID images of two or more classes; choose the "
                "objective logistic"
            )
        self._fit()

    @classmethod
    def start(cls, original: OriginalOutputs) -> Self:
        """Fitted on the original classifier's features; the head starts half-way between held-out
        ID and generated images.

        Args:
            original: Its features of training images, and its held-out outputs.

        Raises:
            GoodRtError: there are fewer than 4 ID images, or they are of one class.
        """
        size = original.held_out.features.shape[1]
        classes = len(original.classifier.config.classes)
        limit = max(RECENT, RECENT_PER_FEATURE * size, RECENT_PER_CLASS * classes)
        started = cls(original.id_features(limit), limit)
        started.place_head(original.held_out)
        return started

    def _fit(self) -> None:
        """Fits on every other feature, and standardises with the rest."""
        known = IdFeatures(self.features[::2].cpu(), self.labels[::2].cpu(), self.classes)
        fitted = nn.ModuleList([fit_discrepancy(name, known) for name in SEPARATED_BY])
        self.fitted = fitted.to(self.features)
        values = self._distances(self.features[1::2])
        self.register_buffer("mean", values.mean(dim=0))
        self.register_buffer("std", values.std(dim=0, correction=0).clamp_min(1e-6))

    def _distances(self, features: Tensor) -> Tensor:
        """(N, J) not yet standardised; these discrepancies need no logits."""
        logits = features[:, :0]
        return torch.stack([fitted(logits, features) for fitted in self.fitted], dim=1)

    def discrepancy(self, outputs: BatchOutputs) -> Tensor:
        return ((self._distances(outputs.features) - self.mean) / self.std).mean(dim=1)

    @torch.no_grad()
    def update(self, outputs: BatchOutputs, step: int) -> None:
        """Keeps the ID features of a step; fits again every `FIT_EVERY` steps.

        Args:
            outputs: What the step was computed from, without gradient.
            step: Number of the step, from 1.
        """
        latest = outputs.features[: outputs.id_count].to(self.features)
        self.features = torch.cat([self.features, latest])[-self.limit :]
        self.labels = torch.cat([self.labels, outputs.labels])[-self.limit :]
        # a minority class may be missing for a while
        if step % FIT_EVERY == 0 and (self.labels[::2] != self.labels[0]).any():
            self._fit()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, buffer in list(self.named_buffers()):  # their sizes follow the features
            owner, _, buffer_name = name.rpartition(".")
            self.get_submodule(owner).register_buffer(buffer_name, state[name].to(buffer))
        super().restore(state)
