"""Equally many images of every class."""

from __future__ import annotations

from good_rt.config.settings import AcceptConfig
from good_rt.method.acceptance.base import Candidate, Kept, criterion


@criterion("balance")
def has_room(config: AcceptConfig, candidate: Candidate, kept: Kept) -> bool:
    """Its class still lacks images: every class has ⌊count/classes⌋, and as many of them one more
    as fill the set."""
    if not config.balance:
        return True
    room, remainder = divmod(kept.count, kept.classes)
    held = kept.per_class[candidate.label]
    larger = sum(number > room for number in kept.per_class.values())
    return held < room or (held == room and larger < remainder)
