"""`good-rt demo` measured: time, memory, the shipped models, the guidance, and detection over three
seeds.

    python benchmarks/demo.py --work build/demo-benchmark

Runs the command itself in processes of its own; an interrupted benchmark resumes in the same
folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from frechet import frechet_distance
from numpy.typing import NDArray
from record import Bar, kept, measured, write_result
from refusals import refusal_interval

from good_rt.classifier import Classifier, load_classifier
from good_rt.config.settings import BackendConfig, GenerationConfig, SamplerConfig
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8, to_uint8
from good_rt.data.splits import SPLITS_FILE
from good_rt.demo import assets
from good_rt.detector.runtime import Detector
from good_rt.evaluation.results import MEAN, Evaluation, Refusal
from good_rt.export.detector import detector_parity
from good_rt.files import read_json
from good_rt.models import ModelSpec
from good_rt.workflow.detector import detector_for
from good_rt.workflow.evaluate import ALPHAS, measure_images
from good_rt.workflow.generator import make_generator
from good_rt.workflow.job_file import Job
from good_rt.workflow.train import decoded_images

ROOT = Path(__file__).parents[1]
KINDS = ("img", "feat", "both")
SCORES = ("Energy", "k-NN", "Unified")
FRECHET_IMAGES = 2_000
FRECHET_SAMPLER = SamplerConfig(steps=25, eta=0.0, cfg=1.6, cfg_sigma_max=2.0)
"""How the unguided samples are made whose Fréchet distance is measured, beside those of the demo's
fewer steps. The scale was chosen by the distance to the held-out images, not to the test images."""
FRECHET_SEEDS = (1_000, 2_000, 3_000)
"""The distance of so few samples varies by a tenth from seed to seed: the mean over these is
compared."""
SHIPPED = ModelSpec(assets.CLASSIFIER, assets.MODEL)
PYTORCH = BackendConfig("torch")


def time_scoring(detector: Path, image: Path, work: Path, runs: int = 5) -> list[float]:
    """Seconds of `good-rt detector score` on one image, from process start, in an environment with
    the base install."""
    folder = work / "base-install"
    command = [
        str(folder / "bin" / "good-rt"),
        "detector",
        "score",
        str(image),
        "--detector",
        str(detector),
        "--json",
    ]
    if not folder.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", str(ROOT)], check=True)
    assert not list(folder.glob("lib/*/site-packages/torch")), (
        "the base install must not bring torch"
    )
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return seconds


def raw_features(classifier: Classifier, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Penultimate features before they are normalised, (N, D)."""
    with torch.no_grad():
        parts = [
            classifier.network.forward_features(part) for part in from_uint8(images).split(500)
        ]  # type: ignore[operator]
    return torch.cat(parts).double().numpy()


def measure_models() -> dict[str, Any]:
    """The shipped models on real test images, and unguided samples against them."""
    models = SHIPPED.load()
    classifier, model = models.classifier, models.diffusion
    train, test = assets.load_images("train"), assets.load_images("test")
    assert test.labels is not None
    pixels = from_uint8(test.images)
    with torch.no_grad():
        guesses = torch.cat([classifier(part)[0].argmax(1) for part in pixels.split(500)]).numpy()
    decoded = decoded_images(model, pixels)
    assert decoded is not None
    of_test = raw_features(classifier, test.images)

    def of_samples(seed: int, sampler: SamplerConfig, batch: int = 100) -> float:
        config = GenerationConfig(
            FRECHET_IMAGES, "none", sampler=sampler, batch=batch, backend=PYTORCH, seed=seed
        )
        generator = make_generator(models, IdData(assets.DATA), config)
        batches = range(0, FRECHET_IMAGES, batch)
        samples = np.concatenate(
            [generator.images(config, list(range(first, first + batch))) for first in batches]
        )
        return frechet_distance(of_test, raw_features(classifier, samples))

    of_seeds = [of_samples(seed, FRECHET_SAMPLER) for seed in FRECHET_SEEDS]
    of_demo = of_samples(FRECHET_SEEDS[0], Job.read(assets.JOB).config.generate.config.sampler)
    return {
        "accuracy": float((guesses == test.labels).mean()),
        "vae_mse": float((decoded - pixels).square().mean()),
        "frechet_train": frechet_distance(
            of_test, raw_features(classifier, train.images[:FRECHET_IMAGES])
        ),
        "frechet_reconstructions": frechet_distance(
            of_test, raw_features(classifier, to_uint8(decoded))
        ),
        "frechet_samples": float(np.mean(of_seeds)),
        "frechet_seeds": dict(zip(map(str, FRECHET_SEEDS), of_seeds, strict=True)),
        "frechet_demo_samples": of_demo,
        "frechet_sampling": {
            "steps": FRECHET_SAMPLER.steps,
            "cfg_scale": FRECHET_SAMPLER.cfg,
            "cfg_sigma_max": FRECHET_SAMPLER.cfg_sigma_max,
            "eta": FRECHET_SAMPLER.eta,
        },
        "frechet_images": FRECHET_IMAGES,
        "assets_mb": sum(path.stat().st_size for path in assets.ASSETS.rglob("*") if path.is_file())
        / 1e6,
    }


