"""Generating OOD images: a job's settings, and the loop that runs the guided sampler batch by batch
into a folder.

An image depends on job seed and index alone (and on the batch size by rounding), so an interrupted
job goes on and gives the same set.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from good_rt.classifier import Classifier, predict
from good_rt.data.batches import half_rows, id_batches, outputs
from good_rt.data.generated_set import GeneratedSet, Row
from good_rt.data.id_data import IdData, from_uint8, to_uint8
from good_rt.diffusion import TEMPLATE, Conditioning, DiffusionModel
from good_rt.engines.autograd import VjpPair
from good_rt.engines.base import Engine
from good_rt.environment import CPU
from good_rt.errors import GoodRtError, NonFiniteError
from good_rt.files import sole_user
from good_rt.method.bank import FeatureBank
from good_rt.method.denoiser import Denoiser, Network, remembered
from good_rt.method.discrepancy import (
    ClassifierGuidance,
    EngineGuidance,
    Guidance,
    IdScales,
    feature_level,
    image_level,
)
from good_rt.method.guidance import Decoder, GuidanceConfig, LatentGuidance
from good_rt.method.sampler import sample, sample_seeds
from good_rt.method.schedule import FloatArray

GuidanceKind = Literal["none", "img", "feat", "both"]
KINDS: tuple[GuidanceKind, ...] = get_args(GuidanceKind)
BANK_SIZE = 10_000
LARGEST_BATCH = 128
"""The most images a batch that `pick_batch` tries."""
LAMBDA: dict[str, float] = {"img": 0.0, "feat": 1.0, "both": 0.5}
"""λ of ℓ = (1−λ)·ℓ_img/s_img + λ·ℓ_feat/s_feat by kind of guidance."""


@dataclass(frozen=True)
class GenerationJob:
    """What is generated; together with the models it determines every image."""

    count: int
    guidance: GuidanceKind = "both"
    config: GuidanceConfig = field(default_factory=lambda: GuidanceConfig(mu=0.1))
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Factors of ρ and μ that the images take in turn, so that a set reaches from near to far
    OOD."""
    k: int = 10
    temperature: float = 1.0
    eta: float = 1.0
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise GoodRtError(
                f"count and batch must be at least 1, not {self.count} and {self.batch}"
            )
        if not self.strengths or not all(0 <= strength < math.inf for strength in self.strengths):
            raise GoodRtError(
                f"strengths must be one or more numbers of at least 0, not {self.strengths}"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Generator:
    """The models a job runs on, whatever runtime is behind them.

    ``decode`` gives the final images, ``decode_with_gradient`` is the decoder that guidance
    differentiates. ``fused`` is the engine of decoder, classifier and bank together that takes its
    place, where there is one. ``conditioning`` is what the classes are to the network, None for an
    unconditional one. ``device`` is where all of them are.
    """

    denoiser: Denoiser
    decode: Decoder
    decode_with_gradient: Decoder
    classifier: Classifier
    bank: FeatureBank
    scales: IdScales
    sigmas: FloatArray
    shape: tuple[int, int, int]
    conditioning: Conditioning | None = None
    fused: Callable[..., tuple[Tensor, ...]] | None = None
    device: torch.device = CPU

    def images(
        self, job: GenerationJob, indices: list[int], guided: bool = True
    ) -> NDArray[np.uint8]:
        """The job's images (N, H, W, C) at these indices; ``guided=False`` gives their unguided
        twins.

        Raises NonFiniteError that names step and indices, and GoodRtError when what the decoder
        gives is not finite.
        """
        guidance: Guidance | LatentGuidance | None = None
        config = replace(job.config, rho=0.0, mu=0.0)
        if guided and job.guidance != "none":
            guidance, config = self.guidance(job), job.config
        try:
            latents = sample(
                self.denoiser,
                self.decode_with_gradient,
                guidance,
                self.sigmas,
                config,
                sample_seeds(job.seed, indices),
                self.shape,
                self.rows(indices),
                job.eta,
                strength=torch.tensor([self.strength(job, index) for index in indices]),
                device=self.device,
            )
        except NonFiniteError as error:
            raise NonFiniteError(error.step, [indices[place] for place in error.samples]) from None
        with torch.no_grad():
            images = self.decode(latents)
        wrong = ~images.isfinite().flatten(1).all(dim=1)
        if wrong.any():
            index = indices[int(wrong.nonzero()[0])]
            raise GoodRtError(
                f"the decoder gives a value that is not finite for image {index}; its weights are "
                "damaged, or it "
                "overflows in half precision: take --precision bf16 or fp32"
            )
        return to_uint8(images)

    def guidance(self, job: GenerationJob) -> Guidance | LatentGuidance:
        """The discrepancy that the job climbs."""
        lam = LAMBDA[job.guidance]
        if self.fused is not None:
            config = self.classifier.config
            return EngineGuidance(
                self.fused,
                self.scales,
                lam,
                (config.channels, config.image_size, config.image_size),
            )
        return ClassifierGuidance(
            self.classifier, self.bank, self.scales, lam, job.k, job.temperature
        )

    def labels(self, indices: list[int]) -> Tensor:
        """The classes of the images, in turn: (N,) int64."""
        return torch.tensor(indices) % len(self.classifier.config.classes)

    def rows(self, indices: list[int]) -> Tensor | None:
        """The conditioning's rows of the images, (N,) int64: the classes in turn, and each one's
        prompts in turn."""
        if self.conditioning is None:
            return None
        turn = torch.tensor(indices) // len(self.classifier.config.classes)
        return self.conditioning.rows(self.labels(indices), turn).to(self.device)

    @staticmethod
    def strength(job: GenerationJob, index: int) -> float:
        """The factor of ρ and μ of the image at this index."""
        return job.strengths[index % len(job.strengths)]

    def discrepancies(self, images: NDArray[np.uint8], job: GenerationJob) -> tuple[Tensor, Tensor]:
        """Energy and distance to the k-th neighbour of images (N, H, W, C), (N,) each, on the
        CPU."""
        logits, features = predict(self.classifier, from_uint8(images))
        return image_level(logits, job.temperature), feature_level(features, self.bank, job.k)


def set_settings(job: GenerationJob, twins: bool, describe: Mapping[str, Any]) -> dict[str, Any]:
    """What job.json says of a set: all but the count, since a finished one may be extended."""
    return {
        **{name: value for name, value in job.to_json().items() if name != "count"},
        "twins": twins,
        **describe,
    }


def generate(
    generator: Generator,
    job: GenerationJob,
    out: Path,
    *,
    twins: bool = True,
    describe: dict[str, Any] | None = None,
    on_images: Callable[[int], None] = lambda count: None,
) -> GeneratedSet:
    """Runs the job into ``out``, going on where an interrupted run stopped, and writes the contact
    sheet.

    ``twins`` also samples each image's unguided twin of the same seed, for the manifest's "before"
    columns. ``describe`` names the models in job.json, so that a folder is not continued with
    others. ``on_images`` hears how many images are done. Raises GoodRtError when ``out`` belongs to
    another job, has another process at work in it, or cannot be written.
    """
    out_set = GeneratedSet(out)
    with sole_user(out):
        out_set.begin(set_settings(job, twins, describe or {}))
        _fill(out_set, generator, job, twins, on_images)
        out_set.write_contact_sheet()
    return out_set


def _fill(
    out_set: GeneratedSet,
    generator: Generator,
    job: GenerationJob,
    twins: bool,
    on_images: Callable[[int], None],
) -> None:
    """Samples the job's images that the set lacks."""
    done = {row.index for row in out_set.rows()}
    on_images(len([index for index in done if index < job.count]))
    for first in range(0, job.count, job.batch):
        indices = list(
            range(first, first + job.batch)
        )  # a whole batch always, so that its bytes never change
        wanted = [i for i, index in enumerate(indices) if index < job.count and index not in done]
        if not wanted:
            continue
        images = generator.images(job, indices)
        energy, distance = generator.discrepancies(images, job)
        before: tuple[Tensor, Tensor] | None = None
        if job.guidance == "none":
            before = energy, distance
        elif twins:
            before = generator.discrepancies(generator.images(job, indices, guided=False), job)
        seeds = sample_seeds(job.seed, indices)
        labels = generator.labels(indices).tolist()
        rows = [
            Row(
                index=indices[i],
                file=f"images/{indices[i]:06d}.png",
                seed=seeds[i],
                label=labels[i],
                guidance=job.guidance,
                strength=generator.strength(job, indices[i]),
                energy=float(energy[i]),
                knn_distance=float(distance[i]),
                energy_before=float(before[0][i]) if before else None,
                knn_distance_before=float(before[1][i]) if before else None,
            )
            for i in wanted
        ]
        out_set.append(images[wanted], rows)
        on_images(len(wanted))


def pick_batch(generator: Generator, count: int, largest: int = LARGEST_BATCH) -> int:
    """The batch size with the most denoised latents a second, found by timing sizes that double
    from 8."""
    best, best_rate, size = 1, 0.0, min(8, count)
    while size <= min(largest, max(count, 1)):
        y = torch.zeros(size, *generator.shape, device=generator.device)
        labels = generator.rows(list(range(size)))
        try:
            generator.denoiser(y, 1.0, labels).cpu()  # the first run of a size also allocates
            began = time.perf_counter()
            generator.denoiser(y, 1.0, labels).cpu()  # a GPU is done when the result is here
            rate = size / (time.perf_counter() - began)
        except torch.OutOfMemoryError:
            break
        if rate < 1.05 * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best


def make_generator(
    model: DiffusionModel,
    classifier: Classifier,
    id_data: IdData,
    job: GenerationJob,
    *,
    steps: int = 25,
    cfg_scale: float = 1.0,
    cfg_sigma_max: float = math.inf,
    bank_size: int = BANK_SIZE,
    engines: Mapping[str, Engine] | None = None,
    prompts: Sequence[str] = (TEMPLATE,),
    device: torch.device = CPU,
) -> Generator:
    """Puts the models together: ``engines`` run UNet and decoder where given, else PyTorch does.

    The modules that are used are taken to ``device``, in place; engines have to be there already.

    Gradients go through VJP engines where ``engines`` holds them, else through the retained PyTorch
    modules. The bank is made of the ID data's training part, the scales of its held-out part.
    ``prompts`` are templates with {} in the place of a class's name, for models that text
    conditions. Raises GoodRtError when model and classifier do not fit together.
    """
    config = classifier.config
    image_shape = (config.channels, config.image_size, config.image_size)
    if model.image_shape != image_shape:
        raise GoodRtError(
            f"the diffusion model makes images of shape {model.image_shape}, the classifier takes "
            f"{image_shape}; "
            "both must agree"
        )
    classifier.to(device)
    conditioning = model.conditioning(config.classes, prompts)
    conditioning = None if conditioning is None else conditioning.to(device)
    decode: Decoder = model.decoder or _identity
    decode_with_gradient: Decoder = model.gradient_decoder or _identity
    unet: Network = model.unet
    differentiable, fused = unet, None
    if engines:
        unet = engine_function(engines["unet"], "output")
        if "unet_backward" in engines:
            differentiable = VjpPair(engines["unet_forward"], engines["unet_backward"]).function
        if model.decoder is not None:
            decode = engine_function(engines["vae_decoder"], "images")
        if "decoder_backward" in engines:
            decode_with_gradient = VjpPair(
                engines["decoder_forward"], engines["decoder_backward"]
            ).function
        if "guidance_vjp" in engines:
            fused = engine_function(engines["guidance_vjp"], "value", "gradient")
    for used in (unet, differentiable, decode, decode_with_gradient):
        if isinstance(used, nn.Module):
            used.to(device)
    further: dict[str, Any] = {}
    if conditioning is not None:
        further = {"condition": remembered(conditioning), "null_class": conditioning.null}
    denoiser = model.process.denoiser(
        unet,
        differentiable=differentiable,
        cfg_scale=cfg_scale,
        cfg_sigma_max=cfg_sigma_max,
        **further,
    )
    bank = feature_bank(classifier, id_data, bank_size)
    known, _ = half_rows(id_data, "held_out")
    found = outputs(classifier, id_batches(id_data, "held_out", classifier, rows=known))
    scales = IdScales.measure(*found, bank, job.k, job.temperature)
    return Generator(
        denoiser=denoiser,
        decode=decode,
        decode_with_gradient=decode_with_gradient,
        classifier=classifier,
        bank=bank,
        scales=scales,
        sigmas=model.sigmas(steps),
        shape=model.sample_shape,
        conditioning=conditioning,
        fused=fused,
        device=device,
    )


def feature_bank(classifier: Classifier, id_data: IdData, size: int = BANK_SIZE) -> FeatureBank:
    """The bank of at most ``size`` evenly chosen images of the ID data's training part."""
    return FeatureBank(outputs(classifier, id_batches(id_data, "train", classifier, size))[1])


def engine_function(engine: Engine, *outputs: str) -> Callable[..., Any]:
    """An engine as a function of its inputs in their order, giving one output or a tuple of
    several."""
    names = tuple(engine.inputs)

    def run(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = engine(**dict(zip(names, tensors, strict=True)))
        return found[outputs[0]] if len(outputs) == 1 else tuple(found[name] for name in outputs)

    return run


def _identity(latents: Tensor) -> Tensor:
    return latents
