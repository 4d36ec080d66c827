"""good-rt: makes an image classifier know what it was not trained on.

The public names are imported when they are first used, so that importing good_rt imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0.dev0"

if TYPE_CHECKING:
    from good_rt.config.settings import BackendConfig as BackendConfig
    from good_rt.config.settings import BankConfig as BankConfig
    from good_rt.config.settings import DetectorConfig as DetectorConfig
    from good_rt.config.settings import ExportConfig as ExportConfig
    from good_rt.config.settings import GenerationConfig as GenerationConfig
    from good_rt.config.settings import GuidanceConfig as GuidanceConfig
    from good_rt.config.settings import SamplerConfig as SamplerConfig
    from good_rt.config.settings import SplitConfig as SplitConfig
    from good_rt.config.settings import TrainConfig as TrainConfig
    from good_rt.detector.runtime import Detector as Detector
    from good_rt.detector.runtime import Scores as Scores
    from good_rt.models import Models as Models
    from good_rt.models import ModelSpec as ModelSpec
    from good_rt.workflow.detector import build_detector as build_detector
    from good_rt.workflow.evaluate import evaluate as evaluate
    from good_rt.workflow.generate import generate as generate
    from good_rt.workflow.run import run_job as run_job
    from good_rt.workflow.split import split as split
    from good_rt.workflow.train import train as train

_PUBLIC = {
    "Detector": "good_rt.detector.runtime",
    "Scores": "good_rt.detector.runtime",
    "Models": "good_rt.models",
    "ModelSpec": "good_rt.models",
    "GenerationConfig": "good_rt.config.settings",
    "SplitConfig": "good_rt.config.settings",
    "TrainConfig": "good_rt.config.settings",
    "DetectorConfig": "good_rt.config.settings",
    "SamplerConfig": "good_rt.config.settings",
    "GuidanceConfig": "good_rt.config.settings",
    "ExportConfig": "good_rt.config.settings",
    "BankConfig": "good_rt.config.settings",
    "BackendConfig": "good_rt.config.settings",
    "split": "good_rt.workflow.split",
    "generate": "good_rt.workflow.generate",
    "train": "good_rt.workflow.train",
    "build_detector": "good_rt.workflow.detector",
    "evaluate": "good_rt.workflow.evaluate",
    "run_job": "good_rt.workflow.run",
}
__all__ = ["export", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "export":  # the package, which can be called like the function
        return import_module("good_rt.export")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
