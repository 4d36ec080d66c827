"""The generator: models, engines, discrepancies and sampler, put together to make images.

`good_rt.workflow.generate` fills folders with its images. An image depends on the configuration's
seed and its index (and on the batch size up to floating-point rounding, where PyTorch computes
gradients), so that an interrupted job resumes with the same images.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from good_rt.classifier import Classifier, outputs, predict
from good_rt.config.settings import BankConfig, GenerationConfig
from good_rt.data.batches import half_rows, id_batches
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8, to_uint8
from good_rt.diffusion import Conditioning
from good_rt.engines.base import Engine
from good_rt.engines.batch_splitting import vjp_pair
from good_rt.errors import GoodRtError, NonFiniteError
from good_rt.method.bank import FeatureBank
from good_rt.method.classifier_guidance import (
    ClassifierGuidance,
    EngineGuidance,
    Guidance,
    IdScales,
)
from good_rt.method.denoiser import Denoiser, Network, remembered
from good_rt.method.discrepancy import Discrepancy, fit_discrepancy
from good_rt.method.discrepancy.energy import image_level
from good_rt.method.discrepancy.knn import KnnDistance
from good_rt.method.guidance import LEVEL_WEIGHTS, Decoder, LatentGuidance
from good_rt.method.sampler import GuidedModel, SampleBatch, sample, sample_seeds
from good_rt.method.schedule import FloatArray
from good_rt.models import Models
from good_rt.workflow.class_order import check_class_order
from good_rt.workflow.id_start import IdStart

LARGEST_BATCH = 128
"""The largest batch that `pick_batch` tries."""


@dataclass(frozen=True, eq=False)
class MeasuredImages:
    """What the classifier sees in N generated images.

    Attributes:
        energy: (N,) ℓ_img.
        knn_distance: (N,) ℓ_feat of the k-NN distance.
        p_value: (N,) share of held-out ID images with at least the guided discrepancy.
        features: (N, D) of unit norm.
    """

    energy: NDArray[np.float32]
    knn_distance: NDArray[np.float32]
    p_value: NDArray[np.float64]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Generator:
    """The models of a generation, whatever runtime is behind them.

    Attributes:
        denoiser: x̂0 of y and σ.
        decode: Latents to the final images.
        decode_with_gradient: The decoder that guidance differentiates.
        classifier: Images to logits and features.
        knn: The k-NN distance, which manifests record.
        feature: The feature discrepancy that guidance climbs.
        scales: Mean and standard deviation of the discrepancies on ID images.
        id_levels: Energy and feature discrepancy (n,) of held-out ID images, on the CPU.
        sigmas: (T + 1,) falling noise levels.
        shape: (C, H, W) of the latents.
        id_start: ID images to start from.
        conditioning: What the classes are to the network; None for an unconditional one.
        fused: Engine of decoder, classifier and discrepancies together, which replaces
            ``decode_with_gradient``; None where there is none.
        device: Where the models are.
    """

    denoiser: Denoiser
    decode: Decoder
    decode_with_gradient: Decoder
    classifier: Classifier
    knn: KnnDistance
    feature: Discrepancy
    scales: IdScales
    id_levels: tuple[Tensor, Tensor]
    sigmas: FloatArray
    shape: tuple[int, int, int]
    id_start: IdStart
    conditioning: Conditioning | None
    fused: Callable[..., tuple[Tensor, ...]] | None
    device: torch.device

    @property
    def gradients(self) -> str:
        """What computes the gradients of guidance: "engine" or "torch"."""
        return "torch" if self.fused is None else "engine"

    def images(
        self, config: GenerationConfig, indices: list[int], guided: bool = True
    ) -> NDArray[np.uint8]:
        """Images (N, H, W, C) uint8 of a configuration at these indices.

        Args:
            config: What is generated; its engines, steps and bank must be this generator's.
            indices: Places in the generated set.
            guided: False samples the unguided twins of the same seeds.

        Raises:
            NonFiniteError: a value is not finite; it names step and indices.
            GoodRtError: the decoder's output is not finite.
        """
        latents = torch.empty(len(indices), *self.shape, device=self.device)
        for step, positions in self._by_first_step(config, indices).items():
            part = [indices[position] for position in positions]
            rows = torch.tensor(positions).to(self.device)
            latents[rows] = self._latents(config, part, guided, step)
        with torch.no_grad():
            images = self.decode(latents)
        wrong = ~images.isfinite().flatten(1).all(dim=1)
        if wrong.any():
            index = indices[int(wrong.nonzero()[0])]
            raise GoodRtError(
                f"the decoder gives a value that is not finite for image {index}; its weights are "
                "damaged, or it overflows in half precision: use --precision bf16 or fp32"
            )
        return to_uint8(images)

    def _by_first_step(
        self, config: GenerationConfig, indices: Sequence[int]
    ) -> dict[int, list[int]]:
        """The positions of the indices, by the step that their sampling begins with."""
        first_steps, positions = config.sampler.first_steps, defaultdict[int, list[int]](list)
        for position, index in enumerate(indices):
            # not by the index itself, with which the strengths take turns
            turn = index // len(config.strengths)
            positions[first_steps[turn % len(first_steps)]].append(position)
        return positions

    def _latents(
        self, config: GenerationConfig, indices: list[int], guided: bool, step: int
    ) -> Tensor:
        """Sampled latents (N, C, H, W), all from the same step on."""
        guidance: Guidance | LatentGuidance | None = None
        settings = replace(config.guidance, rho=0.0, mu=0.0)
        if guided and config.kind != "none":
            guidance, settings = self.guidance(config), config.guidance
        rows = self.start_rows(config, indices)
        start = None
        if config.sampler.start == "id":
            start = self.id_start.latents([row for row in rows if row is not None])
        batch = SampleBatch(
            sample_seeds(config.seed, indices),
            self.shape,
            self.rows(indices),
            torch.tensor([strength_of(config, index) for index in indices]),
            start=start,
            first_step=step,
            device=self.device,
        )
        model = GuidedModel(self.denoiser, self.decode_with_gradient, guidance)
        try:
            return sample(model, self.sigmas, settings, batch, config.sampler.eta)
        except NonFiniteError as error:
            raise NonFiniteError(
                error.step, [indices[position] for position in error.samples]
            ) from None

    def start_rows(self, config: GenerationConfig, indices: Sequence[int]) -> list[int | None]:
        """The rows of the ID data's source that images start from; None for noise.

        Args:
            config: Seed and start.
            indices: Positions in the generated set.
        """
        if config.sampler.start == "noise":
            return [None] * len(indices)
        labels = self.labels(list(indices)).tolist()
        return list(self.id_start.rows(config.seed, indices, labels))

    def guidance(self, config: GenerationConfig) -> Guidance | LatentGuidance:
        """The discrepancy ℓ that the configuration climbs."""
        lam, bank = LEVEL_WEIGHTS[config.kind], config.bank
        if self.fused is not None:
            shape = self.classifier.config
            return EngineGuidance(
                self.fused, self.scales, lam, (shape.channels, shape.image_size, shape.image_size)
            )
        return ClassifierGuidance(self.classifier, self.feature, self.scales, lam, bank.temperature)

    def labels(self, indices: list[int]) -> Tensor:
        """The classes of the images, in turn: (N,) int64."""
        return torch.tensor(indices) % len(self.classifier.config.classes)

    def rows(self, indices: list[int]) -> Tensor | None:
        """The conditioning's rows (N,) int64 of the images: the classes in turn, and each one's
        prompts in turn."""
        if self.conditioning is None:
            return None
        turn = torch.tensor(indices) // len(self.classifier.config.classes)
        return self.conditioning.rows(self.labels(indices), turn).to(self.device)

    def measure(self, images: NDArray[np.uint8], config: GenerationConfig) -> MeasuredImages:
        """Discrepancies and features of generated images.

        Args:
            images: (N, H, W, C) uint8.
            config: k and temperature.
        """
        logits, features = predict(self.classifier, from_uint8(images))
        energy = image_level(logits, config.bank.temperature)
        guided = self._guided_discrepancy(config, energy, self._feature_level(logits, features))
        at_least = len(self.id_levels[1]) - torch.searchsorted(
            self._guided_discrepancy(config, *self.id_levels).sort().values, guided
        )
        return MeasuredImages(
            energy.numpy(),
            self.knn(logits, features).numpy(),
            ((1 + at_least).double() / (1 + len(self.id_levels[1]))).numpy(),
            F.normalize(features, dim=1).numpy(),
        )

    def _feature_level(self, logits: Tensor, features: Tensor) -> Tensor:
        return self.feature(logits.to(self.device), features.to(self.device)).cpu()

    def _guided_discrepancy(
        self, config: GenerationConfig, energy: Tensor, feature: Tensor
    ) -> Tensor:
        """ℓ of the configuration's kind of guidance; that of "both" for unguided samples."""
        image_weight, feature_weight = self.scales.weights(LEVEL_WEIGHTS.get(config.kind, 0.5))
        return image_weight * energy + feature_weight * feature


