"""The step `run_job`: a job file from end to end; what is done already is skipped.

Every step has a key, a hash of its settings and of the fingerprints of what it reads, which
state.json keeps. A killed run resumes: generated images batch by batch, the training from its last
checkpoint. Models are loaded once, and passed to every step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from good_rt.classifier import Classifier, load_classifier, saved_spec
from good_rt.config.settings import BackendConfig, ExportConfig, TrainConfig
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData, unlabelled
from good_rt.data.sources.open import open_source
from good_rt.data.splits import SPLITS_FILE
from good_rt.detector.module import DetectorModule
from good_rt.environment import CPU, use_device
from good_rt.errors import GoodRtError
from good_rt.evaluation.results import Evaluation
from good_rt.evaluation.training_gain import TrainingRoles
from good_rt.export.graphs import EXPORTER
from good_rt.export.manifest import MANIFEST, Manifest
from good_rt.files import read_json, remove_leftovers, sole_user
from good_rt.method.conformal import check_alpha
from good_rt.method.objective import regulariser_weight
from good_rt.method.training import check_trainable
from good_rt.method.training_data import TrainingImages
from good_rt.models import Models
from good_rt.progress import SILENT, Progress
from good_rt.workflow.detector import WITH_GENERATED, WITHOUT_TRAINING, build_detector, detector_for
from good_rt.workflow.evaluate import ReportPage, check_peers, evaluate
from good_rt.workflow.export import export
from good_rt.workflow.generate import (
    check_backend,
    fill,
    open_generator,
    wants_gradient_engines,
    with_batch,
)
from good_rt.workflow.generator import Generator, generation_record
from good_rt.workflow.job_file import Job
from good_rt.workflow.resume import JobState, key_of
from good_rt.workflow.split import split
from good_rt.workflow.train import (
    TRAINING_FILE,
    TRAINING_RECORD,
    FinishedTraining,
    train,
    training_images,
)

CLASSIFIERS = {
    "before": "the original classifier",
    "control": "fine-tuned for the same number of steps without generated images",
    "trained": "fine-tuned with generated images",
}
"""What the report says of each classifier."""
NO_TEST_SETS = (
    " The job names no OOD test sets: “generated” are guided images of other seeds than the "
    "training's, so these figures say little about real OOD images; name some in [test_sets]."
)
SET_MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class StepDone:
    """One step of a run.

    Attributes:
        name: The step's name.
        skipped: Whether an earlier run had done it.
        seconds: Time that it took.
    """

    name: str
    skipped: bool
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """The results of a job.

    Attributes:
        detector: The detector.onnx.
        report: The report.html.
        evaluation: The figures of the report.
        skipped_images: Images that were left out, and why.
        steps: Every step, done now or earlier.
    """

    detector: Path
    report: Path
    evaluation: Evaluation
    skipped_images: tuple[str, ...]
    steps: tuple[StepDone, ...]


def run_job(
    job: Job | Path | str, device: torch.device | str = CPU, progress: Progress = SILENT
) -> RunResult:
    """Runs what a job file says, and is not yet done.

    Args:
        job: The job, or the path of its file.
        device: Where models run: "cpu", "cuda" or "cuda:N".
        progress: Hears of every step.

    Returns:
        Paths of detector and report, the evaluation, and what was done.

    Raises:
        GoodRtError: something does not fit; said before anything long begins.
    """
    run = _Run(job if isinstance(job, Job) else Job.read(Path(job)), use_device(device), progress)
    run.check()
    with sole_user(run.out):
        return run.all()


@dataclass(frozen=True)
class TrainingFolders:
    """The generated sets of one training; without guided images it is the control."""

    generated: Sequence[Path] = ()
    unguided: Sequence[Path] = ()


@dataclass
class _Run:
    """One run of a job; each step is a method."""

    job: Job
    device: torch.device
    progress: Progress
    steps: list[StepDone] = field(default_factory=list)
    classifiers: dict[str, Classifier] = field(default_factory=dict)
    """Every classifier that is compared, by name."""
    detectors: dict[str, DetectorModule] = field(default_factory=dict)
    """Their detectors, as far as this run has built them."""

    def __post_init__(self) -> None:
        self.out, self.config = self.job.out, self.job.config
        self.state = JobState(self.out)
        self.splits_path = self.out / SPLITS_FILE

    def check(self) -> None:
        """Reads and compares what the job names, before anything is written."""
        self.job.check_paths()
        if not all(map(self._is_complete, self.job.sets)):
            with self.job.named("generate.engine"):
                check_backend(self.backend, self.device)
        _ = self.models
        if self.config.train.kinds or self.config.train.control:
            try:
                check_trainable(self.models.classifier)
            except GoodRtError as error:
                raise GoodRtError(
                    f"{error}; or set train.kinds = [], train.control = false and "
                    f'detector.classifier = "before" in {self.job.path}'
                ) from None
        if self.config.evaluate.config.peers:
            with self.job.named("evaluate.peers"):
                check_peers({})
        with self.job.named("data.images"):
            IdData(self.job.images).labels(self.models.classifier.config.classes)

    def all(self) -> RunResult:
        remove_leftovers(self.out)
        self._split()
        self._check_sizes()
        self._export()
        self._check_sets()
        folders = {name: self._generate(name) for name in self.job.sets}
        self._release_generator()
        self._train(folders)
        guided: dict[str, Path] = {kind: folders[kind] for kind in self.config.generate.guided}
        detector = self._build(guided)
        evaluation = self._evaluate(guided, detector, folders.get("test"))
        return RunResult(
            detector,
            self.out / "report.html",
            evaluation,
            self.id_data.splits.skipped,
            tuple(self.steps),
        )

    def _step(
        self,
        name: str,
        key: str,
        files: Sequence[Path],
        work: Callable[[], object],
        stale: Sequence[Path] = (),
    ) -> None:
        """Does one step unless it is done; ``stale`` is removed first when it was begun with other
        inputs."""
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
    def models(self) -> Models:
        return self.job.models.load(self.device, lambda name: self.job.named(f"models.{name}"))

    @cached_property
    def id_data(self) -> IdData:
        """The images in their recorded parts."""
        return IdData(self.splits_path)

    @property
    def backend(self) -> BackendConfig:
        return self.config.generate.config.backend

    def _split(self) -> None:
        config = self.config.data.split
        source = IdData(self.job.images).source
        key = key_of(str(source.path.resolve()), source.listing, asdict(config))
        self._step(
            "split",
            key,
            [self.splits_path],
            lambda: split(self.job.images, self.splits_path, config, self.progress),
        )

    def _check_sizes(self) -> None:
        """Checks that there are enough images for what is asked, before hours go into it."""
        config, generate = self.config.detector.config, self.config.generate.config
        calibration = len(self.id_data.rows("held_out")) // 2
        try:
            check_alpha(config.alpha, calibration)
        except GoodRtError as error:
            raise GoodRtError(
                f"{self.job.images}: {error} (half of the held-out part); add images, or raise "
                f"data.held_out or detector.alpha in {self.job.path}"
            ) from None
        self.id_data.rows("test")
        images = len(self.id_data.rows("train"))
        needed = [("generate.k", generate.bank.k, generate.bank.size)]
        if "knn_distance" in config.discrepancies:
            needed.append(("detector.k", config.k, config.bank_size))
        for name, k, size in needed:
            if k > min(images, size):
                raise GoodRtError(
                    f"{name} is {k}, but there are {min(images, size)} ID features; lower it "
                    f"in {self.job.path}"
                )

    @property
    def _wants_vjp(self) -> bool:
        return wants_gradient_engines(self.backend, self.device)

    @property
    def _engine_folder(self) -> Path:
        return self.out / "engines"

    def _export(self) -> None:
        if not self.backend.uses_engines:
            return
        if all(map(self._is_complete, self.job.sets)):  # engines only serve to generate
            self.steps.append(StepDone("export", True, 0.0))
            return
        bank = self.config.generate.config.bank
        inputs = (self.id_data.splits.fingerprint, asdict(bank)) if self._wants_vjp else None
        key = key_of(self.models.fingerprints, inputs, EXPORTER)
        config, folder = ExportConfig(vjp=self._wants_vjp), self._engine_folder
        self._step(
            "export",
            key,
            [folder / MANIFEST],
            lambda: export(self.models, self.id_data, folder, config, bank, self.progress),
        )

    @cached_property
    def gradients(self) -> str:
        """What computes gradients: "engine", or "torch", also where an operation has no rule."""
        if not self._wants_vjp or self.backend.gradients != "auto":
            return "engine" if self._wants_vjp else "torch"
        return "torch" if Manifest.read(self._engine_folder).no_gradient_rule else "engine"

    @cached_property
    def _generator(self) -> Generator:
        # TensorRT plans are built for the largest batch
        largest = max(
            self.job.sets.values(), key=lambda config: 0 if config.batch == "auto" else config.batch
        )
        return open_generator(
            self.models, self.id_data, largest, self._engine_folder, self.progress
        )

    def _release_generator(self) -> None:
        """Forgets models and engines of the generator, so that the training has their memory."""
        self.__dict__.pop("_generator", None)

    def _set_folder(self, name: str) -> Path:
        return self.out / "generated" / name

    def _record(self, name: str) -> dict[str, Any]:
        """What job.json says of a set; a complete one is accepted from any device."""
        config, written = self.job.sets[name], GeneratedSet(self._set_folder(name)).settings()
        is_complete = self._is_complete(name)
        device_keys = {"device", "gradients"} if self.backend.gradients == "auto" else {"device"}
        is_recorded = is_complete and "gradients" in device_keys
        gradients = str(written.get("gradients")) if is_recorded else self.gradients
        record = generation_record(self.models, config, gradients)
        record["data"] = self.id_data.splits.fingerprint
        if written and config.batch == "auto":
            record["batch"] = written.get("batch")
        if is_complete:
            record = {key: value for key, value in record.items() if key not in device_keys}
            record |= {key: value for key, value in written.items() if key in device_keys}
        return record

    def _is_complete(self, name: str) -> bool:
        """Whether all images of a set are there, of whatever settings."""
        generated = GeneratedSet(self._set_folder(name))
        return bool(generated.settings()) and len(generated.rows()) >= self.job.sets[name].count

    def _check_sets(self) -> None:
        """Looks for images of other settings in the way, of any set: they cost hours, so they are
        not removed."""
        differences = {
            name: GeneratedSet(self._set_folder(name)).differences(self._record(name))
            for name in self.job.sets
        }
        for name, config in self.job.sets.items():
            images = len(GeneratedSet(self._set_folder(name)).rows())
            if images > config.count:
                raise GoodRtError(
                    f"{self._set_folder(name)} holds {images} images, and the job asks for "
                    f"{config.count}; raise its count in {self.job.path}, or delete that folder"
                )
        changed = {name: settings for name, settings in differences.items() if settings}
        if not changed:
            return
        folders = " and ".join(str(self._set_folder(name)) for name in changed)
        names = ", ".join(sorted({name for settings in changed.values() for name in settings}))
        single = len(changed) == 1
        raise GoodRtError(
            f"{folders} {'holds' if single else 'hold'} images of another job (different: "
            f"{names}); "
            f"delete {'that folder' if single else 'those folders'} to generate them again, or set "
            f"another `out` in {self.job.path}"
        )

    def _generate(self, name: str) -> Path:
        folder, config, record = self._set_folder(name), self.job.sets[name], self._record(name)

        def work() -> None:
            fixed = with_batch(config, self._generator, folder)
            fill(self._generator, fixed, folder, record | {"batch": fixed.batch}, self.progress)

        # the job's batch: for "auto", the record of a set that is begun has its number
        key = key_of(record | {"batch": config.batch}, config.count)
        self._step(f"generate {name}", key, [folder / SET_MANIFEST], work)
        return folder

    def _training_runs(self, folders: Mapping[str, Path]) -> dict[str, TrainingFolders]:
        """The trainings of the job by the name of their classifier."""
        table = self.config.train
        runs = {"control": TrainingFolders()} if table.control else {}
        if table.kinds:
            runs["trained"] = TrainingFolders(
                [folders[kind] for kind in table.kinds],
                [folders["none"]] if "none" in folders else [],
            )
        return runs

    def _train(self, folders: Mapping[str, Path]) -> None:
        """Fine-tunes the classifiers that are compared: control and trained."""
        runs = self._training_runs(folders)
        trained = runs.get("trained", TrainingFolders())

        @cache
        def images() -> TrainingImages:
            """The images of both trainings, decoded once because that takes long."""
            return training_images(
                self.models, self.id_data, trained.generated, trained.unguided, self.progress
            )

        self.classifiers["before"] = self.models.classifier
        for name, run in runs.items():
            self._train_one(name, run, images)
            self.classifiers[name] = self._load_trained(name)

    def _train_one(
        self, name: str, run: TrainingFolders, images: Callable[[], TrainingImages]
    ) -> None:
        folder = self.out / name
        key = key_of(
            _training_key(self.job.training),
            [set_key(path) for path in (*run.generated, *run.unguided)],
            self.models.fingerprints,
            self.id_data.splits.fingerprint,
        )

        def work() -> None:
            train(
                self.models,
                self.id_data,
                folder,
                run.generated,
                run.unguided,
                self.job.training,
                images() if run.generated else images().control,
                self.progress,
            )

        weights = folder / "classifier" / "model.safetensors"
        self._step(f"train {name}", key, [weights, folder / TRAINING_FILE], work, [folder])

    def _load_trained(self, name: str) -> Classifier:
        """A classifier read from its folder, whose fingerprint the later steps record."""
        spec = saved_spec(self.models.classifier, self.out / name / "classifier")
        classifier = load_classifier(spec).fitted(lambda: self.models.diffusion.image_shape)
        return classifier.to(self.device)

    def _detector(self, name: str, generated: Mapping[str, Path]) -> DetectorModule:
        """The detector of a classifier, built once."""
        if name not in self.detectors:
            config = self.config.detector.config
            features = None
            if name == "before":
                features = self.models.id_features(self.id_data, config.bank_size)
            with self.progress.task(f"building the detector of {CLASSIFIERS[name]}"):
                self.detectors[name] = detector_for(
                    self.classifiers[name], self.id_data, list(generated.values()), config, features
                )
        return self.detectors[name]

    def _build(self, generated: Mapping[str, Path]) -> Path:
        out, table = self.out / "detector.onnx", self.config.detector
        sets, name = list(generated.values()), table.classifier
        key = key_of(
            asdict(table),
            self.classifiers[name].fingerprint,
            [set_key(path) for path in sets],
            self.id_data.splits.fingerprint,
        )

        def work() -> None:
            build_detector(
                self.classifiers[name],
                self.id_data,
                out,
                sets,
                table.config,
                module=self._detector(name, generated),
                training=WITH_GENERATED if name == "trained" else WITHOUT_TRAINING,
                progress=self.progress,
            )

        self._step("detector", key, [out], work)
        return out

    def _roles(self) -> TrainingRoles | None:
        """What the report compares; None where nothing was trained with generated images."""
        if "trained" not in self.classifiers:
            return None
        control = "control" if "control" in self.classifiers else None
        return TrainingRoles("before", "trained", control)

    def _settings_text(self) -> dict[str, str]:
        """The settings that the report names."""
        generate, train_table = self.config.generate, self.config.train
        config, sampler = generate.config, generate.config.sampler
        strengths = ", ".join(f"{factor:g}" for factor in config.strengths)
        counts = ", ".join(f"{count} {kind}" for kind, count in generate.sets.items())
        gradients = GeneratedSet(self._set_folder(generate.guided[0])).settings().get("gradients")
        training = "none"
        if train_table.kinds:
            t = train_table.config
            record = TRAINING_RECORD.read_as(FinishedTraining, self.out / "trained" / TRAINING_FILE)
            training = (
                f"{t.steps} steps with {', '.join(train_table.kinds)}, {t.id_batch} ID and "
                f"{t.ood_batch} OOD images each, learning rate {t.lr:g}, objective {t.objective} "
                f"of weight {regulariser_weight(t):g}, augmentation {record.augmentation}, "
                f"interpolation {t.interpolation:g}, accuracy drop at most "
                f"{t.max_accuracy_drop:g}"
            )
        return {
            "job": str(self.job.path),
            "seed": str(self.config.seed),
            "images": f"{self.job.images} ({self.id_data.splits.sizes})",
            "generated": counts,
            "guidance": f"mu {config.guidance.mu:g}, rho {config.guidance.rho:g}, times "
            f"{strengths}; gradients by {gradients}",
            "sampler": f"{sampler.steps} steps, eta {sampler.eta:g}, cfg {sampler.cfg:g}",
            "training": training,
        }

    def _evaluate(
        self, generated: Mapping[str, Path], detector: Path, test: Path | None
    ) -> Evaluation:
        """Measures on the job's OOD test sets; without any, on the generated images in ``test``."""
        test_sets, shipped = self.job.test_sets, self.config.detector.classifier
        peers = self.config.evaluate.config.peers
        config = self.models.classifier.config
        key = key_of(
            asdict(self.config.detector),
            {name: classifier.fingerprint for name, classifier in self.classifiers.items()},
            {name: set_key(path) for name, path in generated.items()},
            set_key(test)
            if test
            else {name: (str(path), open_source(path).listing) for name, path in test_sets.items()},
            self.id_data.splits.fingerprint,
            (self.config.title, self.config.summary),
            *(["peers"] if peers else []),  # keys of jobs without them stay those of 0.2.0
        )
        page = ReportPage(
            title=self.config.title or f"good-rt: {self.job.images.resolve().name}",
            summary=(self.config.summary or ReportPage.summary)
            + ("" if test_sets else NO_TEST_SETS),
            models={name: CLASSIFIERS[name] for name in self.classifiers},
            settings=self._settings_text(),
            files={"detector": str(detector)},
            shipped=shipped,
            training=saved_spec(self.models.classifier, self.out / "trained" / "classifier")
            if "trained" in self.classifiers
            else None,
            also=[self._set_folder("none") for name in self.job.sets if name == "none"],
            peers=peers,
            roles=self._roles(),
        )

        def work() -> None:
            shape = config.channels, config.image_size
            ood = (
                {"generated": GeneratedSet(test).images()}
                if test
                else {name: unlabelled(path, *shape) for name, path in test_sets.items()}
            )
            evaluate(
                {name: self._detector(name, generated) for name in self.classifiers},
                self.id_data,
                ood,
                self.out,
                list(generated.values()),
                self.config.detector.config,
                page,
                self.progress,
            )

        files = [self.out / "evaluation.json", self.out / "report.html"]
        self._step("evaluate", key, files, work)
        return Evaluation.from_json(read_json(files[0]), files[0])


def _training_key(config: TrainConfig) -> dict[str, Any]:
    """The settings of a training; defaults that 0.2.0 did not have are left out, so that its
    trainings are not repeated."""
    settings = {**asdict(config), "weight": regulariser_weight(config)}
    for name in ("objective", "balanced", "augmentation"):
        if settings[name] == getattr(TrainConfig, name):
            del settings[name]
    return settings


def set_key(folder: Path) -> str:
    """A hash of what a generated set holds: its rows, and the settings that made it."""
    generated = GeneratedSet(folder)
    rows = [asdict(row) for row in generated.rows()]
    for row in rows:
        if row["start_row"] is None:  # as rows of 0.2.0, so that their trainings are not repeated
            del row["start_row"]
    return key_of(generated.settings(), rows)
