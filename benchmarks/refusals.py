"""How many ID images a calibrated detector refuses by chance."""

from __future__ import annotations

import numpy as np
from scipy.stats import betabinom


def refusal_interval(
    alpha: float, calibration_size: int, test_size: int, level: float = 0.95
) -> tuple[float, float]:
    """The shares (low, high) of ID test images that a calibrated detector refuses by chance at α.

    The threshold comes from the calibration images at hand, so the refusals of n test images are
    beta-binomial with k = ⌊α(n_cal+1)⌋ and n_cal+1−k: wider than a binomial of probability α (Bates
    et al., arXiv 2104.08279, Sec. 2).

    Args:
        alpha: Largest share of ID inputs that may be refused.
        calibration_size: n_cal.
        test_size: n.
        level: Probability of the interval.
    """
    refusing = int(np.floor(alpha * (calibration_size + 1)))
    low, high = betabinom(test_size, refusing, calibration_size + 1 - refusing).interval(level)
    return float(low) / test_size, float(high) / test_size
