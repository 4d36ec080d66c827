"""The discrepancies ℓ that the detector's score combines and that guidance climbs, one a file.

A new one is a file here with a class that `discrepancy` enters, and a line below.
"""

from good_rt.method.discrepancy import energy, knn, mahalanobis, relative_mahalanobis  # noqa: F401
from good_rt.method.discrepancy.base import (
    DISCREPANCIES,
    TITLES,
    Discrepancy,
    DiscrepancyConfig,
    fit_discrepancy,
)

__all__ = [
    "DISCREPANCIES",
    "TITLES",
    "Discrepancy",
    "DiscrepancyConfig",
    "fit_discrepancy",
]
