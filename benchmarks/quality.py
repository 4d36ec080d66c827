"""Does training with guided images make a better detector, and than what? Every way of making
outliers, trained in the same way over several class splits and seeds, beside the best scores that
need no training.

    python benchmarks/quality.py models --split "T-shirt, trouser"   # hours; see the help
    python benchmarks/quality.py run --split development --seeds 0,1,2
    python benchmarks/quality.py run --split final --seeds 0,1,2,3,4
    python benchmarks/quality.py summary

It needs pytorch-ood and torchvision, as `.ci/run` installs them. The splits hold out two classes of
Fashion-MNIST each: no model of a split has seen its near-OOD classes. All choices, of recipes as of
settings, were made on the ``development`` splits and on validation sets; the ``final`` splits were
run with what had been chosen. Every finished training is kept in results/quality.json, and skipped
when the command is repeated.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

sys.path.append(str(Path(__file__).parents[1] / ".ci"))
import torchvision_operators  # noqa: F401  (before all that import torchvision)

# isort: split
import click
import numpy as np
import quality_figures as tables
import torch
from feature_outliers import FEATURE_OUTLIERS, FeatureOutlierClassifier
from numpy.typing import NDArray
from outliers import OUTLIERS, OutlierSource
from quality_figures import BY_CLASS, FAR_SETS, TRANSDUCTIVE, UNIFIED
from record import RESULTS, write_result
from torch import Tensor
from transductive import transductive_scores
from unified_score import validation_sets

from good_rt.classifier import Classifier, load_classifier, predict, save_classifier
from good_rt.config.settings import (
    AcceptConfig,
    BankConfig,
    DetectorConfig,
    GenerationConfig,
    GuidanceConfig,
    SamplerConfig,
    TrainConfig,
)
from good_rt.data.batches import half_rows, id_batches, id_features, id_part
from good_rt.data.generated_split import HELD_OUT_EVERY
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8, to_uint8
from good_rt.demo import assets
from good_rt.detector.module import measure
from good_rt.errors import GoodRtError
from good_rt.evaluation.metrics import detection_metrics
from good_rt.files import read_json, write_json
from good_rt.method.discrepancy import DISCREPANCIES, DiscrepancyConfig, fit_discrepancy
from good_rt.method.measurements import Measurements
from good_rt.method.objective import OBJECTIVES
from good_rt.method.training import accuracy, finetune
from good_rt.method.training_data import TrainingImages
from good_rt.method.unified import fit_unified
from good_rt.models import Models, ModelSpec
from good_rt.workflow.generate import generate
from good_rt.workflow.peers import peer_scores
from good_rt.workflow.train import decoded_images

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))

SHIPPED = "bag, ankle boot"
SPLITS = {
    SHIPPED: (8, 9),
    "T-shirt, trouser": (0, 1),
    "pullover, dress": (2, 3),
    "coat, sandal": (4, 5),
    "shirt, sneaker": (6, 7),
}
"""The near-OOD classes of every split; `SHIPPED` is that of the shipped demo models."""
GROUPS = {"development": tuple(SPLITS)[:2], "final": tuple(SPLITS)[2:]}
"""Choices see the development splits alone."""
MODEL_STEPS = {
    "classifier": 2_000, "vae": 500, "decoder": 1_500, "unet": 1_500, "detailed": 3_000,
    "light": 1_200,
}  # fmt: skip
"""Optimiser steps of the splits' own models (of the VAE, in each of its three phases): a fraction
of those of the shipped ones."""
PER_CLASS = 3_800
"""ID images of a class to train with, as many as the demo ships."""
COUNT = 900
"""Outliers of every way of making them; every fifth validates."""
UNGUIDED = 1_000
DECODED = 2_000
TRAINING = TrainConfig(
    steps=300,
    evaluate_every=100,
    max_accuracy_drop=0.005,
    interpolation=0.4,
    objective="logistic",
    shuffled_share=0.0,
)
"""Of every arm, but for what it changes; the default settings may become others."""
SAMPLER = SamplerConfig(steps=12, start="noise", cfg=1.4, cfg_sigma_max=2.0)
GOOD = GenerationConfig(
    count=COUNT, kind="img", guidance=GuidanceConfig(mu=0.2), sampler=SAMPLER, batch=50
)
FROM_ID = replace(SAMPLER, start="id")
SECOND_ROUND = "GOOD, image, from ID, second round"
FIRST_ROUND = "GOOD, image, from ID; 1,800 outliers"
"""The arm whose classifier guides the second round."""
RARE = AcceptConfig(p_value=(0.0, 0.1))
RELATIVE = BankConfig(feature="relative_mahalanobis")
GUIDED: dict[str, GenerationConfig] = {
    "GOOD, image": GOOD,
    "GOOD, feature": replace(GOOD, kind="feat"),
    "GOOD, both": replace(GOOD, kind="both"),
    "GOOD, image, from ID": replace(GOOD, sampler=FROM_ID),
    "GOOD, both, from ID": replace(GOOD, kind="both", sampler=FROM_ID),
    "GOOD, image, filtered": replace(GOOD, accept=RARE),
    "GOOD, image, from ID, filtered": replace(GOOD, sampler=FROM_ID, accept=RARE),
    "GOOD, relative Mahalanobis": replace(GOOD, kind="feat", bank=RELATIVE),
    "GOOD, both with relative Mahalanobis": replace(GOOD, kind="both", bank=RELATIVE),
    SECOND_ROUND: replace(GOOD, sampler=FROM_ID),
    **{
        f"GOOD, {title}, from ID, μ = {mu}": replace(
            GOOD, kind=kind, guidance=GuidanceConfig(mu=mu), sampler=FROM_ID
        )
        for title, kind in (("image", "img"), ("feature", "feat"), ("both", "both"))
        for mu in (0.05, 0.1)
    },
    "semantic edit": replace(GOOD, kind="none", sampler=replace(FROM_ID, cfg=-2.0)),
    "unguided": replace(GOOD, kind="none"),
    "unguided, filtered": replace(GOOD, kind="none", accept=replace(RARE, budget=100.0)),
}
"""Outliers that the product generates. A *semantic edit* is an ID image, noised,
and sampled away from its own class: the idea of SONA (arXiv 2408.14841), which keeps an image's
nuisance and changes its meaning, without its masks and texts."""


@dataclass(frozen=True)
class Arm:
    """One training that is compared.

    Attributes:
        outliers: The ways of making outliers, with equal shares; none for the control.
        training: Settings that differ from `TRAINING`.
        count: Outliers in all.
        id_samples: What the unguided samples start from that are trained with as ID; None for a
            training without any.
    """

    outliers: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    count: int = COUNT
    id_samples: Literal["noise", "id"] | None = "noise"


LARGE = ("semantic edit", "unguided", "GOOD, image", "GOOD, image, from ID", "GOOD, both")
"""Generated outliers that are also tried in a larger number."""

ARMS: dict[str, Arm] = {
    "control": Arm(),
    **{name: Arm((name,)) for name in (*OUTLIERS, *FEATURE_OUTLIERS, *GUIDED)},
    "GOOD, image + patch shuffle": Arm(("GOOD, image", "patch shuffle")),
    "GOOD, image + mix-up": Arm(("GOOD, image", "mix-up")),
    "GOOD, image; interpolation 0.7": Arm(("GOOD, image",), {"interpolation": 0.7}),
    "GOOD, image; interpolation 1": Arm(("GOOD, image",), {"interpolation": 1.0}),
    "GOOD, image; 900 steps": Arm(("GOOD, image",), {"steps": 900, "evaluate_every": 300}),
    **{f"{name}; 3,600 outliers": Arm((name,), count=3_600) for name in (*OUTLIERS, *LARGE)},
    FIRST_ROUND: Arm(("GOOD, image, from ID",), count=1_800),
    f"{FIRST_ROUND}, no ID samples": Arm(("GOOD, image, from ID",), {}, 1_800, None),
    f"{FIRST_ROUND}, ID samples from ID": Arm(("GOOD, image, from ID",), {}, 1_800, "id"),
    **{f"{name}; 1,800 outliers": Arm((name,), count=1_800) for name in GUIDED if "μ = " in name},
    "GOOD, image, from ID; 3,600 outliers, two rounds": Arm(
        ("GOOD, image, from ID", SECOND_ROUND), count=3_600
    ),
    "GOOD, image; 3,600 outliers, 25% shuffled": Arm(
        ("GOOD, image",), {"shuffled_share": 0.25}, 3_600
    ),
    "GOOD, image, from ID; 3,600 outliers, 6% shuffled": Arm(
        ("GOOD, image, from ID",), {"shuffled_share": 0.0625}, 3_600
    ),
    "GOOD, image, from ID; 3,600 outliers, contrastive": Arm(
        ("GOOD, image, from ID",), {"objective": "contrastive"}, 3_600
    ),
    "GOOD, image; 3,600 outliers, 900 steps": Arm(
        ("GOOD, image",), {"steps": 900, "evaluate_every": 300}, 3_600
    ),
    "GOOD, image; 10,800 outliers": Arm(("GOOD, image",), count=10_800),
    **{
        f"GOOD, image; {share:.0%} shuffled": Arm(("GOOD, image",), {"shuffled_share": share})
        for share in (0.125, 0.25, 0.5)
    },
    **{
        f"GOOD, image; objective {name}": Arm(("GOOD, image",), {"objective": name})
        for name in OBJECTIVES
        if name != "logistic"
    },
}

RECIPE = "GOOD, image, from ID; 3,600 outliers"
"""The training that is recommended, as chosen on the development split."""


@dataclass(frozen=True)
class Split:
    """A class split: its models, images and test sets."""

    name: str
    work: Path

    @property
    def near(self) -> tuple[int, int]:
        return SPLITS[self.name]

    @property
    def folder(self) -> Path:
        return self.work / "-".join(map(str, self.near))

    @cached_property
    def models(self) -> Models:
        if self.name == SHIPPED:
            spec = ModelSpec(assets.CLASSIFIER, assets.MODEL, assets.GRADIENT_DECODER)
        else:
            models = self.folder / "models"
            if not models.exists():
                raise click.ClickException(
                    f"{models} does not exist; run: python benchmarks/quality.py models "
                    f"--split '{self.name}'"
                )
            spec = ModelSpec(
                models / "classifier", models / "diffusion", models / "gradient_decoder"
            )
        return spec.load()

    @cached_property
    def data(self) -> IdData:
        """The ID images; those of other splits are written as the demo's are."""
        if self.name == SHIPPED:
            return IdData(assets.DATA)
        import fashion_mnist

        folder = self.folder / "data"
        if not (folder / "test.npz").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for part, split in fashion_mnist.load(near=self.near).items():
                rows = np.concatenate(
                    [np.flatnonzero(split.labels == label)[:PER_CLASS] for label in range(8)]
                )
                rows = np.random.default_rng(0).permutation(rows)
                np.savez(
                    folder / f"{part}.npz", images=split.images[rows], labels=split.labels[rows]
                )
        return IdData(folder)

    def test_sets(self) -> dict[str, NDArray[np.uint8]]:
        """OOD test images by name."""
        import fashion_mnist

        if self.name == SHIPPED:
            near = assets.load_images("near").images
        else:
            near = fashion_mnist.near_ood(near=self.near).images[..., None]
        far = {name: assets.load_images(name).images for name in FAR_SETS if name != "glyphs"}
        return {"near": near, **far, "glyphs": glyphs()}

    def images(self) -> dict[str, Tensor]:
        """Every set that is measured: ID parts, validation sets, test sets."""
        classifier = self.models.classifier
        known, others = half_rows(self.data, "held_out")
        held_out = id_part(self.data, "held_out", classifier, rows=others)
        sets = {
            "fit": torch.cat(list(id_batches(self.data, "held_out", classifier, rows=known))),
            "validation ID": from_uint8(held_out.images),
            "test ID": from_uint8(id_part(self.data, "test", classifier).images),
        }
        for name, images in (validation_sets(held_out) | self.test_sets()).items():
            sets[name] = from_uint8(images)
        return sets


