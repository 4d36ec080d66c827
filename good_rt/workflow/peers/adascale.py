"""AdaSCALE-A: SCALE with a percentile for each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from good_rt.classifier import Classifier
from good_rt.classifier.base import as_vectors
from good_rt.workflow.peers.base import PeerFit, PeerScore, peer
from good_rt.workflow.peers.images import ImageBatches, ScoredImages, network_inputs


@dataclass(frozen=True)
class AdaScaleSettings:
    """Hyperparameters of AdaSCALE-A, as its authors fix them; ``highest`` is OpenOOD's default.

    Attributes:
        lowest: Percentile p_min of the images that are most likely OOD.
        highest: Percentile p_max of those that are least likely.
        weight: λ of the activation shift.
        corrected: Share of the activations in the correction term C_o.
        shifted: Share of the activations in the shift Q.
        pixels: Share of the inputs that are perturbed: those of the smallest gradient.
        step: ε, in units of the network's normalised inputs.
        images: Largest number of ID images that the statistic's distribution is taken from.
    """

    lowest: float = 0.60
    highest: float = 0.85
    weight: float = 10.0
    corrected: float = 0.05
    shifted: float = 0.01
    pixels: float = 0.05
    step: float = 0.5
    images: int = 5000


ADASCALE = AdaScaleSettings()


@peer(
    "AdaSCALE-A",
    "arXiv 2503.08023; percentile 60 to 85, λ = 10, 5 % of the inputs moved by 0.5; energy",
    head=True,
    gradient=True,
)
def adaptive_scaling(fit: PeerFit) -> PeerScore:
    """SCALE with a percentile p = p_min + (1 − F(Q'))(p_max − p_min) for each image (Regmi, arXiv
    2503.08023).

    Q' = λQ + C_o tells how far the largest activations shift under a small perturbation; F is its
    distribution over ID images.
    """
    every = -(-len(fit.id_features) // ADASCALE.images)
    reference = _shift_statistic(fit.classifier, _thinned(fit.batches, every)).sort().values
    span = ADASCALE.highest - ADASCALE.lowest

    def score(images: ScoredImages) -> Tensor:
        statistic = _shift_statistic(fit.classifier, images.batches)
        below = torch.searchsorted(reference, statistic, right=True) / len(reference)
        factor = _activation_ratio(images.features, ADASCALE.lowest + (1 - below) * span)
        return -torch.logsumexp(fit.weights(images.features * factor.exp()[:, None]), dim=1)

    return score


def _shift_statistic(classifier: Classifier, batches: ImageBatches) -> Tensor:
    """Q' (N,) of AdaSCALE."""
    values = []
    for inputs in network_inputs(classifier, batches):
        features, moved = _moved_features(classifier, inputs)
        width = features.shape[1]
        correction = features.topk(max(1, int(width * ADASCALE.corrected)), dim=1).indices
        shifted = features.topk(max(1, int(width * ADASCALE.shifted)), dim=1).indices
        shift = (features - moved).abs().gather(1, shifted).sum(dim=1)
        corrected = moved.relu().gather(1, correction).sum(dim=1)
        values.append((ADASCALE.weight * shift + corrected).cpu())
    return torch.cat(values)


def _thinned(batches: ImageBatches, every: int) -> ImageBatches:
    """Every n-th image."""

    def thinned() -> Iterator[Tensor]:
        seen = 0
        for batch in batches():
            kept = batch[-seen % every :: every]
            if len(kept):
                yield kept
            seen += len(batch)

    return thinned


def _moved_features(classifier: Classifier, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, D) of a network's inputs, and of the same after a step of ε along the sign of
    the predicted logit's gradient, at the inputs of the smallest gradient."""
    network = classifier.network
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        given = network.forward_features(inputs)  # type: ignore[operator]
        predicted = classifier.head(given).amax(dim=1).sum()
        (gradient,) = torch.autograd.grad(predicted, inputs)
    sizes = gradient.abs().flatten(1)
    smallest = sizes.topk(int(sizes.shape[1] * ADASCALE.pixels), dim=1, largest=False).indices
    mask = torch.zeros_like(sizes).scatter_(1, smallest, 1).view_as(inputs)
    with torch.no_grad():
        moved = network.forward_features(  # type: ignore[operator]
            inputs + ADASCALE.step * gradient.sign() * mask
        )
    return as_vectors(given.detach()), as_vectors(moved)


def _activation_ratio(features: Tensor, percentiles: Tensor) -> Tensor:
    """Σ of all activations over Σ of those above each row's percentile (N,) in [0, 1], of rectified
    features."""
    falling = features.relu().sort(dim=1, descending=True).values
    kept = falling.shape[1] - (falling.shape[1] * percentiles).round().long()
    return falling.sum(dim=1) / falling.cumsum(dim=1).gather(1, kept[:, None] - 1)[:, 0]
