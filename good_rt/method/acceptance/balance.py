"""Equally many images of every class."""

from __future__ import annotations

import math

from good_rt.config.settings import AcceptConfig
from good_rt.method.acceptance.base import Candidate, Kept, criterion


@criterion("balance")
def has_room(config: AcceptConfig, candidate: Candidate, kept: Kept) -> bool:
    """Fewer than ⌈count/classes⌉ images of its class were kept."""
    room = math.ceil(kept.count / kept.classes)
    return not config.balance or kept.labels.count(candidate.label) < room
