"""Fine-tuning the classifier with generated OOD images, so that its energy tells ID from OOD.

L = CE(ID) + w·BCE(sigmoid(g(−energy)), is ID) with a learned head g, as in VOS (Du et al., arXiv
2202.01197, Eq. 6) and GOOD (arXiv 2510.17131). Some of the ID images come from the VAE's
decoder, reconstructed or sampled without guidance, since the network would otherwise learn that
"looks generated" means OOD.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.classifier import Classifier, predict
from good_rt.config.settings import TrainConfig
from good_rt.environment import CPU
from good_rt.errors import GoodRtError, NonFiniteError
from good_rt.files import atomic_path, different_names


@dataclass(frozen=True)
class TrainingImages:
    """The images of a fine-tuning: (N, C, H, W) in [-1, 1], with labels (N,) int64.

    Attributes:
        images: ID images to train on.
        labels: Their classes.
        val_images: Held-out ID images; they choose the state that is kept, and are never trained
            on.
        val_labels: Their classes.
        decoded: VAE reconstructions of the first ID images, in their order.
        ood: Guided images to train on; None for the control.
        val_ood: Held-out guided images.
        unguided: Samples without guidance, which are ID.
        unguided_labels: Their classes.
    """

    images: Tensor
    labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    decoded: Tensor | None = None
    ood: Tensor | None = None
    val_ood: Tensor | None = None
    unguided: Tensor | None = None
    unguided_labels: Tensor | None = None

    @property
    def control(self) -> TrainingImages:
        """The same without any generated image, as a baseline."""
        return replace(self, ood=None, val_ood=None, unguided=None, unguided_labels=None)


@dataclass(frozen=True)
class TrainStep:
    """Losses of one step.

    Attributes:
        step: Number of the step, from 1.
        ce: Cross-entropy of the ID images.
        bce: Regulariser; None in the control.
        val_loss: Loss on the held-out images, at the steps that evaluate them.
        val_accuracy: ID accuracy on the held-out images, at the same steps.
    """

    step: int
    ce: float
    bce: float | None
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
        history: Every step.
    """

    classifier: Classifier
    accuracy: float
    accuracy_before: float
    kept_step: int
    history: tuple[TrainStep, ...]


class EnergyHead(nn.Module):
    """g: −energy (N,) -> logit (N,) that the sample is ID, affine with a slope above 0.

    Lower energy is always more ID. A head with hidden units, as in VOS, may call a band of energies
    ID, and then the energy is no longer a score.

    Args:
        middle: The −energy whose logit is 0 at the start.
    """

    def __init__(self, middle: float = 0.0) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(float(middle)))
        self.log_slope = nn.Parameter(torch.tensor(0.0))

    def forward(self, negative_energy: Tensor) -> Tensor:
        return self.log_slope.exp() * (negative_energy - self.middle)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images (N, C, H, W), half of them flipped, all shifted by up to 2 pixels.

    Args:
        images: (N, C, H, W).
        generator: Draws flips and the shift.
    """
    flip = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    rows, columns = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(images, (rows, columns), (2, 3))


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
        GoodRtError: no state kept the accuracy, or the checkpoint is damaged or of another
            training.
        NonFiniteError: the loss is not finite; it names the step.
    """
    check_trainable(classifier)
    torch.manual_seed(config.seed)
    before = accuracy(predict(classifier, data.val_images)[0], data.val_labels)
    model = copy.deepcopy(classifier).requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = EnergyHead(_middle(classifier, data)).to(classifier.device)
    groups = [
        {"params": list(model.parameters()), "peak": config.lr},
        {"params": list(head.parameters()), "peak": config.head_lr},
    ]
    optimiser = torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay)
    state = _Progress(model, head, optimiser, copy.deepcopy(model), copy.deepcopy(model))
    job = {}
    if checkpoint is not None:
        parts = {"classifier": classifier.state_dict(), "images": vars(data)}
        job = asdict(config) | {name: _fingerprint(tensors) for name, tensors in parts.items()}
        state.load(checkpoint, job)
    while state.step < config.steps:
        ce, bce = _train_step(state, data, config)
        done = TrainStep(state.step, ce, bce)
        if state.step % config.evaluate_every == 0 or state.step == config.steps:
            for retreat in RETREATS:
                candidate = _interpolated(classifier, state.average, retreat * config.interpolation)
                val_loss, val_accuracy = _validate(candidate, head, data, config)
                if retreat == RETREATS[0]:
                    done = TrainStep(state.step, ce, bce, val_loss, val_accuracy)
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
    kept = state.kept.eval().requires_grad_(False)
    return TrainResult(kept, state.kept_accuracy, before, state.kept_step, tuple(state.history))


def _interpolated(start: Classifier, end: Classifier, weight: float) -> Classifier:
    """The classifier whose weights are interpolated between ``start`` (0) and ``end`` (1)."""
    interpolated = copy.deepcopy(end)
    for target, origin in zip(
        interpolated.state_dict().values(), start.state_dict().values(), strict=True
    ):
        if target.is_floating_point():
            target.lerp_(origin, 1 - weight)
    return interpolated


