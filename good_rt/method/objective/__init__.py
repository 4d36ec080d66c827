"""The objectives of the fine-tuning: how it separates ID from generated images, one a file.

A new one is a file here with a class that `objective` enters, and a line below.
"""

from good_rt.method.objective import (  # noqa: F401
    contrastive,
    hinge,
    logistic,
    mahalanobis,
    uniform,
)
from good_rt.method.objective.base import OBJECTIVES, Objective, regulariser_weight

__all__ = ["OBJECTIVES", "Objective", "regulariser_weight"]
