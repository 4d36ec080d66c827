"""Bands: images that are neither ID nor too far away to teach anything."""

from __future__ import annotations

from good_rt.config.settings import AcceptConfig
from good_rt.method.acceptance.base import Candidate, Kept, criterion


def _within(band: tuple[float, float] | None, value: float) -> bool:
    return band is None or band[0] <= value <= band[1]


@criterion("accept_p_value")
def has_p_value(config: AcceptConfig, candidate: Candidate, kept: Kept) -> bool:
    """The ID p-value is in the band; 0.01 to 0.05 is between the 95th and 99th percentile of ID
    images."""
    return _within(config.p_value, candidate.p_value)


@criterion("accept_energy")
def has_energy(config: AcceptConfig, candidate: Candidate, kept: Kept) -> bool:
    """The energy is in the band."""
    return _within(config.energy, candidate.energy)


@criterion("accept_distance")
def has_distance(config: AcceptConfig, candidate: Candidate, kept: Kept) -> bool:
    """The k-NN distance is in the band."""
    return _within(config.distance, candidate.knn_distance)