def models_path(work: Path) -> Path:
    """Where the figures of these very models are kept."""
    fingerprints = SHIPPED.load().fingerprints
    return work / f"models-{'-'.join(hashed[:12] for hashed in fingerprints.values())}.json"


def measure_guidance(out: Path) -> dict[str, float]:
    """How far guided samples moved from the unguided ones, in standard deviations over held-out ID
    images."""
    rows = {kind: GeneratedSet(out / "generated" / kind).rows() for kind in ("none", *KINDS)}
    config = GenerationConfig(1, backend=PYTORCH)
    scales = make_generator(SHIPPED.load(), IdData(out / SPLITS_FILE), config).scales
    energy = {kind: np.mean([row.energy for row in of_kind]) for kind, of_kind in rows.items()}
    distance = {
        kind: np.mean([row.knn_distance for row in of_kind]) for kind, of_kind in rows.items()
    }
    shifts = {
        f"logsumexp_{kind}": (energy[kind] - energy["none"]) / scales.image_std for kind in KINDS
    }
    shifts |= {
        f"knn_distance_{kind}": (distance[kind] - distance["none"]) / scales.feature_std
        for kind in KINDS
    }
    return {name: float(value) for name, value in shifts.items()}


def detection_of(evaluation: Evaluation) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """FPR at 95 % ID recall and AUROC, by score, classifier and OOD set."""
    return {
        score: {
            model: {
                name: {"fpr95": metrics.fpr95, "auroc": metrics.auroc}
                for name in evaluation.ood_sets
                for metrics in (evaluation.row(model, score, name).metrics,)
            }
            for model in evaluation.models
        }
        for score in SCORES
    }


def measure_seed(out: Path) -> dict[str, Any]:
    """One run's detection figures, and its file against PyTorch over every test image."""
    evaluation = Evaluation.from_json(read_json(out / "evaluation.json"))
    guided = [out / "generated" / kind for kind in KINDS]
    module = detector_for(
        load_classifier(out / "trained" / "classifier"), IdData(out / SPLITS_FILE), guided
    )
    sets = {name: assets.load_images(name).images for name in ("test", *assets.OOD_TEST_SETS)}
    everything = np.concatenate(list(sets.values()))
    parity = detector_parity(module, out / "detector.onnx", (from_uint8(everything) + 1) / 2)
    p_values = Detector(out / "detector.onnx").score(sets["test"], batch=250).p_value
    history = read_json(out / "trained" / "training.json")["history"]
    validation = assets.load_images(assets.VALIDATION_SET).images
    scores = module.scores(measure_images(module, module.discrepancies, validation))
    refused = module.p_values(scores) <= 0.05
    return {
        "detection": detection_of(evaluation),
        "auroc": {
            score: {
                name: evaluation.row("trained", score, name).metrics.auroc
                for name in (*evaluation.ood_sets, MEAN)
            }
            for score in evaluation.scores
        },
        "id_accuracy": {model: share.rate for model, share in evaluation.id_accuracy.items()},
        "refusal": {
            str(alpha): {
                "rate": refusal.share.rate,
                "low": refusal.share.low,
                "high": refusal.share.high,
                "by_chance": refusal_interval(alpha, len(module.calibration), refusal.share.n),
            }
            for alpha, refusal in ((alpha, Refusal.at(alpha, p_values)) for alpha in ALPHAS)
        },
        "parity": parity.to_json(),
        "validation_refused": float(refused.mean()),
        "training_end": {"ce": history[-1]["ce"], "regulariser": history[-1]["regulariser"]},
        "score": module.unified.to_json(),
    }