def _middle(classifier: Classifier, data: TrainingImages) -> float:
    """Half-way between the mean −energies of held-out ID and OOD images, where the head starts."""
    images = [data.val_images] if data.val_ood is None else [data.val_images, data.val_ood]
    return sum(
        float(torch.logsumexp(predict(classifier, part)[0], dim=1).mean()) for part in images
    ) / len(images)


@dataclass
class _Progress:
    """Everything a resumed run needs; the only mutable thing here."""

    model: Classifier
    head: EnergyHead
    optimiser: torch.optim.AdamW
    average: Classifier
    kept: Classifier
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
        tensors |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in moments.items()}
        scalars = {name: getattr(self, name) for name in ("step", "kept_step", "kept_accuracy")}
        meta = {"job": job, "scalars": scalars, "history": [asdict(step) for step in self.history]}
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
        self.head.load_state_dict(part("head."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimiser.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        for name, value in meta["scalars"].items():
            setattr(self, name, value)
        self.history = [TrainStep(**step) for step in meta["history"]]


def _fingerprint(tensors: Mapping[str, Any]) -> str:
    """One hash of tensors, or None, and of their names."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {None if tensor is None else tuple(tensor.shape)}\n".encode())
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _id_batch(
    data: TrainingImages, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """ID images (id_batch, C, H, W) and their labels (id_batch,); the first ones come from a
    decoder."""
    index = torch.randint(len(data.images), (config.id_batch,), generator=generator)
    images, labels = data.images[index], data.labels[index]
    decoder_images = [
        (source, known)
        for source, known in ((data.decoded, data.labels), (data.unguided, data.unguided_labels))
        if source is not None and known is not None
    ]
    rows = torch.arange(round(config.decoded_share * config.id_batch))
    for (source, known), part in zip(
        decoder_images,
        rows.tensor_split(len(decoder_images)) if decoder_images else (),
        strict=True,
    ):
        at = index[part] % len(source)
        images[part], labels[part] = source[at], known[at]
    return images, labels


def _train_step(
    state: _Progress, data: TrainingImages, config: TrainConfig
) -> tuple[float, float | None]:
    """One optimiser step on a batch that depends only on seed and step; returns CE and BCE."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
    cosine = 0.5 * (1 + math.cos(math.pi * state.step / config.steps))
    for group in state.optimiser.param_groups:
        group["lr"] = group["peak"] * min(1.0, (state.step + 1) / 30) * cosine

    images, labels = _id_batch(data, config, generator)
    if data.ood is not None:
        images = torch.cat(
            [
                images,
                data.ood[torch.randint(len(data.ood), (config.ood_batch,), generator=generator)],
            ]
        )
    state.model.train()
    device = state.model.device
    images = augment(images, generator).to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16) if config.bfloat16 else nullcontext():
        logits = state.model(images)[0].float()
    ce, bce = _losses(logits, state.head, labels.to(device))
    loss = ce if bce is None else ce + config.weight * bce
    if not torch.isfinite(loss):
        raise NonFiniteError(state.step, [])
    state.optimiser.zero_grad()
    loss.backward()
    state.optimiser.step()
    state.step += 1
    decay = min(config.averaging, state.step / (9 + state.step))
    for target, weight in zip(
        state.average.state_dict().values(), state.model.state_dict().values(), strict=True
    ):
        if target.is_floating_point():
            target.lerp_(weight, 1 - decay)  # batch norm's running statistics as well
    return ce.item(), None if bce is None else bce.item()


def _losses(logits: Tensor, head: EnergyHead, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """CE of the leading rows, which are ID, and BCE of all where there are more rows than labels:
    the rest is OOD."""
    count = len(labels)
    ce = F.cross_entropy(logits[:count], labels)
    if count == len(logits):
        return ce, None
    is_id = (torch.arange(len(logits), device=logits.device) < count).float()
    return ce, F.binary_cross_entropy_with_logits(head(torch.logsumexp(logits, dim=1)), is_id)


@torch.no_grad()
def _validate(
    model: Classifier, head: EnergyHead, data: TrainingImages, config: TrainConfig
) -> tuple[float, float]:
    """Loss and ID accuracy on the held-out images; ID and OOD have the same weight in the
    regulariser."""
    model.eval()
    logits, _ = predict(model, data.val_images)
    loss = F.cross_entropy(logits, data.val_labels)
    if data.val_ood is not None:
        ood_logits, _ = predict(model, data.val_ood)
        is_id, is_ood = (
            head(torch.logsumexp(part_logits, dim=1).to(head.middle.device)).cpu()
            for part_logits in (logits, ood_logits)
        )
        loss = loss + config.weight * 0.5 * (F.softplus(-is_id).mean() + F.softplus(is_ood).mean())
    return float(loss), accuracy(logits, data.val_labels)
