"""The rounds of a job: which sets each one generates, where, and what their job.json says.

The first round is guided by the original classifier, every later one by the classifier that the
round before has trained. `good_rt.workflow.run` runs them one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from good_rt.config.settings import GenerationConfig
from good_rt.data.generated_set import GeneratedSet
from good_rt.errors import GoodRtError
from good_rt.export.manifest import Manifest
from good_rt.models import Models
from good_rt.workflow.generate import wants_gradient_engines
from good_rt.workflow.generator import generation_record
from good_rt.workflow.job_file import Job


@dataclass(frozen=True)
class JobRound:
    """One round of a job: generated sets, and a classifier trained with those of all rounds so far.

    Network and decoder are the same in every round, so that all use the engines of the first one.
    The graph that also holds the classifier would have to be exported again for each round, which
    takes longer than it saves: PyTorch computes this part of the gradient, unless the job asks for
    gradients by engines.

    Attributes:
        job: The job.
        number: The round, from 1.
    """

    job: Job
    number: int

    @property
    def folder(self) -> Path:
        return self.job.round_folder(self.number)

    @cached_property
    def sets(self) -> Mapping[str, GenerationConfig]:
        """The configurations of the generated sets, by their folders' names."""
        return self.job.round_sets(self.number)

    @property
    def has_own_engines(self) -> bool:
        backend = self.job.config.generate.config.backend
        return self.number == 1 or backend.gradients == "engine"

    @property
    def engine_folder(self) -> Path:
        return (self.folder if self.has_own_engines else self.job.out) / "engines"

    def named(self, text: str) -> str:
        """A step or a generated set with its round, where that is not the first."""
        return text if self.number == 1 else f"{text}, round {self.number}"

    def set_folder(self, name: str) -> Path:
        """The folder of a generated set."""
        return self.folder / "generated" / name

    def is_complete(self, name: str) -> bool:
        """Whether all images of a set are there, of whatever settings."""
        generated = GeneratedSet(self.set_folder(name))
        return bool(generated.settings()) and len(generated.rows()) >= self.sets[name].count

    def gradients(self, device: torch.device) -> str:
        """What computes gradients: "engine", or "torch", also where an operation has no rule.

        Args:
            device: Where the models run.
        """
        backend = self.job.config.generate.config.backend
        if not self.has_own_engines or not wants_gradient_engines(backend, device):
            return "torch"
        if backend.gradients != "auto":
            return "engine"
        return "torch" if Manifest.read(self.engine_folder).no_gradient_rule else "engine"

    def record(self, name: str, models: Models, data: str) -> dict[str, Any]:
        """What job.json says of a set; a complete one is accepted from any device.

        Args:
            name: The set.
            models: Diffusion model and the classifier that guides.
            data: Fingerprint of the ID images.
        """
        config, written = self.sets[name], GeneratedSet(self.set_folder(name)).settings()
        is_complete = self.is_complete(name)
        is_auto = config.backend.gradients == "auto"
        device_keys = {"device", "gradients"} if is_auto else {"device"}
        is_recorded = is_complete and is_auto
        gradients = str(written.get("gradients")) if is_recorded else self.gradients(models.device)
        record = generation_record(models, config, gradients)
        record["data"] = data
        if self.number > 1:
            record["round"] = self.number
        if written and config.batch == "auto":
            record["batch"] = written.get("batch")
        if is_complete:
            record = {key: value for key, value in record.items() if key not in device_keys}
            record |= {key: value for key, value in written.items() if key in device_keys}
        return record

    def differences(self, models: Models, data: str, is_guide: bool) -> dict[Path, list[str]]:
        """The folders that hold images of other settings, and the names of these settings.

        Args:
            models: Diffusion model and a classifier.
            data: Fingerprint of the ID images.
            is_guide: Whether the classifier is the one that guides this round; before that is
                trained, a set may be of any.

        Raises:
            GoodRtError: a folder holds more images than the job asks for.
        """
        changed = {}
        for name, config in self.sets.items():
            generated = GeneratedSet(self.set_folder(name))
            differing = generated.differences(self.record(name, models, data))
            if not is_guide:
                differing = [setting for setting in differing if setting != "classifier"]
            if differing:
                changed[generated.folder] = differing
            images = len(generated.rows())
            if images > config.count:
                raise GoodRtError(
                    f"{generated.folder} holds {images} images, and the job asks for "
                    f"{config.count}; raise its count in {self.job.path}, or delete that folder"
                )
        return changed


def check_sets(rounds: Sequence[JobRound], guides: Mapping[int, Models], data: str) -> None:
    """Checks that no set holds images of other settings: they cost hours, so they are not removed.

    Args:
        rounds: The rounds whose sets are checked.
        guides: The models that guide, by round, as far as they are trained.
        data: Fingerprint of the ID images.

    Raises:
        GoodRtError: a set does; it names all of them, and the settings.
    """
    changed: dict[Path, list[str]] = {}
    for job_round in rounds:
        models = guides.get(job_round.number, guides[1])
        changed |= job_round.differences(models, data, job_round.number in guides)
    if not changed:
        return
    folders = " and ".join(map(str, changed))
    names = ", ".join(sorted({name for settings in changed.values() for name in settings}))
    single = len(changed) == 1
    raise GoodRtError(
        f"{folders} {'holds' if single else 'hold'} images of another job (different: {names}); "
        f"delete {'that folder' if single else 'those folders'} to generate them again, or set "
        f"another `out` in {rounds[0].job.path}"
    )