def bars_of(figures: dict[str, Any]) -> list[Bar]:
    """Every bar, over all seeds by the worst of them."""
    models, shifts, runs = figures["models"], figures["guidance"], figures["seeds"]
    bars = [
        Bar("demo: seconds", max(run["seconds"] for run in figures["runs"]), "<=", 300),
        Bar("demo: peak memory, GiB", max(run["peak_gib"] for run in figures["runs"]), "<=", 4),
        Bar(
            "detector score of one image: seconds, median",
            float(np.median(figures["score_seconds"])),
            "<=",
            1.5,
        ),
        Bar("classifier: test accuracy", models["accuracy"], ">=", 0.93),
        Bar("VAE: test MSE on [-1, 1]", models["vae_mse"], "<=", 0.006),
        Bar("samples: Fréchet ratio", models["frechet_samples"] / models["frechet_train"], "<=", 3),
        Bar("shipped files, MB", models["assets_mb"], "<=", 30),
        Bar("image-level guidance: fall of logsumexp, ID std", shifts["logsumexp_img"], ">=", 1.5),
        Bar(
            "feature-level guidance: rise of k-NN distance, ID std",
            shifts["knn_distance_feat"],
            ">=",
            1.5,
        ),
    ]
    for seed, run in runs.items():
        for score in ("Energy", "Unified"):
            near = {model: sets["near"] for model, sets in run["detection"][score].items()}
            for other in ("before", "control"):
                fall = 1 - near["trained"]["fpr95"] / near[other]["fpr95"]
                rise = near["trained"]["auroc"] - near[other]["auroc"]
                bars.append(
                    Bar(
                        f"seed {seed}, {score}: near FPR95 falls against {other}, relative",
                        fall,
                        ">=",
                        0.3,
                    )
                )
                bars.append(
                    Bar(f"seed {seed}, {score}: near AUROC rises against {other}", rise, ">=", 0)
                )
        drop = round(
            run["id_accuracy"]["before"] - run["id_accuracy"]["trained"], 9
        )  # of counts: 0.5 points are 0.005
        bars.append(Bar(f"seed {seed}: loss of ID accuracy", drop, "<=", 0.005))
        energy, knn, unified = (run["auroc"][name] for name in ("Energy", "k-NN", "Unified"))
        behind = {name: max(energy[name], knn[name]) - unified[name] for name in unified}
        ahead = -behind.pop(MEAN)
        bars += [
            Bar(
                f"seed {seed}: unified AUROC behind the better one, worst set",
                max(behind.values()),
                "<=",
                0.01,
            ),
            Bar(
                f"seed {seed}: unified AUROC ahead of the better one, mean over sets",
                ahead,
                ">=",
                0,
            ),
        ]
        for alpha, refusal in run["refusal"].items():
            inside = float(refusal["low"] <= float(alpha) <= refusal["high"])
            bars.append(
                Bar(
                    f"seed {seed}: ID refusal at {alpha} agrees with it (binomial interval)",
                    inside,
                    "==",
                    1,
                )
            )
            low, high = refusal["by_chance"]
            inside = float(low <= refusal["rate"] <= high)
            bars.append(
                Bar(
                    f"seed {seed}: ID refusal at {alpha} is one that chance allows", inside, "==", 1
                )
            )
        parity = run["parity"]
        differ = parity["class_disagreements"] + parity["ood_disagreements"]
        bars += [
            Bar(f"seed {seed}: labels that differ, file against PyTorch", differ, "==", 0),
            Bar(
                f"seed {seed}: score, file against PyTorch, relative",
                parity["max_relative"]["score"],
                "<=",
                1e-4,
            ),
        ]
    return bars


@click.command()
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/demo-benchmark"),
    show_default=True,
)
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds of the runs.")
def main(work: Path, seeds: str) -> None:
    """Runs the demo with every seed and writes results/demo.json."""
    folders = {seed: work / f"seed-{seed}" for seed in map(int, seeds.split(","))}
    runs = [
        measured(
            ["good-rt", "demo", "-o", str(folder), "--seed", str(seed)], folder / "measured.json"
        )
        for seed, folder in folders.items()
    ]
    first = next(iter(folders.values()))
    image = first / "generated" / "both" / "images" / "000000.png"
    figures = {
        "runs": runs,
        "score_seconds": time_scoring(first / "detector.onnx", image, work),
        "models": kept(models_path(work), measure_models),
        "guidance": measure_guidance(first),
        "seeds": {str(seed): measure_seed(folder) for seed, folder in folders.items()},
    }
    bars = bars_of(json.loads(json.dumps(figures)))
    write_result("demo", figures, bars)
    sys.exit(0)


if __name__ == "__main__":
    main()
