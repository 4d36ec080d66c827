"""Peers by pytorch-ood."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from good_rt.method.discrepancy.mahalanobis import present_classes
from good_rt.workflow.peers.base import PeerFit, PeerScore, peer
from good_rt.workflow.peers.images import ARRAY_BATCH, network_inputs

CHUNK = 2**24
"""Largest number of products of a feature and a weight that DICE holds at once."""


@peer("GEN", "CVPR 2023; γ = 0.1, the 100 largest probabilities")
def gen(fit: PeerFit) -> PeerScore:
    """Generalised entropy Σ p^γ (1 − p)^γ of the largest probabilities (Liu et al., CVPR
    2023)."""
    detector = fit.detectors.GEN(None, gamma=0.1, M=100)
    return lambda images: detector.predict_logits(images.logits)


@peer("ODIN", "arXiv 1706.02690; T = 1000, ε = 0.0014 of pixels in [0, 1]", gradient=True)
def odin(fit: PeerFit) -> PeerScore:
    """Maximum softmax probability at T of x − ε sign(∇ₓ −log S_ŷ(x; T)) (Liang et al., arXiv
    1706.02690, Eq. 2)."""
    network, std = fit.classifier.network, fit.classifier.config.std

    def logits(inputs: Tensor) -> Tensor:
        return fit.classifier.head(network.forward_features(inputs))  # type: ignore[operator]

    # a network without normalisation takes [-1, 1], where a step is twice as long as in [0, 1]
    detector = fit.detectors.ODIN(logits, norm_std=list(std or (0.5,)))
    return lambda images: torch.cat(
        [
            detector.predict(inputs).cpu()
            for inputs in network_inputs(fit.classifier, images.batches)
        ]
    )


@peer("Mahalanobis (raw)", "arXiv 1807.03888; last layer, no input perturbation")
def raw_mahalanobis(fit: PeerFit) -> PeerScore:
    """Smallest squared Mahalanobis distance to a class mean with the shared covariance (Lee et al.,
    arXiv 1807.03888, Eq. 2), of features that are not scaled to norm 1."""
    detector = fit.detectors.Mahalanobis(None)
    detector.fit_features(fit.id_features.features, present_classes(fit.id_features))
    return lambda images: detector.predict_features(images.features)


@peer("RMD", "arXiv 2106.09022")
def relative_mahalanobis_distance(fit: PeerFit) -> PeerScore:
    """Mahalanobis distance relative to that of one Gaussian of all ID features (Ren et al., arXiv
    2106.09022)."""
    detector = fit.detectors.RMD(None)
    detector.fit_features(fit.id_features.features, present_classes(fit.id_features))
    return lambda images: detector.predict_features(images.features)


@peer("KNN (k = 50)", "ICML 2022, arXiv 2204.06507; k = 50 of all ID features, unit norm")
def nearest_neighbours(fit: PeerFit) -> PeerScore:
    """Distance of the unit-norm feature to the k-th nearest of ID images (Sun et al., arXiv
    2204.06507)."""
    detector = fit.detectors.KNN(None, k=50)
    detector.fit_features(fit.id_features.features, fit.id_features.labels)
    return lambda images: detector.predict_features(images.features)


@peer(
    "ViM",
    "arXiv 2203.10807; principal space of 1000 dimensions of at least 2048 features, 512 of at "
    "least 768, else half",
    head=True,
)
def virtual_logit(fit: PeerFit) -> PeerScore:
    """α‖x^⊥‖ − logsumexp f: the norm of the residual outside the principal space as a logit, less
    the energy (Wang et al., arXiv 2203.10807)."""
    width = fit.weights.in_features
    dimensions = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    detector = fit.detectors.ViM(None, dimensions, fit.weights.weight, fit.weights.bias)
    detector.fit_features(fit.id_features.features, fit.id_features.labels)
    return lambda images: detector.predict_features(images.features)


@peer("ReAct", "arXiv 2111.12797; activations clipped at their 90th percentile; energy", head=True)
def rectified_activations(fit: PeerFit) -> PeerScore:
    """Energy of the head on min(x, c), c a percentile of ID activations (Sun et al., arXiv
    2111.12797)."""
    detector = fit.detectors.ReAct(None, _head_of_maps(fit.weights), percentile=0.9)
    detector.fit_feature_maps(_as_maps(fit.id_features.features), fit.id_features.labels)
    return lambda images: detector.predict_feature_maps(_as_maps(images.features))


@peer("DICE", "arXiv 2111.09805; 90 % of the head's weights masked; energy", head=True)
def sparsified_head(fit: PeerFit) -> PeerScore:
    """Energy of the head without the weights of the smallest mean contribution (Sun & Li, arXiv
    2111.09805)."""
    head = fit.weights
    detector = fit.detectors.DICE(None, head.weight, head.bias, p=0.9)
    detector.fit_features(fit.id_features.features, fit.id_features.labels)
    rows = max(1, CHUNK // head.weight.numel())
    return lambda images: torch.cat(
        [detector.predict_features(part) for part in images.features.split(rows)]
    )


@peer("ASH-S", "arXiv 2209.09858; 65 % of the activations pruned; energy", head=True)
def activation_shaping(fit: PeerFit) -> PeerScore:
    """Energy of the head on the largest activations, times exp(Σ all / Σ kept) (Djurisic et al.,
    arXiv 2209.09858, Alg. 3)."""
    detector = fit.detectors.ASH(None, _head_of_maps(fit.weights), "ash-s", percentile=0.65)
    return lambda images: detector.predict_feature_maps(_as_maps(images.features))


@peer("SCALE", "arXiv 2310.00227; 65th percentile; energy", head=True)
def activation_scaling(fit: PeerFit) -> PeerScore:
    """Energy of the head on all activations, times exp(Σ all / Σ largest) (Xu et al., arXiv
    2310.00227)."""
    detector = fit.detectors.SCALE(None, _head_of_maps(fit.weights), percentile=0.65)
    return lambda images: detector.predict_feature_maps(_as_maps(images.features))


@peer("SHE", "ICLR 2023; inner product", head=True, classes=True)
def simplified_hopfield_energy(fit: PeerFit) -> PeerScore:
    """Minus the inner product of the feature and the mean feature of its predicted class, of
    correctly classified ID images (Zhang et al., ICLR 2023)."""
    detector = fit.detectors.SHE(None, fit.weights)
    detector.fit_features(fit.id_features.features, fit.id_features.labels)
    return lambda images: detector.predict_features(images.features)


@peer("NNGuide", "arXiv 2309.14888; k = 10 of all ID features", head=True)
def neighbour_guided_energy(fit: PeerFit) -> PeerScore:
    """Energy times the mean energy-weighted similarity to the nearest ID features (Park et al.,
    arXiv 2309.14888)."""
    detector = fit.detectors.NNGuide(None, fit.weights, k=10)
    detector.fit_features(fit.id_features.features, fit.id_features.labels)
    return lambda images: torch.cat(
        [detector.predict_features(part) for part in images.features.split(ARRAY_BATCH)]
    )


@peer("fDBD", "arXiv 2312.11536; no hyperparameter", head=True)
def decision_boundary_distance(fit: PeerFit) -> PeerScore:
    """Minus the mean distance to the decision boundaries, over the distance to the mean ID feature
    (Liu & Qin, arXiv 2312.11536)."""
    detector = fit.detectors.fDBD(None, fit.weights).fit_features(fit.id_features.features)
    return lambda images: detector.predict_features(images.features)


def _as_maps(features: Tensor) -> Tensor:
    """(N, D) -> (N, D, 1, 1), as pytorch-ood's activation shaping takes them."""
    return features[:, :, None, None]


def _head_of_maps(head: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda maps: head(maps.flatten(1))
