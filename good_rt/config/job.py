"""A job file: everything from a folder of images and two models to detector.onnx and its report, as
settings.

`good-rt init` writes one, `good-rt run` goes through it. Paths are relative to the file; all
outputs lie below ``out``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from good_rt.config.toml import read_settings
from good_rt.data.splits import SplitConfig
from good_rt.demo import assets
from good_rt.diffusion import TEMPLATE
from good_rt.errors import GoodRtError
from good_rt.method.schedule import Trend
from good_rt.method.training import TrainConfig

Precision = Literal["fp32", "fp16", "bf16"]

DEMO = "demo"
"""Stands for the demo's model, classifier or images."""


@dataclass(frozen=True)
class DataSection:
    """[data]: the in-distribution images, and how they are divided."""

    images: str
    held_out: float = SplitConfig.held_out
    test: float = SplitConfig.test
    seed: int = SplitConfig.seed
    skip_bad: bool = False

    def __post_init__(self) -> None:
        self.split  # noqa: B018 (checks the values)

    @property
    def split(self) -> SplitConfig:
        return SplitConfig(self.held_out, self.test, self.seed, self.skip_bad)


@dataclass(frozen=True)
class ModelsSection:
    """[models]: the classifier, and the diffusion model that it guides."""

    classifier: str
    diffusion: str
    gradient_decoder: str | None = None
    """Folder of a light autoencoder that gradients go through."""
    image_size: int | None = None
    """Height and width of the images, where the diffusion model bears with another than its own."""


@dataclass(frozen=True)
class Runtime:
    """What runs the engines of UNet and decoder, and in which precision; gradients are always in
    fp32."""

    name: Literal["onnx", "tensorrt"] = "onnx"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if (
            self.name == "onnx" and self.precision == "bf16"
        ):  # ONNX has no convolution in bf16 before opset 22
            raise GoodRtError("the engine onnx computes in fp32 or fp16; bf16 is of tensorrt")

    def __str__(self) -> str:
        return "onnx" if self == Runtime() else f"{self.name} {self.precision}"


ONNX = Runtime()


def runtime_of(engine: str, precision: Precision | None) -> Runtime | None:
    """The runtime of an ``engine``; None of "torch". Raises GoodRtError where that is to have a
    precision."""
    if engine == "torch":
        if precision is not None:
            raise GoodRtError(
                "precision is of the engines onnx and tensorrt; torch computes in float32"
            )
        return None
    return Runtime("tensorrt" if engine == "tensorrt" else "onnx", precision or "fp32")


@dataclass(frozen=True)
class GenerateSection:
    """[generate]: OOD images of each kind of guidance; the names are those of `good-rt
    generate`."""

    count: int = 256
    kinds: tuple[Literal["img", "feat", "both"], ...] = ("img", "feat", "both")
    mu: float = 0.1
    rho: float = 0.0
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    schedule: Trend = "constant"
    sigma: float = 0.0
    n_mc: int = 1
    n_iter: int = 1
    n_recur: int = 1
    step: Literal["unit", "raw"] = "unit"
    clip: float | None = None
    band: tuple[float, float] | None = None
    span: tuple[float, float] = (0.0, 1.0)
    every: int = 1
    k: int = 10
    steps: int = 25
    eta: float = 1.0
    cfg: float = 1.0
    cfg_sigma_max: float = math.inf
    prompts: tuple[str, ...] = (TEMPLATE,)
    """Of a class, {} in its name's place, for models that follow text; several take turns."""
    batch: int = 32
    engine: Literal["onnx", "torch", "tensorrt"] = "onnx"
    precision: Precision | None = None
    """Of UNet and decoder as engines, where None is fp32; gradients are always in fp32."""
    gradients: Literal["torch", "engine"] = "torch"
    twins: bool = False

    @property
    def runtime(self) -> Runtime | None:
        """What runs UNet and decoder as engines; None where PyTorch does."""
        return runtime_of(self.engine, self.precision)

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise GoodRtError("kinds must name one or more kinds of guidance, each once")
        if self.gradients == "engine" and self.engine == "torch":
            raise GoodRtError('gradients = "engine" needs engine = "onnx" or "tensorrt"')
        runtime_of(self.engine, self.precision)
        if self.count < 10 or self.batch < 1 or self.steps < 1 or self.k < 1:
            raise GoodRtError("count must be at least 10; batch, steps and k at least 1")
        if min(self.mu, self.rho) < 0:
            raise GoodRtError(
                f"mu is {self.mu:g} and rho {self.rho:g}, but neither may be less than 0"
            )
        if not (self.mu > 0 or self.rho > 0):
            raise GoodRtError("mu and rho are both 0, so nothing is guided; set one")


