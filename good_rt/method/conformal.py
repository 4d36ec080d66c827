"""The decision: a split-conformal p-value of a score among those of held-out ID images.

With n calibration scores exchangeable with the ID inputs to come, P(p ≤ α) ≤ α: at most a share α
of ID inputs is refused (Vovk et al., Algorithmic Learning in a Random World; Bates et al., arXiv
2104.08279, Sec. 2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from good_rt.errors import GoodRtError


def conformal_p_value(
    calibration: NDArray[np.floating], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """p = (1 + #{calibration ≥ score})/(n + 1), (N,) float64 in (0, 1].

    Args:
        calibration: (n,) scores of held-out ID images, higher = more OOD.
        scores: (N,) scores to judge.

    Raises:
        GoodRtError: there is no calibration score, or one is not finite.
    """
    if len(calibration) == 0 or not np.isfinite(calibration).all():
        raise GoodRtError(
            "calibration needs at least one score, all finite; check the held-out ID images"
        )
    ordered = np.sort(calibration)
    below = np.searchsorted(ordered, scores, side="left")
    return (1 + len(ordered) - below) / (len(ordered) + 1)


def largest_accepted(calibration: NDArray[np.floating], alpha: float) -> float:
    """The largest score that is not refused: p ≤ α for every score above it, and for none up to it.

    Args:
        calibration: (n,) scores of held-out ID images.
        alpha: Largest share of ID inputs that may be refused.

    Raises:
        GoodRtError: see `check_alpha`.
    """
    check_alpha(alpha, len(calibration))
    # p(score) falls at each calibration score; the first that is refused follows the last accepted
    ordered = np.unique(calibration)
    accepted = ordered[conformal_p_value(calibration, ordered) > alpha]
    return float(accepted[-1])  # the lowest score has p = 1


def allows(alpha: float, calibration_size: int) -> bool:
    """Whether n calibration images could refuse any input at α: 1/(n+1) ≤ α.

    Args:
        alpha: Largest share of ID inputs that may be refused.
        calibration_size: n.
    """
    return alpha * (calibration_size + 1) >= 1


def check_alpha(alpha: float, calibration_size: int) -> None:
    """Checks that 0 < α < 1 and that the calibration `allows` it.

    Args:
        alpha: Largest share of ID inputs that may be refused.
        calibration_size: Number of calibration images.

    Raises:
        GoodRtError: α is out of range or too small for the calibration.
    """
    if not 0 < alpha < 1:
        raise GoodRtError(f"alpha must be between 0 and 1, not {alpha}")
    if not allows(alpha, calibration_size):
        needed = int(np.ceil(1 / alpha)) - 1
        raise GoodRtError(
            f"alpha {alpha} needs at least {needed} calibration images, there are "
            f"{calibration_size}; "
            "with fewer, nothing would ever be refused"
        )
