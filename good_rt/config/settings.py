"""Every setting of good-rt, declared once: sampler, guidance, training, export, detector.

The steps in `good_rt.workflow` take these frozen dataclasses; the command line, job files and the
documentation are derived from them (see `good_rt.config.declaration`). This module imports no
torch, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from good_rt.config.declaration import check_bounds, check_types, nested, setting
from good_rt.errors import GoodRtError

Trend = Literal["decrease", "increase", "constant"]
Precision = Literal["fp32", "fp16", "bf16"]
EngineName = Literal["onnx", "torch", "tensorrt"]
GuidanceKind = Literal["none", "img", "feat", "both"]
FeatureDiscrepancyName = Literal["knn_distance", "mahalanobis", "relative_mahalanobis"]
DiscrepancyName = Literal["energy", "knn_distance", "mahalanobis", "relative_mahalanobis"]
"""The files of `good_rt.method.discrepancy`."""
CombinationName = Literal["sum", "max", "logistic", "gate", "kl", "fisher", "min_p"]
"""The entries of `good_rt.method.combination`."""
ObjectiveName = Literal["logistic", "hinge", "uniform", "mahalanobis", "contrastive"]
"""The files of `good_rt.method.objective`."""
AugmentationName = Literal["auto", "none", "flip", "shift", "flip+shift"]
GUIDED_KINDS: tuple[GuidanceKind, ...] = ("img", "feat", "both")
PROMPT = "a photo of a {}"
"""The prompt of a class, {} in the place of its name."""
BANK_SIZE = 10_000
"""ID features in a feature bank, by default."""
ENGINE_FOLDER = Path("good-rt-engines")
"""Folder of the exported engines, by default."""


@dataclass(frozen=True)
class SplitConfig:
    """How in-distribution images are divided into train, held-out and test parts."""

    held_out: float = setting(
        0.2,
        "Share of the images that validates the training and calibrates the detector.",
        low=0,
        high=1,
        open_low=True,
        open_high=True,
    )
    test: float = setting(
        0.2,
        "Share of the images that only the evaluation sees.",
        low=0,
        high=1,
        open_low=True,
        open_high=True,
    )
    seed: int = setting(0, "Seed of the division.", low=0)
    skip_bad: bool = setting(
        False, "Leave out images that are damaged or contradict others, and list them."
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        if self.held_out + self.test >= 1:
            raise GoodRtError(
                f"the shares held_out and test leave nothing to train: {self.held_out} + "
                f"{self.test}"
            )


@dataclass(frozen=True)
class ImageLimits:
    """How large an image file may be; a small file can unpack to gigabytes."""

    max_pixels: int = setting(
        64 * 2**20, "Largest number of pixels of an image; larger ones are not decoded.", low=1
    )
    max_bytes: int = setting(
        64 * 2**20, "Largest size of an image file in bytes; larger ones are not read.", low=1
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)


@dataclass(frozen=True)
class SamplerConfig:
    """The diffusion sampler: its steps, stochasticity and conditioning."""

    steps: int = setting(
        25,
        "Sampler steps.",
        low=1,
        option="--sampler-steps",
        renamed_from=("--steps",),
    )
    start: Literal["noise", "id"] = setting(
        "id", "What sampling starts from: noise, or noised ID images of the class."
    )
    start_shares: tuple[float, ...] = setting(
        (0.6, 0.4, 0.3),
        "Shares of the steps that are sampled from an ID image, which the images take in turn.",
        low=0,
        high=1,
        open_low=True,
    )
    eta: float = setting(1.0, "η of DDIM; 0 is deterministic.", low=0, high=1)
    cfg: float = setting(1.0, "Classifier-free guidance scale; 1 for none.")
    cfg_sigma_max: float = setting(
        math.inf,
        "Largest σ at which classifier-free guidance acts; about 2 keeps more diversity and is "
        "faster.",
        low=0,
        open_low=True,
        default_text="every σ",
    )
    prompts: tuple[str, ...] = setting(
        (PROMPT,),
        "Prompt of a class, {} in the place of its name, for models conditioned on text; several "
        "prompts take turns.",
        option="--prompt",
        metavar="TEXT",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        if not self.start_shares:
            raise GoodRtError("start_shares must name one or more shares of the steps")

    @property
    def first_steps(self) -> tuple[int, ...]:
        """The steps that sampling begins with: 0 from noise; from ID images one for each of
        ``start_shares``, which leaves the share of the steps, and at least one."""
        if self.start == "noise":
            return (0,)
        return tuple(self.steps - max(round(share * self.steps), 1) for share in self.start_shares)


@dataclass(frozen=True)
class GuidanceConfig:
    """How strongly, when and how often the sampler follows ∇ℓ̃ (GOOD, arXiv 2510.17131; TFG, arXiv
    2409.15761, Alg. 1).

    With ``step="unit"`` each sample's gradient is scaled to root mean square 1, so that ``rho`` and
    ``mu`` are in units of the latents' spread and mean the same for every classifier; with "raw"
    they multiply the gradient itself.
    """

    mu: float = setting(0.1, "Mean strength μ̄ of mean guidance, on x̂0.", low=0)
    rho: float = setting(0.0, "Mean strength ρ̄ of variance guidance, through the network.", low=0)
    sigma: float = setting(
        0.0, "Width σ̄ of the Gaussian smoothing of ℓ in image space; 0 for none.", low=0
    )
    mu_schedule: Trend = setting(
        "constant", "How μ changes over the steps.", renamed_from=("--schedule",)
    )
    rho_schedule: Trend = setting(
        "constant", "How ρ changes over the steps.", renamed_from=("--schedule",)
    )
    sigma_schedule: Literal["decrease", "constant"] = setting(
        "decrease", "How the smoothing's width changes over the steps."
    )
    n_recur: int = setting(1, "Passes over each noise level (N_recur).", low=1)
    n_iter: int = setting(1, "Mean-guidance steps in each pass (N_iter).", low=1)
    n_mc: int = setting(1, "Monte-Carlo samples of the smoothing (M).", low=1)
    step: Literal["unit", "raw"] = setting(
        "unit",
        "Scale each gradient to root mean square 1 (unit), or use it as it is (raw).",
        option="--gradient-scale",
        renamed_from=("--step",),
    )
    clip: float | None = setting(
        None, "Largest Euclidean norm of a sample's raw gradient.", low=0, open_low=True
    )
    span: tuple[float, float] = setting(
        (0.0, 1.0),
        "Part of the trajectory that is guided, as shares of the steps.",
        metavar="FROM TO",
    )
    every: int = setting(
        1, "Guide only every n-th step of the span; the others cost an unguided one.", low=1
    )
    band: tuple[float, float] | None = setting(
        None,
        "ℓ between which guidance fades out: full strength below LOW, none above HIGH.",
        metavar="LOW HIGH",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        for name in ("rho", "mu", "sigma"):
            if not math.isfinite(getattr(self, name)):
                raise GoodRtError(f"{name} is {getattr(self, name)}, but must be finite")
        if not 0 <= self.span[0] < self.span[1] <= 1:
            raise GoodRtError(
                f"guidance's span must be (from, to) with 0 <= from < to <= 1, not {self.span}"
            )
        if self.band is not None and not self.band[0] < self.band[1]:
            raise GoodRtError(
                f"guidance's band must be (low, high) with low < high, not {self.band}"
            )

    @property
    def active(self) -> bool:
        """Whether the sampler needs any gradient at all."""
        return self.rho > 0 or self.mu > 0

    def guides(self, step: int, steps: int) -> bool:
        """Whether a step of the sampler is guided.

        Args:
            step: The step, from 0.
            steps: Number of steps.
        """
        first, last = (round(share * steps) for share in self.span)
        return self.active and first <= step < last and (step - first) % self.every == 0


@dataclass(frozen=True)
class BankConfig:
    """The feature discrepancy that guidance climbs, the ID features it is fitted on, and ℓ's two
    parameters.
    """

    feature: FeatureDiscrepancyName = setting(
        "knn_distance", "Discrepancy that feature-level guidance climbs."
    )
    k: int = setting(10, "Neighbour of the k-NN distance.", low=1)
    size: int = setting(
        BANK_SIZE,
        "ID images whose features the feature discrepancy is fitted on; beyond 20,000, guidance "
        "by k-NN distance with gradients by PyTorch only searches the nearest clusters.",
        low=1,
        key="bank_size",
    )
    temperature: float = setting(
        1.0, "Temperature T of the energy −T·logsumexp(f/T).", low=0, open_low=True
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)


@dataclass(frozen=True)
class BackendConfig:
    """What runs the networks, in which precision, and what computes the guidance's gradients."""

    engine: EngineName = setting(
        "onnx",
        "What runs network and decoder; tensorrt needs --device cuda and builds its plans for the "
        "GPU that is there.",
    )
    precision: Precision | None = setting(
        None,
        "Precision of network and decoder as engines on a GPU, bf16 only with tensorrt; gradients "
        "are always in fp32.",
        default_text="fp32",
    )
    gradients: Literal["auto", "engine", "torch"] = setting(
        "auto",
        "What computes the guidance's gradients: engines, PyTorch, or (auto) engines on the CPU "
        "where every operation has a gradient rule, else PyTorch.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        if self.engine == "torch":
            if self.precision is not None:
                raise GoodRtError(
                    "precision is for the engines onnx and tensorrt; torch computes in float32"
                )
            if self.gradients == "engine":
                raise GoodRtError('gradients = "engine" needs engine = "onnx" or "tensorrt"')
        if self.engine == "onnx" and self.precision == "bf16":
            # ONNX has no convolution in bf16 before opset 22
            raise GoodRtError("the engine onnx computes in fp32 or fp16; bf16 needs tensorrt")

    @property
    def uses_engines(self) -> bool:
        return self.engine != "torch"

    def __str__(self) -> str:
        """What a generated set records: "torch", "onnx", "onnx fp16", "tensorrt fp32", ..."""
        if self.engine == "torch" or (self.engine == "onnx" and self.precision in (None, "fp32")):
            return self.engine
        return f"{self.engine} {self.precision or 'fp32'}"


@dataclass(frozen=True)
class AcceptConfig:
    """Which generated images are kept; without any of these all are."""

    p_value: tuple[float, float] | None = setting(
        None,
        "Keep images whose ID p-value is between LOW and HIGH: the share of held-out ID images "
        "whose guided discrepancy is at least theirs.",
        low=0,
        high=1,
        key="accept_p_value",
        metavar="LOW HIGH",
    )
    energy: tuple[float, float] | None = setting(
        None,
        "Keep images whose energy is between LOW and HIGH.",
        key="accept_energy",
        metavar="LOW HIGH",
    )
    distance: tuple[float, float] | None = setting(
        None,
        "Keep images whose k-NN distance is between LOW and HIGH.",
        key="accept_distance",
        metavar="LOW HIGH",
    )
    gap: float = setting(
        0.0,
        "Keep images whose unit-norm feature is at least so far from that of every image kept "
        "before.",
        low=0,
        high=2,
        key="accept_gap",
    )
    balance: bool = setting(False, "Keep equally many images of every class.")
    budget: float = setting(
        10.0, "Stop with an error after so many samples for each image that is to be kept.", low=1
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        for name in ("p_value", "energy", "distance"):
            band = getattr(self, name)
            if band is not None and not band[0] < band[1]:
                raise GoodRtError(f"accept_{name} must be LOW HIGH with LOW < HIGH, not {band}")

    @property
    def active(self) -> bool:
        """Whether any image may be rejected."""
        bands = self.p_value, self.energy, self.distance
        return any(band is not None for band in bands) or self.gap > 0 or self.balance


@dataclass(frozen=True)
class GenerationConfig:
    """What is generated; together with the models it determines every image."""

    count: int = setting(256, "Images to generate.", low=1, short="-n")
    kind: GuidanceKind = setting(
        "both",
        "Level of the guidance: img (log-partition), feat (k-NN distance), both, or none.",
        option="--guidance",
    )
    guidance: GuidanceConfig = nested(GuidanceConfig)
    strengths: tuple[float, ...] = setting(
        (0.5, 1.0, 2.0),
        "Factors of μ and ρ that the images take in turn, from near to far OOD.",
    )
    bank: BankConfig = nested(BankConfig)
    sampler: SamplerConfig = nested(SamplerConfig)
    accept: AcceptConfig = nested(AcceptConfig)
    batch: int | Literal["auto"] = setting(
        32,
        "Images a batch, part of what determines an image's last bits with gradients by PyTorch; "
        "auto finds the fastest size by timing.",
        low=1,
        metavar="N|auto",
    )
    twins: bool = setting(
        False,
        "Also sample each image without guidance, for the manifest's columns `before`.",
        option="--twins/--no-twins",
    )
    backend: BackendConfig = nested(BackendConfig)
    seed: int = setting(0, "Seed of all randomness.", low=0)

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        if not self.strengths or not all(0 <= factor < math.inf for factor in self.strengths):
            raise GoodRtError(
                f"strengths must be one or more numbers of at least 0, not {self.strengths}"
            )
        if self.kind == "none":
            return
        steps, guidance = self.sampler.steps, self.guidance
        if not any(self.strengths):
            raise GoodRtError(
                "all strengths are 0, so nothing is guided; set one, or guidance none"
            )
        if not guidance.active:
            raise GoodRtError(
                "mu and rho are both 0, so nothing is guided; set one, or guidance none"
            )
        for first in self.sampler.first_steps:
            if not any(guidance.guides(step, steps) for step in range(first, steps)):
                raise GoodRtError(
                    f"span {guidance.span[0]:g} to {guidance.span[1]:g} holds none of the steps "
                    f"{first} to {steps - 1} that are sampled, so nothing is guided; widen it"
                )


@dataclass(frozen=True)
class TrainConfig:
    """The fine-tuning of the classifier, which an objective regularises with generated images."""

    steps: int = setting(
        450, "Optimiser steps.", low=1, option="--train-steps", renamed_from=("--steps",)
    )
    id_batch: int = setting(
        96, "ID images in each step; 192 with 128 OOD images train more steadily.", low=1
    )
    ood_batch: int = setting(64, "OOD images in each step.", low=1)
    shuffled_share: float = setting(
        0.0,
        "Share of the OOD images that are ID images with their patches in another order: far OOD "
        "that needs no generation.",
        low=0,
        high=1,
    )
    lr: float = setting(1.5e-3, "Peak learning rate of the classifier.", low=0)
    head_lr: float = setting(
        1e-2, "Peak learning rate of the head g of the objectives logistic and mahalanobis.", low=0
    )
    weight_decay: float = setting(1e-4, "Weight decay of AdamW.", low=0)
    objective: ObjectiveName = setting(
        "logistic",
        "What separates ID from generated images: a logistic loss of the energy (logistic), its "
        "squared hinge (hinge), uniform predictions for OOD images (uniform), a logistic loss of "
        "the Mahalanobis distances (mahalanobis), or a supervised contrastive loss (contrastive).",
    )
    weight: float | None = setting(
        None,
        "Weight w of the objective's regulariser.",
        low=0,
        default_text="3; 0.5 of uniform and contrastive",
    )
    decoded_share: float = setting(
        0.5,
        "Share of the ID batch that a decoder made, reconstructions and unguided samples, so that "
        '"looks decoded" does not mean OOD.',
        low=0,
        high=1,
    )
    balanced: bool = setting(False, "Draw ID images so that all classes are equally frequent.")
    augmentation: AugmentationName = setting(
        "auto",
        "How training images vary: mirrored (flip), moved by up to a sixteenth of their side "
        "(shift); auto uses what costs the original classifier at most a point of held-out "
        "accuracy.",
    )
    averaging: float = setting(
        0.98, "Decay of the moving average of the weights, which is what is kept.", low=0, high=1
    )
    interpolation: float = setting(
        0.4,
        "Interpolation weight between the original and the trained weights (Wortsman et al., arXiv "
        "2109.01903).",
        low=0,
        high=1,
        open_low=True,
    )
    evaluate_every: int = setting(
        150, "Steps between two validations, which also write the checkpoint.", low=1
    )
    max_accuracy_drop: float = setting(
        0.005,
        "Largest loss of held-out ID accuracy (a share) with which a state is kept.",
        low=0,
        high=1,
        key="max_drop",
    )
    bfloat16: bool | None = setting(
        None,
        "Run the network in bfloat16; its weights stay in float32.",
        option="--bfloat16/--float32",
        default_text="bfloat16 where the device multiplies in it",
    )
    seed: int = setting(0, "Seed of all randomness.", low=0)

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)


@dataclass(frozen=True)
class DetectorConfig:
    """The detector: its discrepancies, how one score is made of them, and the decision."""

    discrepancies: tuple[DiscrepancyName, ...] = setting(
        ("mahalanobis", "relative_mahalanobis"),
        "Discrepancy in the score; repeat it for more. knn_distance needs no classes, but a bank.",
        option="--discrepancy",
    )
    combination: CombinationName = setting(
        "sum",
        "How the standardised discrepancies become one score; logistic, gate and kl are fitted on "
        "generated images; kl takes energy first, then discrepancies of features.",
    )
    k: int = setting(1, "Neighbour of the k-NN distance; small ones suit small banks.", low=1)
    alpha: float = setting(
        0.05,
        "Largest share of ID inputs that may be refused.",
        low=0,
        high=1,
        open_low=True,
        open_high=True,
    )
    bank_size: int = setting(
        BANK_SIZE,
        "ID images whose features the discrepancies are fitted on; the bank of knn_distance.",
        low=1,
    )
    temperature: float = setting(
        1.0, "Temperature T of the energy −T·logsumexp(f/T).", low=0, open_low=True
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        if not self.discrepancies or len(set(self.discrepancies)) < len(self.discrepancies):
            raise GoodRtError("discrepancies must name one or more discrepancies, each once")
        if self.combination == "kl" and (
            self.discrepancies[0] != "energy" or len(self.discrepancies) == 1
        ):
            raise GoodRtError(
                "the combination kl weighs energy against discrepancies of features, but the "
                f"discrepancies are {', '.join(self.discrepancies)}; name energy first, then one "
                "or more others"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, and the detectors that it is measured with."""

    scores: tuple[str, ...] = setting(
        (),
        "Also measure the score of this installed plug-in; may be repeated.",
        option="--score",
        metavar="NAME",
    )
    peers: bool = setting(
        False,
        "Also measure post-hoc scores of other papers, at their published settings; needs the "
        "extra peers.",
    )
    detector_file: str | Path | None = setting(
        None,
        "The detector.onnx that is shipped: its settings are measured in place of those below, and "
        "its p-values compared.",
        option="--detector",
        metavar="PATH",
    )
    detector: DetectorConfig = nested(DetectorConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        if self.detector_file is not None and self.detector != DetectorConfig():
            raise GoodRtError(
                "--detector brings its own settings; leave out --discrepancy, --combination, --k, "
                "--alpha, --bank-size and --temperature"
            )


@dataclass(frozen=True)
class ExportConfig:
    """How graphs are exported and checked; None of a tolerance or the opset keeps the value of the
    export that is there, or takes the default."""

    opset: int | None = setting(None, "ONNX operator set.", low=18, high=23, default_text="20")
    relative: float | None = setting(None, "Relative tolerance.", low=0, default_text="0.001")
    absolute: float | None = setting(None, "Absolute tolerance.", low=0, default_text="0.0001")
    batches: tuple[int, ...] = setting(
        (1, 2, 5, 16),
        "Batch size of the parity check; repeat it for more, and take small ones where memory is "
        "short.",
        low=1,
        option="--parity-batch",
    )
    vjp: bool = setting(
        True,
        "Also export the graphs that compute gradients (vector-Jacobian products).",
        renamed_from=("--gradients/--no-gradients",),
    )
    force: bool = setting(False, "Export and build again even where nothing changed.")

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)
        if not self.batches:
            raise GoodRtError("batches must name one or more batch sizes of the parity check")
