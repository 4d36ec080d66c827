"""Post-hoc OOD scores of other papers on the same classifier and images, to compare ours with.

`PEERS` is the one register: each peer is fitted on ID training images and returns a function of a
set of images, higher = more OOD. All share the features of one pass of the network; only ODIN and
AdaSCALE run it again, for gradients. Settings are published defaults or follow from ID data; no
test image chooses any. pytorch-ood, the extra ``peers``, computes what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from good_rt.classifier import Classifier, IdFeatures, outputs, predict
from good_rt.classifier.base import PIXELS, as_vectors
from good_rt.data.pixels import from_uint8
from good_rt.errors import GoodRtError, first_line, require
from good_rt.method.schedule import FloatArray
from good_rt.method.scores import LOGIT_SCORES
from good_rt.progress import SILENT, Progress

ImageBatches = Callable[[], Iterable[Tensor]]
"""Images (n, C, H, W) in [-1, 1], batch by batch; each call starts again."""
ARRAY_BATCH = 500
"""Images of an array that are converted at once."""
GRADIENT_BATCH = 128
"""Largest number of images whose gradients are computed at once."""
CHUNK = 2**24
"""Largest number of products of a feature and a weight that DICE holds at once."""
HEAD_CHECK_IMAGES = 256
"""Real images on which a classifier's head is compared with a linear layer."""


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


@dataclass(frozen=True)
class PeerScores:
    """Scores of peers on sets of images.

    Attributes:
        scores: (N,) float64 by peer and set, higher = more OOD.
        left_out: Why a peer has no scores, by its name.
    """

    scores: Mapping[str, Mapping[str, FloatArray]]
    left_out: Mapping[str, str]


def peer_scores(
    classifier: Classifier,
    id_images: NDArray[np.uint8],
    id_labels: NDArray[np.integer],
    sets: Mapping[str, NDArray[np.uint8]],
    names: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> PeerScores:
    """Scores of every peer, and of MSP, MaxLogit and Energy, from arrays of images.

    Every image goes through the network once; ODIN and AdaSCALE run it again, for gradients.
    Nothing is fitted on ``sets``.

    Args:
        classifier: The classifier.
        id_images: (M, H, W, C) uint8, ID training images that the peers are fitted on.
        id_labels: (M,) their indices of the classifier's classes.
        sets: (N, H, W, C) uint8 images to score by name: ID test images and OOD sets alike.
        names: Which scores; None for all of `LOGIT_SCORES` and `PEERS`.
        progress: Hears of the peers.

    Returns:
        ``scores[name][set]``, each (N,) float64, higher = more OOD; and why peers are left out.

    Raises:
        GoodRtError: pytorch-ood is missing, a name is unknown, or images do not fit the classifier.
    """
    names = [*LOGIT_SCORES, *PEERS] if names is None else names
    if unknown := [name for name in names if name not in (*LOGIT_SCORES, *PEERS)]:
        known = ", ".join((*LOGIT_SCORES, *PEERS))
        raise GoodRtError(f"there is no peer {unknown[0]!r}; take some of {known}")
    labels = torch.from_numpy(np.asarray(id_labels, np.int64))
    _, features = outputs(classifier, array_batches(id_images)())
    id_features = IdFeatures(features, labels, len(classifier.config.classes))
    fit = PeerFit.of(classifier, id_features, array_batches(id_images))
    scored = {
        name: ScoredImages.of(classifier, array_batches(images)) for name, images in sets.items()
    }
    of_peers = score_with_peers(fit, scored, [name for name in names if name in PEERS], progress)
    of_logits = {
        name: {key: LOGIT_SCORES[name](images.logits.numpy()) for key, images in scored.items()}
        for name in names
        if name in LOGIT_SCORES
    }
    scores = of_logits | dict(of_peers.scores)
    return PeerScores({name: scores[name] for name in names if name in scores}, of_peers.left_out)


def score_with_peers(
    fit: PeerFit,
    sets: Mapping[str, ScoredImages],
    names: Iterable[str] = (),
    progress: Progress = SILENT,
) -> PeerScores:
    """Fits peers and scores sets of images with them.

    A peer that does not suit the classifier or the ID images, fails, or gives a value that is not
    finite is left out.

    Args:
        fit: What they are fitted on.
        sets: What they score, by name.
        names: Names of `PEERS`; empty for all.
        progress: Hears of the peers.

    Raises:
        GoodRtError: images do not fit the classifier.
    """
    chosen = list(names) or list(PEERS)
    scores: dict[str, dict[str, FloatArray]] = {}
    left_out: dict[str, str] = {}
    training = fit.classifier.training
    fit.classifier.eval()
    try:
        with progress.task("scoring with peers", len(chosen)) as advance:
            for name in chosen:
                result = _scores_or_reason(PEERS[name], fit, sets)
                if isinstance(result, str):
                    left_out[name] = result
                else:
                    scores[name] = result
                advance(1)
    finally:
        fit.classifier.train(training)
    return PeerScores(scores, left_out)


def _scores_or_reason(
    one: Peer, fit: PeerFit, sets: Mapping[str, ScoredImages]
) -> dict[str, FloatArray] | str:
    """One peer's scores by set, or why it has none."""
    reason = one.unfit_reason(fit)
    if reason is not None:
        return reason
    try:
        score = one.fit(fit)
        scores = {
            name: score(images).detach().cpu().double().numpy() for name, images in sets.items()
        }
    except (ValueError, AssertionError, RuntimeError) as error:  # what pytorch-ood and torch raise
        return f"{type(error).__name__}: {first_line(error)}"
    bad = [name for name, values in scores.items() if not np.isfinite(values).all()]
    return f"its scores of {bad[0]} are not finite" if bad else scores


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


def array_batches(images: NDArray[np.uint8]) -> ImageBatches:
    """Images (N, H, W, C) uint8 in batches that can be read again and again."""

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(images), ARRAY_BATCH):
            yield from_uint8(images[start : start + ARRAY_BATCH])

    return batches