def strength_of(config: GenerationConfig, index: int) -> float:
    """The factor of μ and ρ of the image at this index."""
    return config.strengths[index % len(config.strengths)]


def generation_record(models: Models, config: GenerationConfig, gradients: str) -> dict[str, Any]:
    """What job.json records of everything that determines the images but their number: models,
    guidance, sampler and engines.

    Args:
        models: Diffusion model and classifier.
        config: What is generated.
        gradients: What computes the gradients: "engine" or "torch".
    """
    sampler, bank = config.sampler, config.bank
    record = {
        "guidance": config.kind,
        "config": asdict(config.guidance),
        "strengths": list(config.strengths),
        "k": bank.k,
        "temperature": bank.temperature,
        "eta": sampler.eta,
        "seed": config.seed,
        "batch": config.batch,
        "twins": config.twins,
        **models.fingerprints,
        "engine": str(config.backend),
        "gradients": gradients,
        "steps": sampler.steps,
        "cfg_scale": sampler.cfg,
        "bank_size": bank.size,
    }
    if config.accept.active:
        accept = {k: v for k, v in asdict(config.accept).items() if k != "budget"}
        if config.accept.balance:  # what is kept of a class depends on it
            accept["count"] = config.count
        record["accept"] = accept
    if sampler.start == "id":
        record |= {"start": "id", "start_shares": list(sampler.start_shares)}
    if sampler.cfg_sigma_max < math.inf:
        record["cfg_sigma_max"] = sampler.cfg_sigma_max
    if bank.feature != KnnDistance.name:
        record["feature"] = bank.feature
    if models.device.type != "cpu":
        record["device"] = models.device.type
    return {**record, "prompts": list(sampler.prompts)} if models.diffusion.text else record