def glyphs(size: int = 32) -> NDArray[np.uint8]:
    """Characters of the fonts that matplotlib ships, white on black: (N, 32, 32, 1)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    characters = [chr(code) for code in (*range(0x391, 0x3A2), *range(0x410, 0x450))]
    drawn = []
    for name in ("DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSerif"):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 26)
        for character in characters:
            image = Image.new("L", (size, size))
            draw = ImageDraw.Draw(image)
            draw.text((size // 2, size // 2), character, fill=255, font=font, anchor="mm")
            drawn.append(np.asarray(image))
    return np.stack(drawn)[..., None]


@dataclass(frozen=True)
class Study:
    """A split with one seed: outliers, trainings, figures."""

    split: Split
    seed: int

    @property
    def folder(self) -> Path:
        return self.split.folder / f"seed-{self.seed}"

    def outliers(self, name: str, count: int = COUNT) -> Tensor:
        """(count, C, H, W) outliers of one way, made once; ID images in the place of those that are
        drawn among features."""
        if name in FEATURE_OUTLIERS:
            return self._source.draw(count, torch.Generator().manual_seed(self.seed))[0]
        return from_uint8(self._outlier_images(name, count))[:count]

    def _outlier_images(self, name: str, count: int) -> NDArray[np.uint8]:
        if name in GUIDED:
            config = replace(GUIDED[name], seed=1_000 * self.seed, count=max(count, COUNT))
            out = self.folder / "generated" / _slug(name)
            models, engines = self.split.models, self.split.folder / "engines"
            if name == SECOND_ROUND:
                config = replace(config, seed=config.seed + 1)
                models, engines = replace(models, classifier=self._first_round), out / "engines"
            generated = generate(models, self.split.data, out, config, engines)
            return generated.images(generated.rows())
        path = self.folder / f"{_slug(name)}-{count}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = OUTLIERS[name](self._source, count, torch.Generator().manual_seed(self.seed))
            np.save(path, to_uint8(made))
        return np.load(path)

    @property
    def _first_round(self) -> Classifier:
        key = key_of(self.split.name, self.seed, ARMS[FIRST_ROUND])
        path = self.split.work / "arms" / key
        if not path.exists():
            raise click.ClickException(f"{path} does not exist; run the arm '{FIRST_ROUND}' first")
        return load_classifier(str(path))

    @cached_property
    def _source(self) -> OutlierSource:
        models = self.split.models
        known = id_part(self.split.data, "train", models.classifier)
        assert known.labels is not None
        return OutlierSource(models, from_uint8(known.images), torch.from_numpy(known.labels))

    def training_images(self, arm: Arm) -> TrainingImages:
        """What an arm trains with; all but the outliers is the same for every arm, but that
        unguided samples are not ID where they are the outliers."""
        base = self._base
        if arm.id_samples != "noise":
            base = replace(base, **self._id_samples(arm.id_samples))
        if not arm.outliers:
            return base.control
        share = arm.count // len(arm.outliers)
        # an outlier's place decides whether it validates, so that several ways have equal shares
        made = torch.cat([self.outliers(name, share) for name in arm.outliers])
        validates = torch.arange(len(made)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        images = replace(base, ood=made[~validates], val_ood=made[validates])
        if any(name.startswith("unguided") for name in arm.outliers):
            images = replace(images, unguided=None, unguided_labels=None)
        return images

    @cached_property
    def _base(self) -> TrainingImages:
        source, models = self._source, self.split.models
        known, _ = half_rows(self.split.data, "held_out")
        validation = id_part(self.split.data, "held_out", models.classifier, rows=known)
        assert validation.labels is not None
        path = self.split.folder / "decoded.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            decoded = decoded_images(models.diffusion, source.images[:DECODED])
            assert decoded is not None
            np.save(path, to_uint8(decoded))
        return TrainingImages(
            images=source.images,
            labels=source.labels,
            val_images=from_uint8(validation.images),
            val_labels=torch.from_numpy(validation.labels),
            decoded=from_uint8(np.load(path)),
            **self._id_samples("noise"),
        )

    def _id_samples(self, start: Literal["noise", "id"] | None) -> dict[str, Tensor | None]:
        """Unguided samples as `TrainingImages` has them."""
        if start is None:
            return {"unguided": None, "unguided_labels": None}
        models, engines = self.split.models, self.split.folder / "engines"
        config = replace(GOOD, kind="none", count=UNGUIDED, seed=1_000 * self.seed + 500)
        config = replace(config, sampler=replace(SAMPLER, start=start))
        out = (
            self.folder / "generated" / ("id-samples" if start == "noise" else "id-samples-from-id")
        )
        generated = generate(models, self.split.data, out, config, engines)
        unguided = from_uint8(generated.images(generated.rows()))
        labels = predict(models.classifier, unguided)[0].argmax(dim=1)
        return {"unguided": unguided, "unguided_labels": labels}

    def measured(self, arm: Arm, path: Path) -> dict[str, Any]:
        """Trains one arm; writes what every set measures to ``path``."""
        config = replace(TRAINING, seed=self.seed, **arm.training)
        classifier, images = self.split.models.classifier, self.training_images(arm)
        if draw := FEATURE_OUTLIERS.get("".join(arm.outliers)):
            classifier = FeatureOutlierClassifier(classifier, draw, config.id_batch, self.seed)
        try:
            result = finetune(classifier, images, config)
        except GoodRtError as error:
            if not str(error).startswith("training failed"):
                raise
            return {"failed": str(error)}  # no state kept the accuracy: a result as well
        save_classifier(result.classifier, path.with_suffix(""))
        return {
            "kept_step": result.kept_step,
            **measure_split(self.split, result.classifier, path),
        }


def measure_split(split: Split, classifier: Classifier, path: Path) -> dict[str, Any]:
    """Test accuracy; the logits and discrepancies of every set go to the .npz file ``path``."""
    features = id_features(split.data, classifier, DetectorConfig().bank_size)
    every = [fit_discrepancy(name, features, DiscrepancyConfig()) for name in DISCREPANCIES]
    arrays = {}
    for name, images in _images(split).items():
        measured = measure(classifier, every, images)
        arrays[f"{name}/logits"] = measured.logits
        for discrepancy, values in measured.discrepancies.items():
            arrays[f"{name}/{discrepancy}"] = values.astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    labels = id_part(split.data, "test", classifier).labels
    assert labels is not None
    logits = torch.from_numpy(arrays["test ID/logits"])
    return {"accuracy": accuracy(logits, torch.from_numpy(labels))}


def read_measurements(path: Path) -> dict[str, Measurements]:
    """What `measure_split` wrote, by set."""
    with np.load(path) as file:
        names = dict.fromkeys(key.partition("/")[0] for key in file.files)
        return {
            name: Measurements(
                file[f"{name}/logits"],
                {one: file[f"{name}/{one}"].astype(np.float64) for one in DISCREPANCIES},
            )
            for name in names
        }


def scores_of(sets: Mapping[str, Measurements]) -> dict[str, dict[str, list[float]]]:
    """By score and set: [FPR95, AUROC, AUPR-out]. Scores "by class" have a scale for each class, as
    the detector's has; the others have one for all, as they were published. `TRANSDUCTIVE` has seen
    the test sets, and is not measured on the validation sets."""
    default, one_scale = DetectorConfig(), {name: _one_class(of) for name, of in sets.items()}
    scores = {}
    for name in DISCREPANCIES:
        scores[name] = _by_set(one_scale, (name,), "sum")
        scores[f"{name}{BY_CLASS}"] = _by_set(sets, (name,), "sum")
    for name in ("near", *FAR_SETS):
        known, ood = (sets[of].discrepancies for of in ("test ID", name))
        seen = transductive_scores(
            known["energy"], known["knn_distance"], ood["energy"], ood["knn_distance"]
        )
        scores.setdefault(TRANSDUCTIVE, {})[name] = _figures(seen.id, seen.ood)
    parts, kind = default.discrepancies, default.combination
    scores[f"{kind} of {' + '.join(parts)}"] = _by_set(one_scale, parts, kind)
    return {**scores, UNIFIED: _by_set(sets, parts, kind)}


def _one_class(measured: Measurements) -> Measurements:
    """The same, as if the classifier had one class."""
    return Measurements(np.zeros((len(measured.logits), 1), np.float32), measured.discrepancies)


def _by_set(
    sets: Mapping[str, Measurements], names: tuple[str, ...], kind: str
) -> dict[str, list[float]]:
    score = fit_unified(names, sets["fit"], kind)
    values = {name: score.of(measured) for name, measured in sets.items()}
    known = {"near": "test ID", **dict.fromkeys(FAR_SETS, "test ID")}
    return {
        name: _figures(values[known.get(name, "validation ID")], values[name])
        for name in sets
        if name not in ("fit", "validation ID", "test ID")
    }


def _figures(known: NDArray[np.float64], ood: NDArray[np.float64]) -> list[float]:
    metrics = detection_metrics(known, ood)
    return [round(value, 5) for value in (metrics.fpr95, metrics.auroc, metrics.aupr_out)]


def measure_original(split: Split, path: Path) -> dict[str, Any]:
    """The original classifier as `measure_split`, and the post-hoc peers' figures."""
    classifier = split.models.classifier
    known = id_part(split.data, "train", classifier, DetectorConfig().bank_size)
    assert known.labels is not None
    test = id_part(split.data, "test", classifier).images
    scored = peer_scores(
        classifier, known.images, known.labels, {"test ID": test, **split.test_sets()}
    )
    peers = {
        name: {of: _figures(values["test ID"], values[of]) for of in ("near", *FAR_SETS)}
        for name, values in scored.scores.items()
    }
    return {**measure_split(split, classifier, path), "peers": peers}


