"""What a peer is and what it is fitted on, and the register of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from good_rt.classifier import Classifier, IdFeatures
from good_rt.errors import GoodRtError, first_line, require
from good_rt.workflow.peers.head import linear_head
from good_rt.workflow.peers.images import ImageBatches, ScoredImages

HEAD_CHECK_IMAGES = 256
"""Real images on which a classifier's head is compared with a linear layer."""


@dataclass(frozen=True, eq=False)
class PeerFit:
    """What peers are fitted on: ID training images and the classifier.

    Attributes:
        classifier: The classifier, in evaluation mode.
        id_features: Features and labels of ID images.
        batches: The ID images, for peers that need gradients.
        head: The linear layer that gives the logits, on the CPU; None where there is none.
        detectors: The module ``pytorch_ood.detector``.
    """

    classifier: Classifier
    id_features: IdFeatures
    batches: ImageBatches
    head: nn.Linear | None
    detectors: Any

    @classmethod
    def of(cls, classifier: Classifier, id_features: IdFeatures, batches: ImageBatches) -> PeerFit:
        """Finds the classifier's linear head, and imports pytorch-ood.

        Args:
            classifier: The classifier.
            id_features: Features and labels of ID images.
            batches: The ID images; the first are used to check the head.

        Raises:
            GoodRtError: pytorch-ood is missing or cannot be imported.
        """
        images = next(iter(batches()))[:HEAD_CHECK_IMAGES]
        head = linear_head(classifier, images)
        return cls(classifier, id_features, batches, head, pytorch_ood_detectors())

    @property
    def weights(self) -> nn.Linear:
        """The head, for peers that need one."""
        assert self.head is not None  # unfit_reason
        return self.head


PeerScore = Callable[[ScoredImages], Tensor]
"""A set of N images -> (N,), higher = more OOD."""


@dataclass(frozen=True)
class Peer:
    """A post-hoc OOD score.

    Attributes:
        fit: Makes the score from ID images.
        settings: Its paper and hyperparameters, for the table's note.
        needs_head: Whether it needs the weights of a linear head.
        needs_gradient: Whether it needs gradients with respect to the image.
        needs_classes: Whether every class must have an ID image.
    """

    fit: Callable[[PeerFit], PeerScore]
    settings: str
    needs_head: bool
    needs_gradient: bool
    needs_classes: bool

    def unfit_reason(self, fit: PeerFit) -> str | None:
        """Why it does not suit the classifier or the ID images; None where it does."""
        missing = fit.id_features.classes - len(fit.id_features.labels.unique())
        if self.needs_head and fit.head is None:
            return "the classifier's logits are no linear function of its features"
        if self.needs_gradient and not fit.classifier.differentiable:
            return "the classifier has no gradient"
        if self.needs_classes and missing:
            return f"{missing} of {fit.id_features.classes} classes have no ID image to fit on"
        return None


PEERS: dict[str, Peer] = {}
"""Every peer by the name that tables show, in that order."""


def peer(
    name: str, settings: str, *, head: bool = False, gradient: bool = False, classes: bool = False
) -> Callable[[Callable[[PeerFit], PeerScore]], Callable[[PeerFit], PeerScore]]:
    """Decorator that adds a function from `PeerFit` to a score to `PEERS`.

    Args:
        name: The peer's name in tables.
        settings: Its paper and hyperparameters.
        head: Whether it needs the weights of a linear head.
        gradient: Whether it needs gradients with respect to the image.
        classes: Whether every class must have an ID image.
    """

    def enter(function: Callable[[PeerFit], PeerScore]) -> Callable[[PeerFit], PeerScore]:
        PEERS[name] = Peer(function, settings, head, gradient, classes)
        return function

    return enter


def pytorch_ood_detectors() -> Any:
    """The module ``pytorch_ood.detector``.

    Raises:
        GoodRtError: it is missing, or its torchvision was built for another PyTorch.
    """
    try:
        return require("pytorch_ood.detector", "peers")
    except (RuntimeError, AttributeError) as error:
        raise GoodRtError(
            f"pytorch_ood cannot be imported ({first_line(error)}); install versions of torch and "
            "torchvision that belong together"
        ) from None