@dataclass(frozen=True)
class TrainSection:
    """[train]: fine-tuning with the images of the kinds ``ood``; without them (an empty list) none
    takes place."""

    ood: tuple[Literal["img", "feat", "both"], ...] = ("img",)
    unguided: int = 0
    """Samples without guidance that are made, and count as ID in the training."""
    control: bool = False
    steps: int = TrainConfig.steps
    id_batch: int = TrainConfig.id_batch
    ood_batch: int = TrainConfig.ood_batch
    lr: float = TrainConfig.lr
    weight: float = TrainConfig.weight
    decoded_share: float = TrainConfig.decoded_share
    interpolation: float = TrainConfig.interpolation
    max_drop: float = TrainConfig.max_accuracy_drop

    def __post_init__(self) -> None:
        if min(self.steps, self.id_batch, self.ood_batch) < 1 or not self.lr > 0:
            raise GoodRtError(
                "steps, id_batch and ood_batch must be at least 1, and lr greater than 0"
            )
        if self.unguided < 0:
            raise GoodRtError(f"unguided is {self.unguided}, but counts samples; 0 for none")


@dataclass(frozen=True)
class DetectorSection:
    """[detector]: of the trained classifier, or of the one that came."""

    classifier: Literal["trained", "before"] = "trained"
    k: int = 1
    alpha: float = 0.05
    bank_size: int = 10_000


@dataclass(frozen=True)
class JobConfig:
    """What a job file holds. ``folder`` is where it lies; [ood] names test sets that the evaluation
    alone looks at."""

    data: DataSection
    models: ModelsSection
    out: str = "job"
    seed: int = 0
    generate: GenerateSection = field(default_factory=GenerateSection)
    train: TrainSection = field(default_factory=TrainSection)
    detector: DetectorSection = field(default_factory=DetectorSection)
    ood: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            not self.out
            or Path(self.out).is_absolute()
            or ".." in Path(self.out).parts
            or Path(self.out) == Path()
        ):
            raise GoodRtError(f"out is {self.out!r}, but must be a folder beside the job file")
        unmade = [kind for kind in self.train.ood if kind not in self.generate.kinds]
        if unmade:
            raise GoodRtError(f"train.ood names {unmade[0]!r}, which generate.kinds does not make")
        if self.detector.classifier == "trained" and not self.train.ood:
            raise GoodRtError(
                'detector.classifier is "trained", but train.ood is empty; make it "before"'
            )


def spec_of(spec: str, place: Callable[[Path], Path | None]) -> Path:
    """A model's spec with its paths placed elsewhere; what ``place`` knows nothing of stays as it
    is."""
    name, at, weights = spec.partition("@")
    kind, colon, rest = name.partition(":")
    placed = (f"{place(Path(part)) or part}" if part else "" for part in (rest, weights))
    return Path(f"{kind}{colon}{next(placed)}{at}{next(placed)}")


@dataclass(frozen=True)
class Job:
    """A job file's settings with its paths found."""

    path: Path
    config: JobConfig

    @classmethod
    def read(cls, path: Path) -> Job:
        """Raises GoodRtError that names the line of what is wrong, and the nearest known key of an
        unknown one."""
        return cls(path, read_settings(path, JobConfig))

    @property
    def out(self) -> Path:
        return self.path.parent / self.config.out

    @property
    def images(self) -> Path:
        return self._place(self.config.data.images, assets.DATA)

    @property
    def classifier(self) -> Path:
        return self._place(self.config.models.classifier, assets.CLASSIFIER)

    @property
    def diffusion(self) -> Path:
        return self._place(self.config.models.diffusion, assets.MODEL)

    @property
    def gradient_decoder(self) -> Path | None:
        value = self.config.models.gradient_decoder
        return None if value is None else self._place(value, assets.GRADIENT_DECODER)

    @property
    def ood(self) -> dict[str, Path]:
        return {name: self._place(value) for name, value in self.config.ood.items()}

    def _place(self, value: str, demo: Path | None = None) -> Path:
        """A path of the file, those in a spec among them (timm:FOLDER, …@WEIGHTS); what is none
        stays as it is."""
        if value == DEMO and demo is not None and not (self.path.parent / value).exists():
            return demo
        inside = self.path.parent / Path(value).expanduser()
        if inside.exists() or ":" not in value:
            return inside
        return spec_of(
            value, lambda path: path if (path := self.path.parent / path).exists() else None
        )