_CACHE: dict[str, dict[str, Tensor]] = {}


def _images(split: Split) -> dict[str, Tensor]:
    if split.name not in _CACHE:
        _CACHE.clear()
        _CACHE[split.name] = split.images()
    return _CACHE[split.name]


def _slug(name: str) -> str:
    return name.replace(",", "").replace("+", "and").replace(" ", "-").lower()


def key_of(split: str, seed: int, arm: Arm) -> str:
    """A hash of everything that an arm's figures depend on, the code apart."""
    recipes = {name: asdict(GUIDED[name]) for name in arm.outliers if name in GUIDED}
    described = {k: v for k, v in asdict(arm).items() if (k, v) != ("id_samples", "noise")}
    parts = (split, seed, described, asdict(TRAINING), recipes, COUNT, UNGUIDED, DECODED)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Finished:
    """The figures of finished arms: in a work folder, and those of results/quality.json."""

    work: Path

    @cached_property
    def _committed(self) -> dict[str, Any]:
        path = RESULTS / "quality.json"
        found = read_json(path)["figures"]["arms"] if path.exists() else []
        return {entry["key"]: entry for entry in found}

    def get(
        self, key: str, about: Mapping[str, Any], measure: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any]:
        """The figures of a key; ``measure`` writes measurements where they are missing."""
        path = self.work / "arms" / f"{key}.json"
        if not path.exists():
            if key in self._committed:
                return dict(self._committed[key])
            write_json(path, {"key": key, **about, **measure(path.with_suffix(".npz"))})
        entry = read_json(path)
        if path.with_suffix(".npz").exists():
            scores = scores_of(read_measurements(path.with_suffix(".npz")))
            entry["scores"] = scores | entry.pop("peers", {})
        return entry

    def entries(self) -> list[dict[str, Any]]:
        """All of them, with split, seed and arm."""
        keys = {path.stem for path in (self.work / "arms").glob("*.json")} | set(self._committed)
        return [self.get(key, {}, _missing) for key in sorted(keys)]