def linear_head(classifier: Classifier, images: Tensor) -> nn.Linear | None:
    """The linear layer that gives a classifier's logits from its features, on the CPU.

    It is the last Linear of fitting shape; in a graph without modules, the affine function that the
    head computes. Either must reproduce the logits of real images.

    Args:
        classifier: The classifier.
        images: (N, C, H, W) in [-1, 1]: real images.

    Returns:
        None where no linear layer reproduces the logits.
    """
    logits, features = predict(classifier, images)
    shape = logits.shape[1], features.shape[1]
    modules = [
        module
        for module in classifier.network.modules()
        if isinstance(module, nn.Linear) and tuple(module.weight.shape) == shape
    ]
    for module in reversed(modules):
        bias = torch.zeros(shape[0]) if module.bias is None else module.bias
        head = _linear(module.weight, bias)
        if _reproduces(head, features, logits):
            return head
    probed = _probed_head(classifier, shape[1])
    return probed if probed is not None and _reproduces(probed, features, logits) else None


@torch.no_grad()
def _probed_head(classifier: Classifier, width: int) -> nn.Linear | None:
    """The affine function h(x) = Wx + b of a head, read off h(0) and h of the unit vectors."""
    points = torch.cat([torch.zeros(1, width), torch.eye(width)]).to(classifier.device)
    try:
        values = classifier.network.forward_head(points)  # type: ignore[operator]
    except (RuntimeError, ValueError, IndexError, GoodRtError):  # it takes maps or tokens
        return None
    return _linear((values[1:] - values[0]).T, values[0]) if values.ndim == 2 else None


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight.detach().cpu().float(), "bias": bias.detach().cpu()})
    return head.requires_grad_(False)


def _reproduces(head: nn.Linear, features: Tensor, logits: Tensor) -> bool:
    tolerance = 1e-4 * float(logits.abs().max())
    return torch.allclose(head(features), logits, rtol=1e-3, atol=tolerance)


# --- through pytorch-ood ---


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
        return network.forward_head(network.forward_features(inputs))  # type: ignore[operator]

    # a network without normalisation takes [-1, 1], where a step is twice as long as in [0, 1]
    detector = fit.detectors.ODIN(logits, norm_std=list(std or (0.5,)))
    return lambda images: torch.cat(
        [
            detector.predict(inputs).cpu()
            for inputs in _network_inputs(fit.classifier, images.batches)
        ]
    )


