"""Contract checks that the author of a classifier source, a score or an engine runs.

After scikit-learn's `parametrize_with_checks`: each check is one named rule, and good-rt's own
sources, scores and engines run through the same. Importing this package imports neither pytest nor
torch; what a check needs is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from good_rt.testing.contract import ContractCheck, ContractError, parametrize_with_checks

if TYPE_CHECKING:
    from good_rt.testing.classifier import classifier_checks
    from good_rt.testing.engine import engine_checks
    from good_rt.testing.score import (
        ScoreInputs,
        discrepancy_inputs,
        feature_inputs,
        logit_inputs,
        score_checks,
    )

__all__ = [
    "ContractCheck",
    "ContractError",
    "ScoreInputs",
    "classifier_checks",
    "discrepancy_inputs",
    "engine_checks",
    "feature_inputs",
    "logit_inputs",
    "parametrize_with_checks",
    "score_checks",
]

_MODULES = {
    "classifier_checks": "good_rt.testing.classifier",
    "engine_checks": "good_rt.testing.engine",
    "ScoreInputs": "good_rt.testing.score",
    "discrepancy_inputs": "good_rt.testing.score",
    "feature_inputs": "good_rt.testing.score",
    "logit_inputs": "good_rt.testing.score",
    "score_checks": "good_rt.testing.score",
}


def __getattr__(name: str) -> Any:
    """Imports the checks of a subject, and torch with them, when they are asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