def _missing(path: Path) -> dict[str, Any]:
    raise AssertionError(f"{path} was there")


work_option = click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/quality"), show_default=True,
    help="Folder of models, images and figures.",
)  # fmt: skip
threads_option = click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of PyTorch."
)


@click.group()
def main() -> None:
    """Detection by every way of making outliers, over splits and seeds."""


@main.command()
@work_option
@threads_option
@click.option("--split", "name", type=click.Choice([*SPLITS][1:]), required=True)
def models(work: Path, threads: int, name: str) -> None:
    """Trains a split's classifier, autoencoders and diffusion model: half an hour on two cores."""
    import package_demo_models
    import train_demo_models

    split = Split(name, work)
    near, out = [str(label) for label in split.near], split.folder / "training"
    common = ["--out", str(out), "--near", *near, "--threads", str(threads)]
    for stage, steps in MODEL_STEPS.items():
        train_demo_models.main([stage, *common, "--steps", str(steps)], standalone_mode=False)
    package_demo_models.main(
        ["--source", str(out), "--out", str(split.folder / "models"), "--near", *near],
        standalone_mode=False,
    )


@main.command()
@work_option
@threads_option
@click.option(
    "--split", "chosen_splits", type=click.Choice([*GROUPS, *SPLITS]), multiple=True,
    default=["development"], show_default=True, help="Repeat it for more.",
)  # fmt: skip
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option(
    "--arm",
    "chosen",
    multiple=True,
    type=click.Choice(list(ARMS)),
    metavar="ARM",
    help="Only these arms; repeat it for more.",
)
def run(
    work: Path, threads: int, chosen_splits: tuple[str, ...], seeds: str, chosen: tuple[str, ...]
) -> None:
    """Trains and measures every arm that is not finished."""
    torch.set_num_threads(threads)
    finished = Finished(work)
    names = [name for of in chosen_splits for name in GROUPS.get(of, (of,))]
    for seed in map(int, seeds.split(",")):
        for name in names:
            split = Split(name, work)
            study = Study(split, seed)
            about = {"split": name, "seed": -1, "arm": "original"}
            original = finished.get(
                key_of(name, -1, Arm()), about, partial(measure_original, split)
            )
            click.echo(_line(original))
            for arm_name in chosen or ARMS:
                arm = ARMS[arm_name]
                about = {"split": name, "seed": seed, "arm": arm_name}
                entry = finished.get(key_of(name, seed, arm), about, partial(study.measured, arm))
                click.echo(_line(entry))
            gc.collect()


