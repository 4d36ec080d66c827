"""Combinations of discrepancies into one score, one family a file.

A new one is a file here with a function that `combination` enters, and a line below.
"""

from good_rt.method.combination import gate, kl, linear, maximum, tail  # noqa: F401
from good_rt.method.combination.base import (
    COMBINATIONS,
    FITTED_ON_GENERATED,
    Combination,
    FitValues,
)

__all__ = ["COMBINATIONS", "FITTED_ON_GENERATED", "Combination", "FitValues"]
