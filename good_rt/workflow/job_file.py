"""A job file: everything from a folder of images and two models to detector.onnx and its report.

`good-rt init` writes one, `good-rt run` runs it. Paths are relative to the file; all outputs lie
below ``out``. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from good_rt.config.declaration import nested, setting
from good_rt.config.settings import (
    GUIDED_KINDS,
    AcceptConfig,
    DetectorConfig,
    EvaluateConfig,
    GenerationConfig,
    GuidanceKind,
    ImageLimits,
    SplitConfig,
    TrainConfig,
)
from good_rt.config.toml import read_toml
from good_rt.data.sources.open import open_source
from good_rt.data.splits import recorded_splits
from good_rt.demo import assets
from good_rt.errors import GoodRtError
from good_rt.files import DEMO, user_path
from good_rt.models import ModelSpec
from good_rt.records import newer_version
from good_rt.specs import resolved_spec, split_kind

JOB_VERSION = 3
LEAST_IMAGES = 10
"""Images of each kind that a job generates at least: a part of them is held out."""
TEST_SHARE = 5
"""Without OOD test sets, one is generated of this part of the images of a kind, from other
seeds."""
ROUND_SEEDS = 1_000_000
"""What the seed of generation grows by from round to round, so that no round repeats the noise of
another one or of the generated test set."""


@dataclass(frozen=True)
class DataTable:
    """[data]: the in-distribution images, and how they are divided."""

    images: str | Path = setting(help="ID images: any source of images.", required_in_file=True)
    split: SplitConfig = nested(SplitConfig)
    limits: ImageLimits = nested(ImageLimits)


@dataclass(frozen=True)
class GenerateTable:
    """[generate]: a set of images of each kind of guidance."""

    kinds: tuple[GuidanceKind, ...] = setting(
        GUIDED_KINDS,
        "Kinds of guidance, each a generated set: img, feat, both; none makes unguided images, "
        "which count as ID in the training.",
    )
    counts: Mapping[GuidanceKind, int] = setting(
        {}, "Images of kinds that differ from count, such as {none = 2000}; each names a kind."
    )
    config: GenerationConfig = nested(GenerationConfig, without=("kind", "seed"))

    def __post_init__(self) -> None:
        if not self.guided or len(set(self.kinds)) < len(self.kinds):
            raise GoodRtError("kinds must name one or more kinds of guidance, each once")
        for kind, count in self.sets.items():
            least = 1 if kind == "none" else LEAST_IMAGES
            if count < least:
                raise GoodRtError(f"count must be at least {least}, not {count} for {kind!r}")

    @property
    def guided(self) -> tuple[GuidanceKind, ...]:
        """The kinds that are guided, in the order of the file."""
        return tuple(kind for kind in self.kinds if kind != "none")

    @property
    def sets(self) -> dict[GuidanceKind, int]:
        """The number of images of each kind."""
        kinds = (*self.kinds, *(kind for kind in self.counts if kind not in self.kinds))
        return {kind: self.counts.get(kind, self.config.count) for kind in kinds}


@dataclass(frozen=True)
class TrainTable:
    """[train]: fine-tuning with the generated images."""

    kinds: tuple[GuidanceKind, ...] = setting(
        ("img",), "Kinds of generated images that count as OOD; [] for no fine-tuning."
    )
    control: bool = setting(
        False, "Also train the same steps without generated images, to compare with."
    )
    rounds: int = setting(
        1,
        "Rounds of generation and training: each round after the first generates these kinds "
        "again, guided by the classifier of the round before, and trains with the images of all "
        "rounds.",
        low=1,
    )
    config: TrainConfig = nested(TrainConfig, without=("seed",))


@dataclass(frozen=True)
class DetectorTable:
    """[detector]: the detector that is built."""

    classifier: Literal["trained", "before"] = setting(
        "trained", "Which classifier: the trained one, or the original one (before)."
    )
    config: DetectorConfig = nested(DetectorConfig)


@dataclass(frozen=True)
class EvaluateTable:
    """[evaluate]: what the report measures beside the detector's score."""

    config: EvaluateConfig = nested(EvaluateConfig, without=("scores", "detector_file", "detector"))


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What a job file holds."""

    version: int = setting(
        JOB_VERSION,
        "Version of the job file's format; a file without it is read as version 1.",
        default_text="`1`",
    )
    out: str = setting("job", "Folder of everything that is made, beside the job file.")
    seed: int = setting(0, "Seed of generation and training.", low=0)
    title: str | None = setting(None, "Title of the report.")
    summary: str | None = setting(None, "First paragraph of the report.")
    data: DataTable = setting(help="")
    models: ModelSpec = setting(help="")
    generate: GenerateTable = setting(GenerateTable(), "")
    train: TrainTable = setting(TrainTable(), "")
    detector: DetectorTable = setting(DetectorTable(), "")
    evaluate: EvaluateTable = setting(EvaluateTable(), "")
    test_sets: Mapping[str, str | Path] = setting(
        {}, "Real OOD images that only the evaluation sees: name = path."
    )

    def __post_init__(self) -> None:
        out = Path(self.out)
        if (
            not self.out
            or "\0" in self.out
            or out.is_absolute()
            or ".." in out.parts
            or out == Path()
        ):
            raise GoodRtError(f"out is {self.out!r}, but must be a folder beside the job file")
        if "none" in self.train.kinds:
            raise GoodRtError("train.kinds names 'none', but unguided images are not OOD")
        for kind in self.train.kinds:
            if kind not in self.generate.kinds:
                raise GoodRtError(f"train.kinds names {kind!r}, which generate.kinds does not make")
        if self.detector.classifier == "trained" and not self.train.kinds:
            raise GoodRtError(
                'detector.classifier is "trained", but train.kinds is empty; make it "before"'
            )
        if self.train.rounds > 1 and not self.train.kinds:
            raise GoodRtError(
                f"train.rounds is {self.train.rounds}, but train.kinds is empty, so that there is "
                "nothing to generate again; name kinds, or make it 1"
            )


@dataclass(frozen=True)
class Job:
    """A job file's settings with its paths resolved; ``folder`` replaces ``out`` of the file."""

    path: Path
    config: JobConfig
    folder: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job of a TOML file.

        Raises:
            GoodRtError: names the line of what is wrong, and the nearest known key.
        """
        return cls(path, read_toml(path, JobConfig, migrate_job, OLD_KEYS))

    @property
    def out(self) -> Path:
        return self.path.parent / self.config.out if self.folder is None else self.folder

    @property
    def images(self) -> Path:
        return self._resolved(self.config.data.images, assets.DATA)

    @property
    def models(self) -> ModelSpec:
        spec = self.config.models
        light = spec.gradient_decoder
        return replace(
            spec,
            classifier=self._resolved(spec.classifier, assets.CLASSIFIER),
            diffusion=self._resolved(spec.diffusion, assets.MODEL),
            gradient_decoder=None
            if light is None
            else self._resolved(light, assets.GRADIENT_DECODER),
        )

    @property
    def test_sets(self) -> dict[str, Path]:
        return {name: self._resolved(value) for name, value in self.config.test_sets.items()}

    @contextmanager
    def named(self, key: str) -> Iterator[None]:
        """Has an error within the block say which key of the file it is about."""
        try:
            yield
        except GoodRtError as error:
            raise GoodRtError(f"{error} ({key} in {self.path})") from None

    def check_paths(self) -> None:
        """Looks for models and images, without loading anything.

        Raises:
            GoodRtError: a path does not exist; it names the key.
        """
        self.models.check_paths(lambda name: self.named(f"models.{name}"))
        with self.named("data.images"):
            recorded = recorded_splits(self.images)
            open_source(self.images if recorded is None else recorded.source)
        for name, path in self.test_sets.items():
            with self.named(f"test_sets.{name}"):
                open_source(path)

    def generation(self, kind: GuidanceKind, count: int) -> GenerationConfig:
        """The configuration of one generated set; criteria of acceptance are for guided ones."""
        config = replace(self.config.generate.config, kind=kind, count=count, seed=self.config.seed)
        if kind == "none":
            config = replace(config, accept=AcceptConfig())
        return config if config.batch == "auto" else replace(config, batch=min(config.batch, count))

    @property
    def training(self) -> TrainConfig:
        return replace(self.config.train.config, seed=self.config.seed)

    @property
    def sets(self) -> dict[str, GenerationConfig]:
        """Every generated set of the first round, by its folder's name."""
        kinds, unguided = self.config.generate.sets, self.config.train.kinds
        sets: dict[str, GenerationConfig] = {
            kind: self.generation(kind, count)
            for kind, count in kinds.items()
            if kind != "none" or unguided
        }
        if not self.config.test_sets:
            kind = self.config.generate.guided[-1]
            test = self.generation(kind, max(kinds[kind] // TEST_SHARE, 5))
            sets["test"] = replace(test, seed=test.seed + 1)
        return sets

    def round_sets(self, number: int) -> dict[str, GenerationConfig]:
        """Every generated set of a round, by its folder's name: after the first round those of
        train.kinds, from other seeds.

        Args:
            number: The round, from 1.
        """
        if number == 1:
            return self.sets
        seed = self.config.seed + (number - 1) * ROUND_SEEDS
        return {kind: replace(self.sets[kind], seed=seed) for kind in self.config.train.kinds}

    def round_folder(self, number: int) -> Path:
        """Where a round keeps its generated sets and its trained classifier: the first one in the
        job's folder, each later one in a folder of its own there.

        Args:
            number: The round, from 1.
        """
        return self.out if number == 1 else self.out / f"round-{number}"

    def _resolved(self, value: str | Path, demo: Path | None = None) -> Path:
        """A path of the file, paths in a spec among them (timm:FOLDER, …@WEIGHTS); other parts of a
        spec stay as they are."""
        if str(value) == DEMO and demo is not None and not (self.path.parent / value).exists():
            return demo
        inside = self.path.parent / user_path(value)
        if inside.exists() or not split_kind(str(value))[0]:
            return inside

        def existing(part: Path) -> Path | None:
            path = self.path.parent / user_path(part)
            return path if path.exists() else None

        return resolved_spec(str(value), existing)


OLD_KEYS = {
    ("test_sets",): ("ood",),
    ("train", "kinds"): ("train", "ood"),
    ("generate", "counts"): ("train", "unguided"),
    ("generate", "mu_schedule"): ("generate", "schedule"),
    ("generate", "rho_schedule"): ("generate", "schedule"),
}
"""Keys of version 1 by those of version 2, to say where a mistake stands in an older file."""
NEW_KEYS = (
    *((key,) for key in ("title", "summary", "test_sets", "evaluate")),
    *(("train", key) for key in ("kinds", "rounds")),
    *(("generate", key) for key in ("counts", "mu_schedule", "rho_schedule", "temperature")),
    ("detector", "temperature"),
)
"""Keys that version 1 did not have: a file with one of them is not of version 1."""


def migrate_job(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a job file as this version reads them.

    A file without ``version`` is of version 1 (before 0.2.0), whose gradients were PyTorch's unless
    it says otherwise. Up to version 2 (0.2.0), sampling started from noise.

    Raises:
        GoodRtError: the file is of a newer version.
    """
    version = values.get("version", 1)
    if type(version) is not int or version < 1:
        raise GoodRtError(f"version is {version!r}, but must be a whole number of at least 1")
    if version > JOB_VERSION:
        raise newer_version("the job file", f"job version {version}", JOB_VERSION)
    if version == JOB_VERSION:
        return dict(values)
    tables = {key: dict(part) if isinstance(part, dict) else part for key, part in values.items()}
    generate = tables.setdefault("generate", {})
    if isinstance(generate, dict):
        generate.setdefault("start", "noise")
    if version == 1:
        _migrate_first(tables)
    return {**tables, "version": JOB_VERSION}


def _migrate_first(tables: dict[str, Any]) -> None:
    """Renames version 1's keys in place."""
    for table, *keys in NEW_KEYS:
        part = tables.get(table)
        if part is not None and (not keys or (isinstance(part, dict) and keys[0] in part)):
            raise GoodRtError(
                f"{'.'.join((table, *keys))} is a key of version {JOB_VERSION}, and the file is "
                f"read as version 1; add `version = {JOB_VERSION}` as its first line"
            )
    generate, train = tables["generate"], tables.get("train", {})
    if "ood" in tables:
        tables["test_sets"] = tables.pop("ood")
    if isinstance(train, dict):
        if "ood" in train:
            train["kinds"] = train.pop("ood")
        unguided = train.pop("unguided", 0)
        if type(unguided) is not int or unguided < 0:
            raise GoodRtError(
                f"train.unguided is {unguided!r}, but must be a whole number of at least 0"
            )
        if unguided and isinstance(generate, dict):
            generate["counts"] = {"none": unguided}
    if isinstance(generate, dict):
        if "schedule" in generate:
            generate["mu_schedule"] = generate["rho_schedule"] = generate.pop("schedule")
        generate.setdefault("gradients", "torch")
