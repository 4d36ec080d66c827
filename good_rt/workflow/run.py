"""A job file from end to end: split, export, generate, train, build, evaluate; what is done already
is skipped.

Every step has a key, a hash of its settings and of the fingerprints of what it reads; state.json
keeps it. A killed run goes on: generated images batch by batch, the training from its last
checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from good_rt.classifier import Classifier, load_classifier, saved_spec
from good_rt.cli.options import NO_BARS, Bars
from good_rt.config.job import ONNX, Job
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData
from good_rt.data.image_files import SET_MANIFEST
from good_rt.data.sources.open import open_source
from good_rt.data.splits import FILE, Splits
from good_rt.detector.module import DetectorConfig, DetectorModule
from good_rt.diffusion import DiffusionModel, load_diffusion
from good_rt.environment import CPU
from good_rt.errors import GoodRtError
from good_rt.evaluation.results import Evaluation
from good_rt.export.manifest import exporter_hash
from good_rt.files import read_json, remove_leftovers, sole_user
from good_rt.method.conformal import check_alpha
from good_rt.method.guidance import GuidanceConfig
from good_rt.method.training import TrainConfig, TrainingImages, check_trainable, has_bfloat16
from good_rt.workflow.generation import GenerationJob, Generator, set_settings
from good_rt.workflow.pipeline import check_models
from good_rt.workflow.state import JobState, key_of
from good_rt.workflow.steps import (
    Page,
    Sets,
    check_runtime,
    describe_generation,
    load_test_sets,
    open_generator,
    open_training,
    run_build,
    run_evaluate,
    run_export,
    run_job,
    run_split,
    run_train,
)

MODELS = {
    "before": "the classifier as it came",
    "control": "fine-tuned for as many steps without generated images",
    "trained": "fine-tuned with generated images",
}
TEST_SHARE = 5
"""Where there are no OOD test sets, one is generated of this part of the images of a kind, from
other seeds."""


@dataclass(frozen=True)
class StepDone:
    """One step of a run: whether it had been done before, and the seconds it took."""

    name: str
    skipped: bool
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """What a job made."""

    detector: Path
    report: Path
    evaluation: Evaluation
    skipped_images: tuple[str, ...]
    steps: tuple[StepDone, ...]


def run_job_file(path: Path, bars: Bars = NO_BARS, device: torch.device = CPU) -> RunResult:
    """Does what a job file says, and what is not yet done of it. Raises GoodRtError that says what
    does not fit, before anything long begins."""
    job = Job.read(path)
    run = _Run(job, bars, device)
    run.check()
    with sole_user(job.out):
        return run.all()


@dataclass
class _Run:
    """One run of a job; each step is a method."""

    job: Job
    bars: Bars
    device: torch.device = CPU
    steps: list[StepDone] = field(default_factory=list)
    built: dict[str, DetectorModule] = field(default_factory=dict)
    """The detector that this run has built, by its classifier: the evaluation need not build it
    again."""

    def __post_init__(self) -> None:
        self.out, self.config = self.job.out, self.job.config
        self.state = JobState(self.out)
        self.splits_path = self.out / FILE

    def check(self) -> None:
        """Reads and compares what the job names, before anything is written."""
        generate = self.config.generate
        if generate.runtime is not None and not all(map(self._is_whole, self.sets)):
            with self._named("generate.engine"):
                check_runtime(generate.runtime, self.device)
        with self._named("models.diffusion"):
            model = self.model
        with self._named("models.classifier"):
            check_models(model, self.classifier)
        if self.config.train.ood or self.config.train.control:
            try:
                check_trainable(self.classifier)
            except GoodRtError as error:
                raise GoodRtError(
                    f"{error}; or set train.ood = [], train.control = false and "
                    'detector.classifier = "before" in '
                    f"{self.job.path}"
                ) from None
        with self._named("data.images"):
            IdData(self.job.images).labels(self.classifier.config.classes)
        for name, ood in self.job.ood.items():
            with self._named(f"ood.{name}"):
                open_source(ood)

    @contextmanager
    def _named(self, key: str) -> Iterator[None]:
        """Has an error say which key of the job file it comes of."""
        try:
            yield
        except GoodRtError as error:
            raise GoodRtError(f"{error} ({key} in {self.job.path})") from None

    def all(self) -> RunResult:
        remove_leftovers(self.out)
        self._split()
        self._check_sizes()
        self._check_sets()
        self._export()
        made = {name: self._generate(name) for name in self.sets}
        self.__dict__.pop("_generator", None)  # its models and engines make room for the training
        classifiers = self._train(made)
        guided: dict[str, Path] = {kind: made[kind] for kind in self.config.generate.kinds}
        detector = self._build(classifiers[self.config.detector.classifier], guided)
        evaluation = self._evaluate(classifiers, guided, detector, made.get("test"))
        return RunResult(
            detector, self.out / "report.html", evaluation, self.splits.skipped, tuple(self.steps)
        )

    def _step(
        self,
        name: str,
        key: str,
        files: Sequence[Path],
        work: Callable[[], object],
        stale: Sequence[Path] = (),
    ) -> None:
        """Does one step unless it is done; ``stale`` is taken away first when it was begun with
        other inputs."""
        if self.state.is_done(name, key):
            self.steps.append(StepDone(name, True, 0.0))
            return
        began = time.perf_counter()
        if self.state.begin(name, key):
            for path in stale:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        work()
        self.state.finish(name, key, files)
        self.steps.append(StepDone(name, False, time.perf_counter() - began))

    @cached_property
    def classifier(self) -> Classifier:
        return load_classifier(self.job.classifier).fitted(lambda: self.model.image_shape)

    @cached_property
    def model(self) -> DiffusionModel:
        return load_diffusion(self.job.diffusion, **self.variant)

    @property
    def variant(self) -> dict[str, Any]:
        """What the job has of the diffusion model other than its folder has."""
        return {
            "gradient_decoder": self.job.gradient_decoder,
            "image_size": self.config.models.image_size,
        }

    @cached_property
    def splits(self) -> Splits:
        return IdData(self.splits_path).splits

    @property
    def models_key(self) -> tuple[str, str]:
        return self.model.fingerprint, self.classifier.fingerprint

    def _split(self) -> None:
        source = IdData(self.job.images).source
        key = key_of(str(source.path.resolve()), source.listing, asdict(self.config.data.split))
        self._step(
            "split",
            key,
            [self.splits_path],
            lambda: run_split(self.job.images, self.splits_path, self.config.data.split, self.bars),
        )

    def _check_sizes(self) -> None:
        """Whether there are images enough for what is asked, before hours go into it."""
        data, config = IdData(self.splits_path), self.config
        calibration = len(data.rows("held_out")) // 2
        try:
            check_alpha(config.detector.alpha, calibration)
        except GoodRtError as error:
            raise GoodRtError(
                f"{self.job.images}: {error} (half of the held-out part); add images, or raise "
                "data.held_out or "
                f"detector.alpha in {self.job.path}"
            ) from None
        data.rows("test")
        bank = min(len(data.rows("train")), config.detector.bank_size)
        for name, k in (("generate.k", config.generate.k), ("detector.k", config.detector.k)):
            if k > bank:
                raise GoodRtError(
                    f"{name} is {k}, but the feature bank has {bank} images; lower it in "
                    f"{self.job.path}"
                )

    def _export(self) -> None:
        generate = self.config.generate
        if generate.engine == "torch":
            return
        gradients = generate.gradients == "engine"
        bank = (self.splits.fingerprint, generate.k) if gradients else None
        key = key_of(self.models_key, gradients, bank, exporter_hash())
        folder = self.out / "engines"
        self._step(
            "export",
            key,
            [folder / "manifest.json"],
            lambda: run_export(
                self.job.diffusion,
                self.job.classifier,
                self.splits_path,
                folder,
                self.bars,
                gradients=gradients,
                k=generate.k,
                **self.variant,
            ),
        )

    def generation(self, kind: Any, count: int | None = None) -> GenerationJob:
        """The generation of one kind of guidance, as the job file has it; ``count`` images where
        that is another."""
        g = self.config.generate
        count = g.count if count is None else count
        guidance = GuidanceConfig(
            rho=g.rho,
            mu=g.mu,
            sigma=g.sigma,
            rho_schedule=g.schedule,
            mu_schedule=g.schedule,
            n_recur=g.n_recur,
            n_iter=g.n_iter,
            n_mc=g.n_mc,
            step=g.step,
            clip=g.clip,
            span=g.span,
            every=g.every,
            band=g.band,
        )
        return GenerationJob(
            count,
            kind,
            guidance,
            g.strengths,
            k=g.k,
            eta=g.eta,
            seed=self.config.seed,
            batch=min(g.batch, count),
        )

    @cached_property
    def _generator(self) -> Generator:
        g = self.config.generate
        generator, _ = open_generator(
            self.job.diffusion,
            self.job.classifier,
            self.splits_path,
            max(self.sets.values(), key=lambda job: job.batch),  # plans are built for its batches
            engines=None if g.engine == "torch" else self.out / "engines",
            gradients=g.gradients == "engine",
            steps=g.steps,
            cfg_scale=g.cfg,
            cfg_sigma_max=g.cfg_sigma_max,
            bars=self.bars,
            prompts=g.prompts,
            device=self.device,
            runtime=g.runtime or ONNX,
            **self.variant,
        )
        return generator

    @cached_property
    def describe(self) -> dict[str, Any]:
        """What job.json says of a set's models and data."""
        g = self.config.generate
        found = describe_generation(
            self.model,
            self.classifier,
            runtime=g.runtime,
            gradients=g.gradients == "engine",
            steps=g.steps,
            cfg_scale=g.cfg,
            cfg_sigma_max=g.cfg_sigma_max,
            prompts=g.prompts,
            device=self.device,
        )
        return {**found, "data": self.splits.fingerprint}

    @cached_property
    def sets(self) -> dict[str, GenerationJob]:
        """Every set that is generated, by its folder's name."""
        config = self.config
        found: dict[str, GenerationJob] = {
            kind: self.generation(kind) for kind in config.generate.kinds
        }
        if config.train.ood and config.train.unguided:
            found["none"] = self.generation("none", config.train.unguided)
        if not self.job.ood:
            job = self.generation(
                config.generate.kinds[-1], max(config.generate.count // TEST_SHARE, 5)
            )
            found["test"] = replace(job, seed=job.seed + 1)
        return found

    def _set_folder(self, name: str) -> Path:
        return self.out / "generated" / name

    def _settings(self, name: str) -> dict[str, Any]:
        """What job.json says of a set; one that is whole is taken whatever device it was made
        on."""
        settings = set_settings(self.sets[name], self.config.generate.twins, self.describe)
        if self._is_whole(name):
            made = read_json(self._set_folder(name) / "job.json")
            settings = {key: value for key, value in settings.items() if key != "device"}
            settings |= {key: value for key, value in made.items() if key == "device"}
        return settings

    def _is_whole(self, name: str) -> bool:
        """Whether all images of a set are there, of whatever settings."""
        folder = self._set_folder(name)
        return (folder / "job.json").exists() and len(GeneratedSet(folder).rows()) >= self.sets[
            name
        ].count

    def _set_key(self, name: str) -> str:
        return key_of(self._settings(name), self.sets[name].count)

    def _check_sets(self) -> None:
        """Whether images of other settings are in the way, of any set: they cost hours, so they are
        not taken away."""
        changed: dict[str, list[str]] = {}
        for name in self.sets:
            found = GeneratedSet(self._set_folder(name)).differences(self._settings(name))
            if found:
                changed[name] = found
        if changed:
            folders = " and ".join(str(self._set_folder(name)) for name in changed)
            names = ", ".join(sorted({setting for found in changed.values() for setting in found}))
            holds, those = (
                ("holds", "that folder") if len(changed) == 1 else ("hold", "those folders")
            )
            raise GoodRtError(
                f"{folders} {holds} images of another job (different: {names}); delete {those} to "
                "make them anew, or "
                f"set another `out` in {self.job.path}"
            )

    def _generate(self, name: str) -> Path:
        folder = self._set_folder(name)

        def work() -> None:
            run_job(
                self._generator,
                self.describe,
                self.sets[name],
                folder,
                self.bars,
                twins=self.config.generate.twins,
            )

        self._step(f"generate {name}", self._set_key(name), [folder / SET_MANIFEST], work)
        return folder

    def _train(self, made: Mapping[str, Path]) -> dict[str, Path]:
        """The folders of all classifiers that are compared: before, control, trained."""
        t = self.config.train
        config = TrainConfig(
            steps=t.steps,
            id_batch=t.id_batch,
            ood_batch=t.ood_batch,
            lr=t.lr,
            weight=t.weight,
            decoded_share=t.decoded_share,
            interpolation=t.interpolation,
            max_accuracy_drop=t.max_drop,
            bfloat16=has_bfloat16(self.device),
            seed=self.config.seed,
        )
        found = {"before": self.job.classifier}
        runs: dict[str, list[Path]] = {"control": []} if t.control else {}
        if t.ood:
            runs["trained"] = [made[kind] for kind in t.ood]
        models = self.job.classifier, self.job.diffusion, self.splits_path
        size = self.config.models.image_size
        samples = [made["none"]] if "none" in made else []

        @cache
        def data() -> TrainingImages:
            """Both trainings' images, of which each takes its own: decoding is long where images
            are large."""
            ood = runs.get("trained", [])
            return open_training(
                *models, ood, self.bars, samples, image_size=size, device=self.device
            )

        for name, ood in runs.items():
            folder = self.out / name
            unguided = samples if ood else []  # the control is without any generated images
            sets = [_manifest(path) for path in (*ood, *unguided)]
            key = key_of(
                asdict(config) | {"bfloat16": None}, sets, self.models_key, self.splits.fingerprint
            )

            def work(
                ood: list[Path] = ood, unguided: list[Path] = unguided, folder: Path = folder
            ) -> None:
                run_train(
                    *models, ood, folder, config, self.bars, unguided, size, self.device,
                    data=data() if ood else data().control,
                )  # fmt: skip

            weights = folder / "classifier" / "model.safetensors"
            self._step(
                f"train {name}", key, [weights, folder / "training.json"], work, stale=[folder]
            )
            found[name] = saved_spec(self.classifier, folder / "classifier")
        return found

    @property
    def detector_config(self) -> DetectorConfig:
        return DetectorConfig(k=self.config.detector.k, alpha=self.config.detector.alpha)

    def _build(self, classifier: Path, generated: Mapping[str, Path]) -> Path:
        out = self.out / "detector.onnx"
        sets = list(generated.values())
        key = key_of(
            asdict(self.config.detector),
            load_classifier(classifier).fingerprint,
            [_manifest(path) for path in sets],
            self.splits.fingerprint,
        )

        def work() -> None:
            name, bank_size = self.config.detector.classifier, self.config.detector.bank_size
            self.built[name], _ = run_build(
                classifier,
                self.splits_path,
                sets,
                out,
                self.detector_config,
                bank_size,
                self.device,
            )

        self._step("detector", key, [out], work)
        return out

    def _said(self) -> dict[str, str]:
        """The settings that the report names."""
        g, t = self.config.generate, self.config.train
        strengths = ", ".join(f"{factor:g}" for factor in g.strengths)
        return {
            "job": str(self.job.path),
            "seed": str(self.config.seed),
            "images": f"{self.job.images} ({self.splits.sizes})",
            "generated": f"{g.count} of each of {', '.join(g.kinds)}",
            "guidance": f"mu {g.mu:g}, rho {g.rho:g}, times {strengths}; {g.steps} steps, cfg "
            f"{g.cfg:g}",
            "training": f"{t.steps} steps with {', '.join(t.ood)}, {t.unguided} unguided as ID"
            if t.ood
            else "none",
        }

    def _evaluate(
        self,
        classifiers: Mapping[str, Path],
        generated: Mapping[str, Path],
        detector: Path,
        test: Path | None,
    ) -> Evaluation:
        """Measures on the job's OOD test sets; where it has none, on the generated images in
        ``test``."""
        ood = self.job.ood
        shape = self.classifier.config.channels, self.classifier.config.image_size
        key = key_of(
            asdict(self.config.detector),
            {name: load_classifier(folder).fingerprint for name, folder in classifiers.items()},
            {name: _manifest(path) for name, path in generated.items()},
            _manifest(test)
            if test
            else {name: (str(path), open_source(path).listing) for name, path in ood.items()},
            self.splits.fingerprint,
        )
        note = (
            ""
            if ood
            else (
                " The job names no OOD test sets: “generated” are guided images of other seeds "
                "than those trained with, "
                "so these figures say little of what the detector does with real OOD images; name "
                "some in [ood]."
            )
        )

        def work() -> None:
            sets: Sets = (
                {"generated": GeneratedSet(test).images()} if test else load_test_sets(ood, *shape)
            )
            page = Page(
                title=f"good-rt: {self.job.images.resolve().name}",
                summary=f"{Page.summary}{note}",
                models={name: MODELS[name] for name in classifiers},
                settings=self._said(),
                files={"detector": str(detector)},
            )
            run_evaluate(
                classifiers,
                self.splits_path,
                list(generated.values()),
                sets,
                self.detector_config,
                self.out,
                self.bars,
                page,
                self.config.detector.bank_size,
                self.config.detector.classifier,
                self.device,
                self.built,
            )

        files = [self.out / "evaluation.json", self.out / "report.html"]
        self._step("evaluate", key, files, work)
        return Evaluation.from_json(read_json(files[0]))


def _manifest(folder: Path) -> str:
    """What a generated set holds: its rows, and the settings that made it."""
    return key_of(
        read_json(folder / "job.json"), [asdict(row) for row in GeneratedSet(folder).rows()]
    )
