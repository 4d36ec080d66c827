"""Fine-tuning the classifier with generated OOD images, so that it tells ID from OOD.

The loss is CE(ID) + w·R with the regulariser R of an objective (`good_rt.method.objective`). The
images and their batches are those of `good_rt.method.training_data`.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.classifier import Classifier
from good_rt.config.settings import TrainConfig
from good_rt.environment import CPU
from good_rt.errors import GoodRtError, NonFiniteError
from good_rt.files import atomic_path, different_names
from good_rt.method.augmentation import Augmentation, augment, chosen_augmentation
from good_rt.method.objective import OBJECTIVES, Objective, regulariser_weight
from good_rt.method.outputs import BatchOutputs, OriginalOutputs
from good_rt.method.training_data import TrainingImages, drawn_batch


@dataclass(frozen=True)
class TrainStep:
    """Losses of one step.

    Attributes:
        step: Number of the step, from 1.
        ce: Cross-entropy of the ID images.
        regulariser: R of the objective; None in the control.
        val_loss: Loss on the held-out images, at the steps that evaluate them.
        val_accuracy: ID accuracy on the held-out images, at the same steps.
    """

    step: int
    ce: float
    regulariser: float | None
    val_loss: float | None = None
    val_accuracy: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """The result of a fine-tuning.

    Attributes:
        classifier: The state that was kept.
        accuracy: Its held-out ID accuracy, in [0, 1].
        accuracy_before: That of the original classifier.
        kept_step: The step of the state.
        augmentation: How the images varied.
        history: Every step.
    """

    classifier: Classifier
    accuracy: float
    accuracy_before: float
    kept_step: int
    augmentation: Augmentation
    history: tuple[TrainStep, ...]


RETREATS = (1.0, 0.75, 0.5, 0.25)
"""Factors of ``interpolation`` that are tried in turn until the accuracy holds."""


def has_bfloat16(device: torch.device = CPU) -> bool:
    """Whether this CPU, or this GPU, multiplies in bfloat16; where it does not, bfloat16 is slower
    than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    )


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of (N, K) logits whose largest is at the (N,) label."""
    return float((logits.argmax(dim=1) == labels).float().mean())


def check_trainable(classifier: Classifier) -> None:
    """Checks that the classifier has weights to train.

    Raises:
        GoodRtError: its weights are frozen.
    """
    if not classifier.trainable:
        raise GoodRtError(
            f"the classifier ({classifier.config.architecture}) cannot be trained: its weights are "
            "frozen in a file that is made for running; train it from its library's own weights, "
            "such as timm:NAME@weights.safetensors"
        )


def finetune(
    classifier: Classifier,
    data: TrainingImages,
    config: TrainConfig = TrainConfig(),
    checkpoint: Path | None = None,
    on_step: Callable[[TrainStep], None] = lambda step: None,
) -> TrainResult:
    """Fine-tunes a copy of the classifier and returns the last state that kept the held-out
    accuracy.

    A state keeps it when it lost at most ``max_accuracy_drop``; the held-out loss says less, since
    it no longer falls while detection still improves. The weights of a state are interpolated
    between the original classifier and the trained one (WiSE-FT) with weight ``interpolation``, or
    less where the accuracy lost more.

    Args:
        classifier: The original classifier; the training runs on its device.
        data: Images and labels, on any device.
        config: Settings of the training.
        checkpoint: Folder of the checkpoint, from which an interrupted training resumes; None keeps
            no checkpoint.
        on_step: Called after every step.

    Raises:
        GoodRtError: no state kept the accuracy, the objective cannot be used with these images, or
            the checkpoint is damaged or of another training.
        NonFiniteError: the loss is not finite; it names the step.
    """
    check_trainable(classifier)
    torch.manual_seed(config.seed)
    original = OriginalOutputs(classifier, data)
    known = original.held_out
    before = accuracy(known.logits[: known.id_count], known.labels)
    state, job = _started(original, config), {}
    if checkpoint is not None:
        parts = {"classifier": classifier.state_dict(), "images": vars(data)}
        job = asdict(config) | {name: _fingerprint(tensors) for name, tensors in parts.items()}
        state.load(checkpoint, job)
    while state.step < config.steps:
        ce, regulariser = _train_step(state, data, config)
        done = TrainStep(state.step, ce, regulariser)
        if state.step % config.evaluate_every == 0 or state.step == config.steps:
            for retreat in RETREATS:
                candidate = _interpolated(classifier, state.average, retreat * config.interpolation)
                val_loss, val_accuracy = _validate(candidate, state.objective, data, config)
                if retreat == RETREATS[0]:
                    done = TrainStep(state.step, ce, regulariser, val_loss, val_accuracy)
                if before - val_accuracy <= config.max_accuracy_drop:
                    state.kept_step, state.kept_accuracy = state.step, val_accuracy
                    state.kept.load_state_dict(candidate.state_dict())
                    break
            state.history.append(done)
            if checkpoint is not None:
                state.save(checkpoint, job)
        else:
            state.history.append(done)
        on_step(done)
    if state.kept_step == 0:
        raise GoodRtError(
            f"training failed: held-out ID accuracy fell from {before:.4f} by more than "
            f"{config.max_accuracy_drop} in "
            "every state looked at; lower --lr or the regulariser's --weight"
        )
    return TrainResult(
        classifier=state.kept.eval().requires_grad_(False),
        accuracy=state.kept_accuracy,
        accuracy_before=before,
        kept_step=state.kept_step,
        augmentation=state.augmentation,
        history=tuple(state.history),
    )


def _started(original: OriginalOutputs, config: TrainConfig) -> _Progress:
    """The state before the first step; the control has no objective."""
    classifier = original.classifier
    model = copy.deepcopy(classifier).requires_grad_(True)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = [{"params": list(model.parameters()), "peak": config.lr}]
    objective = None
    if original.data.ood is not None:
        objective = OBJECTIVES[config.objective].start(original).to(classifier.device)
        if learned := list(objective.parameters()):
            groups.append({"params": learned, "peak": config.head_lr})
    optimiser = torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)
    augmentation = chosen_augmentation(config.augmentation, original)
    average, kept = copy.deepcopy(model), copy.deepcopy(model)
    return _Progress(model, objective, optimiser, average, kept, augmentation)


def _interpolated(start: Classifier, end: Classifier, weight: float) -> Classifier:
    """The classifier whose weights are interpolated between ``start`` (0) and ``end`` (1)."""
    interpolated = copy.deepcopy(end)
    for target, origin in zip(
        interpolated.state_dict().values(), start.state_dict().values(), strict=True
    ):
        if target.is_floating_point():
            target.lerp_(origin, 1 - weight)
    return interpolated


@dataclass
class _Progress:
    """Everything a resumed run needs; the only mutable thing here."""

    model: Classifier
    objective: Objective | None
    optimiser: torch.optim.AdamW
    average: Classifier
    kept: Classifier
    augmentation: Augmentation
    step: int = 0
    kept_step: int = 0
    kept_accuracy: float = 0.0

    def __post_init__(self) -> None:
        self.history: list[TrainStep] = []

    def save(self, folder: Path, job: Mapping[str, Any]) -> None:
        """Tensors as safetensors, the rest as JSON in their metadata; one rename makes the
        checkpoint whole."""
        import json

        from safetensors.torch import save_file

        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"kept.{k}": v for k, v in self.kept.state_dict().items()}
        if self.objective is not None:
            tensors |= {f"objective.{k}": v for k, v in self.objective.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in moments.items()}
        scalars = {name: getattr(self, name) for name in ("step", "kept_step", "kept_accuracy")}
        meta = {
            "job": job,
            "scalars": scalars,
            "augmentation": asdict(self.augmentation),
            "history": [asdict(step) for step in self.history],
        }
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "checkpoint.safetensors") as temporary:
            save_file(
                {k: v.contiguous().clone() for k, v in tensors.items()},
                temporary,
                {"good_rt": json.dumps(meta)},
            )

    def load(self, folder: Path, job: Mapping[str, Any]) -> None:
        """Resumes from a checkpoint of the same settings, classifier and images, if there is
        one.
        """
        import json

        from safetensors import SafetensorError, safe_open

        path = folder / "checkpoint.safetensors"
        if not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads(file.metadata()["good_rt"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise GoodRtError(f"{path} is damaged ({error}); delete it to start again") from None
        if different := different_names(meta.get("job", {}), job):
            raise GoodRtError(
                f"{path} is of another training (different: {', '.join(different)}); choose "
                "another folder, or delete it to start again"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        self.kept.load_state_dict(part("kept."))
        if self.objective is not None:
            self.objective.restore(part("objective."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimiser.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        for name, value in meta["scalars"].items():
            setattr(self, name, value)
        self.augmentation = Augmentation(**meta["augmentation"])
        self.history = [TrainStep(**step) for step in meta["history"]]


def _fingerprint(tensors: Mapping[str, Any]) -> str:
    """One hash of tensors, or None, and of their names."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {None if tensor is None else tuple(tensor.shape)}\n".encode())
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _train_step(
    state: _Progress, data: TrainingImages, config: TrainConfig
) -> tuple[float, float | None]:
    """One optimiser step on a batch that depends only on seed and step; returns CE and R."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
    cosine = 0.5 * (1 + math.cos(math.pi * state.step / config.steps))
    for group in state.optimiser.param_groups:
        group["lr"] = group["peak"] * min(1.0, (state.step + 1) / 30) * cosine

    images, labels = drawn_batch(data, config, generator)
    state.model.train()
    device = state.model.device
    images = augment(images, state.augmentation, generator)
    images = images.to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16) if config.bfloat16 else nullcontext():
        logits, features = state.model(images)
    outputs = BatchOutputs(logits.float(), features.float(), labels.to(device))
    ce = F.cross_entropy(outputs.logits[: outputs.id_count], outputs.labels)
    regulariser = None if state.objective is None else state.objective(outputs)
    loss = ce if regulariser is None else ce + regulariser_weight(config) * regulariser
    if not torch.isfinite(loss):
        raise NonFiniteError(state.step, [])
    state.optimiser.zero_grad()
    loss.backward()
    state.optimiser.step()
    state.step += 1
    if state.objective is not None:
        state.objective.update(outputs.detach(), state.step)
    decay = min(config.averaging, state.step / (9 + state.step))
    for target, weight in zip(
        state.average.state_dict().values(), state.model.state_dict().values(), strict=True
    ):
        if target.is_floating_point():
            target.lerp_(weight, 1 - decay)  # batch norm's running statistics as well
    return ce.item(), None if regulariser is None else regulariser.item()


@torch.no_grad()
def _validate(
    model: Classifier, objective: Objective | None, data: TrainingImages, config: TrainConfig
) -> tuple[float, float]:
    """Loss and ID accuracy on the held-out images."""
    model.eval()
    outputs = BatchOutputs.held_out(model, data)
    logits, labels = outputs.logits[: outputs.id_count], outputs.labels
    loss = F.cross_entropy(logits, labels)
    if objective is not None and data.val_ood is not None:
        regulariser = objective.held_out(outputs.to(model.device)).cpu()
        loss = loss + regulariser_weight(config) * regulariser
    return float(loss), accuracy(logits, labels)
