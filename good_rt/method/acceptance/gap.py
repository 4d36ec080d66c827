"""A gap between images, so that a set is diverse."""

from __future__ import annotations

import numpy as np

from good_rt.config.settings import AcceptConfig
from good_rt.method.acceptance.base import Candidate, Kept, criterion


@criterion("accept_gap")
def is_apart(config: AcceptConfig, candidate: Candidate, kept: Kept) -> bool:
    """The Euclidean distance of the unit-norm feature to that of every kept image is at least the
    gap."""
    if config.gap == 0 or kept.features is None:
        return True
    distances = np.linalg.norm(kept.features - candidate.feature, axis=1)
    return bool(distances.min() >= config.gap)
