"""OOD scores that need a classifier's logits alone: the established peers of the unified score.

They take numpy logits of shape (N, K) and give (N,) float64, higher = more OOD. The k-NN distance
is in `good_rt.method.bank`, the unified score in `good_rt.method.gate`;
`good_rt.evaluation.metrics` measures them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from good_rt.errors import GoodRtError

Scores = NDArray[np.float64]
Score = TypeVar("Score", bound=Callable[..., Scores])

LOGIT_SCORES: dict[str, Callable[[ArrayLike], Scores]] = {}
"""Every score of this file by the name that tables show, in that order."""


def logit_score(name: str) -> Callable[[Score], Score]:
    """Decorator that enters a function of logits (N, K) into `LOGIT_SCORES`: one function is one
    more row."""

    def enter(function: Score) -> Score:
        LOGIT_SCORES[name] = function
        return function

    return enter


@logit_score("MSP")
def msp(logits: ArrayLike) -> Scores:
    """1 − max_c softmax(f)_c, one minus the maximum softmax probability (Hendrycks & Gimpel, arXiv
    1610.02136).

    Computed as s / (1 + s) with s = Σ_{c ≠ argmax} exp(f_c − max f), which keeps the order of
    confident images that 1 − softmax would round to one tie at 0. In [0, 1).
    """
    falling = np.sort(_checked(logits), axis=1)[:, ::-1]
    others: Scores = np.exp(falling[:, 1:] - falling[:, :1]).sum(1)
    return others / (1 + others)


@logit_score("MaxLogit")
def max_logit(logits: ArrayLike) -> Scores:
    """−max_c f_c, the negative largest logit (Hendrycks et al., arXiv 1911.11132)."""
    largest: Scores = _checked(logits).max(1)
    return -largest


@logit_score("Energy")
def energy(logits: ArrayLike, temperature: float = 1.0) -> Scores:
    """−T · logsumexp_c(f_c / T), the free energy (Liu et al., arXiv 2010.03759, Eq. 4); T > 0."""
    if not temperature > 0:
        raise GoodRtError(f"the energy's temperature must be above 0, not {temperature}")
    array = _checked(logits)
    largest: Scores = array.max(1, keepdims=True)
    rest: Scores = np.exp((array - largest) / temperature).sum(1)
    return -(largest[:, 0] + temperature * np.log(rest))


def _checked(logits: ArrayLike) -> Scores:
    array = np.asarray(logits, np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise GoodRtError(f"logits must be of shape (images, classes), not {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if bad.size:
        raise GoodRtError(
            f"the logits of {bad.size} of {len(array)} images are not finite (the first: image "
            f"{bad[0]})"
        )
    return array
