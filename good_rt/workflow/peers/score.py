"""Fits peers and scores sets of images with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from good_rt.classifier import Classifier, IdFeatures, outputs
from good_rt.errors import GoodRtError, first_line
from good_rt.method.schedule import FloatArray
from good_rt.method.scores import LOGIT_SCORES
from good_rt.progress import SILENT, Progress
from good_rt.workflow.peers.base import PEERS, Peer, PeerFit
from good_rt.workflow.peers.images import ScoredImages, array_batches


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