def _line(entry: Mapping[str, Any]) -> str:
    head = f"{entry['split']} {entry['seed']} {entry['arm']}"
    if "failed" in entry:
        return f"{head}: {entry['failed']}"
    of = entry["scores"]
    parts = []
    for score in (UNIFIED, "relative_mahalanobis", "energy"):
        far = float(np.mean([of[score][name][0] for name in FAR_SETS]))
        parts.append(f"{score} {100 * of[score]['near'][0]:.1f}/{100 * far:.1f}")
    others = [v[0] for n, v in of[UNIFIED].items() if n not in ("near", *FAR_SETS)]
    return (
        f"{head}: {', '.join(parts)}; validation {100 * float(np.mean(others)):.1f}; "
        f"accuracy {100 * entry['accuracy']:.2f}"
    )


@main.command()
@work_option
def summary(work: Path) -> None:
    """Writes results/quality.json and docs/quality.png from what is finished."""
    entries = sorted(Finished(work).entries(), key=lambda e: (e["split"], e["seed"], e["arm"]))
    of_splits = {
        **{name: [e for e in entries if e["split"] == name] for name in GROUPS["development"]},
        "final": [entry for entry in entries if entry["split"] in GROUPS["final"]],
    }
    final = of_splits["final"]
    figures = {
        "near_classes": SPLITS,
        "training": asdict(TRAINING),
        "count": COUNT,
        "recipe": RECIPE,
        "peers": {name: tables.peers(of) for name, of in of_splits.items()},
        "trainings": {name: tables.trainings(of) for name, of in of_splits.items()},
        "arms": entries,
    }
    rivals = [name for name in ARMS if name.endswith(RECIPE.partition(";")[2])]
    rivals = [name for name in rivals if not name.startswith("GOOD")] + [*FEATURE_OUTLIERS]
    write_result("quality", figures, tables.targets(final, RECIPE, rivals))
    tables.draw(final or entries, ROOT / "docs" / "quality.png")


if __name__ == "__main__":
    main()
