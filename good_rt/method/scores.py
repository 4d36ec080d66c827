"""OOD scores that need only a classifier's logits: the baselines of the unified score.

They take numpy logits of shape (N, K) and give (N,) float64, higher = more OOD. Scores of features
are in `good_rt.method.discrepancy`, the unified score in `good_rt.method.unified`;
`good_rt.evaluation.metrics` measures them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from good_rt.errors import GoodRtError
from good_rt.method.schedule import FloatArray
from good_rt.plugins import SCORE_PLUGINS, load_plugin

Score = TypeVar("Score", bound=Callable[..., FloatArray])
LogitScore = Callable[[ArrayLike], FloatArray]
"""Logits (N, K) -> (N,) float64, higher = more OOD; `good_rt.testing` checks the rules."""

LOGIT_SCORES: dict[str, LogitScore] = {}
"""Every score of this file by the name that tables show, in that order."""
OTHER_ROWS = ("k-NN", "Mahalanobis", "Relative Mahalanobis", "Unified")
"""The scores of an evaluation that need more than logits."""


def logit_score(name: str) -> Callable[[Score], Score]:
    """Decorator that adds a function of logits (N, K) to `LOGIT_SCORES`, a row of every evaluation.

    Args:
        name: The score's name in tables.
    """

    def enter(function: Score) -> Score:
        LOGIT_SCORES[name] = function
        return function

    return enter


@logit_score("MSP")
def msp(logits: ArrayLike) -> FloatArray:
    """1 − max_c softmax(f)_c, one minus the maximum softmax probability (Hendrycks & Gimpel, arXiv
    1610.02136).

    Computed as s / (1 + s) with s = Σ_{c ≠ argmax} exp(f_c − max f), which keeps the order of
    confident images that 1 − softmax would round to one tie at 0. In [0, 1).
    """
    falling = np.sort(_checked(logits), axis=1)[:, ::-1]
    others: FloatArray = np.exp(falling[:, 1:] - falling[:, :1]).sum(1)
    return others / (1 + others)


@logit_score("MaxLogit")
def max_logit(logits: ArrayLike) -> FloatArray:
    """−max_c f_c, the negative largest logit (Hendrycks et al., arXiv 1911.11132)."""
    largest: FloatArray = _checked(logits).max(1)
    return -largest


@logit_score("Energy")
def energy(logits: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """−T · logsumexp_c(f_c / T), the free energy, (N,) (Liu et al., arXiv 2010.03759, Eq. 4).

    Args:
        logits: (N, K) f.
        temperature: T.

    Raises:
        GoodRtError: T is not above 0, or the logits are not a finite (N, K) matrix.
    """
    if not temperature > 0:
        raise GoodRtError(f"the energy's temperature must be above 0, not {temperature}")
    array = _checked(logits)
    largest: FloatArray = array.max(1, keepdims=True)
    rest: FloatArray = np.exp((array - largest) / temperature).sum(1)
    return -(largest[:, 0] + temperature * np.log(rest))


def plugin_scores(names: Iterable[str]) -> dict[str, LogitScore]:
    """The scores of installed plug-ins by their names, in that order; others are not imported.

    A plug-in's distribution names a function of logits (N, K) in the entry point group
    ``good_rt.scores``.

    Args:
        names: Entry points' names.

    Returns:
        What can stand beside `LOGIT_SCORES`: a row of an evaluation for each.

    Raises:
        GoodRtError: a name is unknown or taken, or its import fails or gives no function.
    """
    scores: dict[str, LogitScore] = {}
    for name in names:
        if name in (*LOGIT_SCORES, *OTHER_ROWS):
            raise GoodRtError(f"the score {name!r} is always reported; it needs no plug-in")
        score = load_plugin(SCORE_PLUGINS, name)
        if not callable(score):
            raise GoodRtError(
                f"the plug-in {name!r} is of type {type(score).__name__}; its entry point must "
                "name a function of logits (N, K)"
            )
        scores[name] = partial(_plugin_score, name, score)
    return scores


def _plugin_score(
    name: str, score: Callable[[FloatArray], ArrayLike], logits: ArrayLike
) -> FloatArray:
    """A plug-in's scores (N,).

    Raises:
        GoodRtError: they are not N finite numbers for these logits (N, K).
    """
    checked_logits = _checked(logits)
    scores = np.asarray(score(checked_logits), np.float64)
    if scores.shape != checked_logits.shape[:1] or not np.isfinite(scores).all():
        shape_fits = scores.shape == checked_logits.shape[:1]
        what = "values that are not finite" if shape_fits else f"an array of shape {scores.shape}"
        raise GoodRtError(
            f"the score plug-in {name!r} gave {what} for {len(checked_logits)} images; it must "
            "give one finite number each: run good_rt.testing.score_checks on it"
        )
    return scores


def _checked(logits: ArrayLike) -> FloatArray:
    array = np.asarray(logits, np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise GoodRtError(f"logits must be of shape (images, classes), not {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if bad.size:
        raise GoodRtError(
            f"the logits of {bad.size} of {len(array)} images are not finite (the first: image "
            f"{bad[0]}); check the classifier and its images"
        )
    return array