def make_generator(
    models: Models,
    id_data: IdData,
    config: GenerationConfig,
    engines: Mapping[str, Engine] | None = None,
) -> Generator:
    """Combines the models into a `Generator`.

    The modules that are used move to the models' device, in place; engines are there already.
    Gradients go through VJP engines where ``engines`` holds them, else through PyTorch modules. The
    discrepancies are fitted on the ID data's training part; the scales are measured on half of its
    held-out part.

    Args:
        models: Diffusion model and classifier.
        id_data: In-distribution images.
        config: Settings of sampler, bank and classifier-free guidance.
        engines: What runs the graphs, by name; None runs PyTorch.

    Raises:
        GoodRtError: classes, images or prompts do not fit the models.
    """
    diffusion, classifier, device = models.diffusion, models.classifier, models.device
    classifier.to(device)
    conditioning = diffusion.conditioning(classifier.config.classes, config.sampler.prompts)
    conditioning = None if conditioning is None else conditioning.to(device)
    decode: Decoder = diffusion.decoder or _identity
    encode: Decoder = diffusion.encoder or _identity
    decode_with_gradient: Decoder = diffusion.gradient_decoder or _identity
    network: Network = diffusion.network
    differentiable, fused = network, None
    if engines:
        network = engine_function(engines["network"], "output")
        if "network_backward" in engines:
            pair = vjp_pair(engines["network_forward"], engines["network_backward"])
            differentiable = pair.function
        if diffusion.decoder is not None:
            decode = engine_function(engines["vae_decoder"], "images")
        if "vae_encoder" in engines:
            encode = engine_function(engines["vae_encoder"], "latents")
        if "decoder_backward" in engines:
            pair = vjp_pair(engines["decoder_forward"], engines["decoder_backward"])
            decode_with_gradient = pair.function
        if "guidance_vjp" in engines:
            fused = engine_function(engines["guidance_vjp"], "value", "gradient")
    for used in (network, differentiable, encode, decode, decode_with_gradient):
        if isinstance(used, nn.Module):
            used.to(device)
    condition: dict[str, Any] = {}
    if conditioning is not None:
        condition = {"condition": remembered(conditioning), "null_class": conditioning.null}
    denoiser = diffusion.process.denoiser(
        network,
        differentiable=differentiable,
        cfg_scale=config.sampler.cfg,
        cfg_sigma_max=config.sampler.cfg_sigma_max,
        **condition,
    )
    check_class_order(id_data, classifier)
    knn, feature = guidance_discrepancies(models, id_data, config.bank)
    known, _ = half_rows(id_data, "held_out")
    held_out = outputs(classifier, id_batches(id_data, "held_out", classifier, rows=known))
    # before the feature discrepancy moves to the device
    id_levels = image_level(held_out[0], config.bank.temperature), feature(*held_out)
    scales = IdScales.of(*id_levels)
    return Generator(
        denoiser=denoiser,
        decode=decode,
        decode_with_gradient=decode_with_gradient,
        classifier=classifier,
        knn=knn,
        feature=feature.to(models.device),
        scales=scales,
        id_levels=id_levels,
        sigmas=diffusion.sigmas(config.sampler.steps),
        shape=diffusion.sample_shape,
        id_start=IdStart(id_data, classifier, encode),
        conditioning=conditioning,
        fused=fused,
        device=device,
    )