@peer("Mahalanobis (raw)", "arXiv 1807.03888; last layer, no input perturbation")
def raw_mahalanobis(fit: PeerFit) -> PeerScore:
    """Smallest squared Mahalanobis distance to a class mean with the shared covariance (Lee et al.,
    arXiv 1807.03888, Eq. 2), of features that are not scaled to norm 1."""
    detector = fit.detectors.Mahalanobis(None)
    detector.fit_features(fit.id_features.features, _contiguous_labels(fit.id_features))
    return lambda images: detector.predict_features(images.features)


@peer("RMD", "arXiv 2106.09022")
def relative_mahalanobis_distance(fit: PeerFit) -> PeerScore:
    """Mahalanobis distance relative to that of one Gaussian of all ID features (Ren et al., arXiv
    2106.09022)."""
    detector = fit.detectors.RMD(None)
    detector.fit_features(fit.id_features.features, _contiguous_labels(fit.id_features))
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


# --- by our own code ---


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
    for inputs in _network_inputs(classifier, batches):
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
        predicted = network.forward_head(given).amax(dim=1).sum()  # type: ignore[operator]
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


SHOTS, SHARPNESS = 16, 5.5
"""Images of a class in the caches of `dual_cache`, and β of their affinity (Tip-Adapter)."""


@peer(
    "Dual cache",
    "after arXiv 2405.16146 and 2111.03930; 16 images a class, α = 1, β = 5.5, half the channels",
    head=True,
    classes=True,
)
def dual_cache(fit: PeerFit) -> PeerScore:
    """Few-shot positive and negative caches, after Dual-Adapter (Chen et al., arXiv 2405.16146).

    Dual-Adapter is made for CLIP; here the classifier's head takes the place of the texts. The half
    of the channels on which class means agree least and vary most is positive, the rest negative:
    the smaller half of S − V, S their similarity between classes and V their variance over classes
    (Zhu et al., arXiv 2304.01195, with equal weights). On either half z = W f + b + α A, with
    Tip-Adapter's affinities A = exp(−β(1 − f̂ F̂ᵀ)) L to the cached features (Zhang et al., arXiv
    2111.03930). The score is −log of the largest softmax probability of a positive class
    among the positive and negative ones.
    """
    features, labels = fit.id_features.features, fit.id_features.labels
    means = torch.stack(
        [F.normalize(features[labels == c], dim=1).mean(0) for c in range(fit.id_features.classes)]
    )
    means = F.normalize(means, dim=1)
    similarity = (means.sum(dim=0).square() - means.square().sum(dim=0)) / len(means) ** 2
    order = (similarity - means.var(dim=0, unbiased=False)).argsort()
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    rows = torch.cat([(labels == c).nonzero()[:SHOTS, 0] for c in range(len(means))])
    one_hot = F.one_hot(labels[rows], len(means)).float()

    def cached_logits(images: ScoredImages, channels: Tensor) -> Tensor:
        part = images.features[:, channels]
        keys = F.normalize(features[rows][:, channels], dim=1)
        affinity = torch.exp(-SHARPNESS * (1 - F.normalize(part, dim=1) @ keys.T))
        return (
            F.linear(part, fit.weights.weight[:, channels], fit.weights.bias) + affinity @ one_hot
        )

    def score(images: ScoredImages) -> Tensor:
        positive, negative = (cached_logits(images, channels).double() for channels in halves)
        both = torch.cat([positive, negative], dim=1)
        return both.logsumexp(dim=1) - positive.amax(dim=1)

    return score


def _network_inputs(classifier: Classifier, batches: ImageBatches) -> Iterator[Tensor]:
    """Images as the network takes them, on its device, in batches that gradients fit for."""
    for batch in batches():
        size = max(1, PIXELS // (4 * batch.shape[2] * batch.shape[3]))
        for images in batch.split(min(GRADIENT_BATCH, size)):
            yield classifier.prepare(images.to(classifier.device)).detach()


def _contiguous_labels(id_features: IdFeatures) -> Tensor:
    """Labels 0 to n − 1 of the n classes that occur, as pytorch-ood's Gaussians take them."""
    return id_features.labels.unique(return_inverse=True)[1]


def _as_maps(features: Tensor) -> Tensor:
    """(N, D) -> (N, D, 1, 1), as pytorch-ood's activation shaping takes them."""
    return features[:, :, None, None]


def _head_of_maps(head: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda maps: head(maps.flatten(1))