def guidance_discrepancies(
    models: Models, id_data: IdData, bank: BankConfig
) -> tuple[KnnDistance, Discrepancy]:
    """The k-NN distance that is recorded, and the feature discrepancy that guidance climbs.

    Args:
        models: The classifier gives the features.
        id_data: In-distribution images; both are fitted on its training part.
        bank: Which discrepancy, on how many images.
    """
    features = models.id_features(id_data, bank.size)
    knn = KnnDistance(FeatureBank.of(features.features), bank.k)
    if bank.feature == knn.name:
        return knn, KnnDistance(knn.bank, bank.k, approximate=True)
    return knn, fit_discrepancy(bank.feature, features)


def pick_batch(generator: Generator, count: int, largest: int = LARGEST_BATCH) -> int:
    """The batch size that denoises the most latents a second, timed for sizes that double from 8.

    Args:
        generator: Its denoiser is timed.
        count: Number of images to sample; no size above it is timed.
        largest: Largest size to time.
    """
    best, best_rate, size = 1, 0.0, min(8, count)
    while size <= min(largest, max(count, 1)):
        y = torch.zeros(size, *generator.shape, device=generator.device)
        labels = generator.rows(list(range(size)))
        try:
            generator.denoiser(y, 1.0, labels).cpu()  # the first run of a size also allocates
            began = time.perf_counter()
            generator.denoiser(y, 1.0, labels).cpu()  # copying waits for a GPU
            rate = size / (time.perf_counter() - began)
        except torch.OutOfMemoryError:
            break
        if rate < 1.05 * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best


def engine_function(engine: Engine, *names: str) -> Callable[..., Any]:
    """An engine as a function of its inputs in their order.

    Args:
        engine: The engine.
        names: Its outputs to return: one as a tensor, several as a tuple.
    """
    inputs = tuple(engine.inputs)

    def run(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = engine(**dict(zip(inputs, tensors, strict=True)))
        return values[names[0]] if len(names) == 1 else tuple(values[name] for name in names)

    return run


def _identity(latents: Tensor) -> Tensor:
    return latents
