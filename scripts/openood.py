"""A published OpenOOD v1.5 checkpoint, or a classifier trained from it, on OpenOOD's test sets.

    python scripts/openood.py cifar10 --data data -o cifar10.json \\
        --checkpoint results/cifar10_resnet18_32x32_base_e100_lr0.1_default/s0/best.ckpt

``data`` has OpenOOD's folders benchmark_imglist, images_classic and images_largescale, which its
download script fills. The discrepancies are fitted on the training list, the score is standardised
on the ID validation list; OOD validation images are not used.

Figures are OpenOOD's. FPR95 is the false positive rate at 95 % OOD recall: OOD is the positive
class, so this is the share of ID images refused when 95 % of OOD images are. good-rt's own FPR95,
at 95 % ID recall, is in the JSON file as `fpr95_at_id_recall`. Near and far are means over sets.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from safetensors.torch import save_file
from torch import Tensor

from good_rt.classifier import Classifier, IdFeatures, Settings, load_classifier, outputs
from good_rt.classifier.folder import save_classifier
from good_rt.config.settings import CombinationName, DetectorConfig
from good_rt.data.generated_split import generated_parts
from good_rt.data.id_data import thinned
from good_rt.data.pixels import from_uint8
from good_rt.detector.module import measure
from good_rt.environment import versions
from good_rt.errors import GoodRtError
from good_rt.evaluation.metrics import detection_metrics
from good_rt.files import write_json
from good_rt.method.combination import COMBINATIONS, FITTED_ON_GENERATED
from good_rt.method.discrepancy import DISCREPANCIES, DiscrepancyConfig, fit_discrepancy
from good_rt.method.measurements import Measurements
from good_rt.method.scores import LOGIT_SCORES
from good_rt.method.unified import fit_unified

CLASSIC, LARGE = "images_classic", "images_largescale"
BATCH = 128
UNIFIED = "score"
"""The detector's score, beside every discrepancy and every score of logits."""
PATH = click.Path(path_type=Path)
CONVENTION = (
    "OpenOOD's convention: FPR95 is the share of ID images refused when 95 % of OOD images are "
    "(OOD is the positive class), near and far are means over their sets."
)
Scores = dict[str, NDArray[np.float64]]
"""(N,) scores by name, higher = more OOD."""


@dataclass(frozen=True)
class Benchmark:
    """One of OpenOOD v1.5's benchmarks.

    Attributes:
        classes: Number of ID classes.
        shorter: Pixels of an image's shorter side after resizing.
        size: Pixels of the square that is cut out of its middle.
        mean: Per channel, of images in [0, 1].
        std: Per channel.
        images: The folder of the ID images.
        near: Near-OOD sets, and the folder of their images.
        far: Far-OOD sets, likewise.
    """

    classes: int
    shorter: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: str
    near: Mapping[str, str]
    far: Mapping[str, str]

    @property
    def ood(self) -> Mapping[str, str]:
        return {**self.near, **self.far}


SMALL_FAR = dict.fromkeys(("mnist", "svhn", "texture", "places365"), CLASSIC)
BENCHMARKS = {
    "cifar10": Benchmark(
        10, 32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), CLASSIC,
        {"cifar100": CLASSIC, "tin": CLASSIC}, SMALL_FAR,
    ),
    "cifar100": Benchmark(
        100, 32, 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), CLASSIC,
        {"cifar10": CLASSIC, "tin": CLASSIC}, SMALL_FAR,
    ),
    "imagenet200": Benchmark(
        200, 256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), LARGE,
        {"ssb_hard": LARGE, "ninco": LARGE},
        {"inaturalist": LARGE, "textures": CLASSIC, "openimage_o": LARGE},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ImageList:
    """The images of a list.

    Attributes:
        paths: N image files.
        labels: (N,) classes; negative or meaningless for OOD images.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]

    @classmethod
    def read(cls, data: Path, list_of: str, images: str, limit: int | None = None) -> ImageList:
        """A file of lines ``PATH LABEL``.

        Args:
            data: OpenOOD's data folder.
            list_of: The list below benchmark_imglist, without suffix: ``cifar10/test_tin``.
            images: The folder that its paths are relative to.
            limit: At most so many images, evenly spaced.

        Raises:
            GoodRtError: the list is missing, empty or damaged.
        """
        path = data / "benchmark_imglist" / f"{list_of}.txt"
        if not path.is_file():
            raise GoodRtError(
                f"{path} does not exist; --data must be OpenOOD's data folder, with "
                "benchmark_imglist in it"
            )
        files, labels = [], []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            name, _, label = line.strip().partition(" ")
            if name and not label.removeprefix("-").isdigit():
                raise GoodRtError(f"{path}, line {number}: {line!r} is not of the form PATH LABEL")
            if name:
                files.append(data / images / name)
                labels.append(int(label))
        if not files:
            raise GoodRtError(f"{path} lists no images; download the lists again")
        rows = thinned(range(len(files)), limit)
        return cls([files[row] for row in rows], np.array(labels)[list(rows)])

    def batches(self, benchmark: Benchmark) -> Iterator[Tensor]:
        """The images (n, 3, size, size) in [-1, 1]."""
        with ThreadPoolExecutor() as pool:
            for first in range(0, len(self.paths), BATCH):
                part = self.paths[first : first + BATCH]
                with truncated_images():
                    images = list(pool.map(lambda path: pixels(path, benchmark), part))
                yield from_uint8(np.stack(images))


@contextmanager
def truncated_images() -> Iterator[None]:
    """Lets Pillow read images that are cut short, as OpenOOD does: some of its images are."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def pixels(path: Path, benchmark: Benchmark) -> NDArray[np.uint8]:
    """An image file as OpenOOD prepares it: RGB, resized (bilinear), cut to its middle.

    Args:
        path: The file.
        benchmark: Its sizes.

    Raises:
        GoodRtError: the file is missing or no image.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except FileNotFoundError:
        raise GoodRtError(f"{path} does not exist; download the set again") from None
    except Exception as error:  # decoders raise many kinds on damaged files
        raise GoodRtError(f"{path} is damaged or no image ({error}); replace it") from None
    scale = benchmark.shorter / min(image.size)
    if scale != 1:
        longer = int(benchmark.shorter * max(image.size) / min(image.size))
        wide = image.width > image.height
        sides = (longer, benchmark.shorter) if wide else (benchmark.shorter, longer)
        image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = (round((side - benchmark.size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + benchmark.size, top + benchmark.size)))


def checkpoint_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a .ckpt file. It is a pickle, of which only tensors are read.

    Args:
        path: The file.

    Raises:
        GoodRtError: the file is missing, or holds something else.
    """
    if not path.is_file():
        raise GoodRtError(f"{path} does not exist; download OpenOOD's checkpoints")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "damaged"
        raise GoodRtError(
            f"{path} is not a checkpoint that holds only tensors ({reason}); download it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(one, Tensor) for one in state.values()):
        raise GoodRtError(f"{path} is not a state dict; give OpenOOD's best.ckpt")
    return {name: tensor.contiguous() for name, tensor in state.items()}


def published_classifier(name: str, checkpoint: Path, folder: Path) -> Classifier:
    """OpenOOD's classifier of a benchmark, saved as a good-rt classifier.

    Args:
        name: A key of `BENCHMARKS`.
        checkpoint: The .ckpt file.
        folder: Where its weights go.

    Raises:
        GoodRtError: the checkpoint is missing, or of another network.
    """
    benchmark, weights = BENCHMARKS[name], folder / "weights.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(checkpoint_weights(checkpoint), weights)
    settings = Settings(size=benchmark.size, mean=benchmark.mean, std=benchmark.std)
    classifier = load_classifier(f"openood_networks:{name}@{weights}", settings)
    weights.unlink()
    save_classifier(classifier, folder)
    return classifier


@dataclass(frozen=True)
class Lists:
    """Every list of a benchmark: ID parts, and OOD test sets by name."""

    train: ImageList
    known: ImageList
    test: ImageList
    ood: Mapping[str, ImageList]

    @classmethod
    def read(cls, data: Path, name: str, limit: int | None, train_limit: int | None) -> Lists:
        """The lists of a benchmark.

        Args:
            data: OpenOOD's data folder.
            name: A key of `BENCHMARKS`.
            limit: At most so many images of each test set; for a first try.
            train_limit: At most so many training images.
        """
        benchmark = BENCHMARKS[name]

        def of_id(part: str, limit: int | None = None) -> ImageList:
            return ImageList.read(data, f"{name}/{part}_{name}", benchmark.images, limit)

        ood = {
            ood_set: ImageList.read(data, f"{name}/test_{ood_set}", images, limit)
            for ood_set, images in benchmark.ood.items()
        }
        return cls(of_id("train", train_limit), of_id("val"), of_id("test", limit), ood)


@torch.no_grad()
def scores_of(
    classifier: Classifier,
    benchmark: Benchmark,
    lists: Lists,
    config: DetectorConfig,
    generated: Sequence[Path] = (),
) -> tuple[dict[str, Scores], float]:
    """Every score of every test set, by set, and the accuracy on ID test images.

    Args:
        classifier: Images to logits and features.
        benchmark: Sizes of the images.
        lists: The images.
        config: The discrepancies in the score, and their combination.
        generated: Sets of guided images, with which gate, kl and logistic are fitted.
    """
    _, features = outputs(classifier, lists.train.batches(benchmark))
    labels = torch.from_numpy(lists.train.labels)
    id_features = IdFeatures(features, labels, benchmark.classes)
    parameters = DiscrepancyConfig(config.k, config.temperature)
    fitted = [fit_discrepancy(name, id_features, parameters) for name in DISCREPANCIES]

    ood, weights = None, None
    if config.combination in FITTED_ON_GENERATED and generated:
        kinds = [generated_parts([folder], classifier)[1] for folder in generated]
        ood = measure(classifier, fitted, torch.cat(kinds))
        # each set counts the same, as in a detector
        weights = np.concatenate([np.full(len(kind), 1 / len(kind)) for kind in kinds])
    known = measure(classifier, fitted, lists.known.batches(benchmark))
    score = fit_unified(config.discrepancies, known, config.combination, ood, weights)

    def all_scores(images: ImageList) -> tuple[Measurements, Scores]:
        found = measure(classifier, fitted, images.batches(benchmark))
        of_logits = {name: one(found.logits) for name, one in LOGIT_SCORES.items()}
        of_features = {k: values for k, values in found.discrepancies.items() if k != "energy"}
        return found, {**of_logits, **of_features, UNIFIED: score.of(found)}

    measured, of_id = all_scores(lists.test)
    accuracy = float((measured.logits.argmax(axis=1) == lists.test.labels).mean())
    of_ood = {name: all_scores(images)[1] for name, images in lists.ood.items()}
    return {"id": of_id, **of_ood}, accuracy


def figures_of(sets: Mapping[str, Scores], benchmark: Benchmark) -> dict[str, Any]:
    """OpenOOD's figures of each score, by OOD set, and their means over near and far sets."""
    figures: dict[str, Any] = {}
    for score, of_id in sets["id"].items():
        rows = {name: figures_of_set(of_id, sets[name][score]) for name in benchmark.ood}
        for group, names in (("near", benchmark.near), ("far", benchmark.far)):
            rows[group] = {
                key: float(np.mean([rows[name][key] for name in names]))
                for key in rows[next(iter(names))]
            }
        figures[score] = rows
    return figures


def figures_of_set(of_id: NDArray[np.float64], of_ood: NDArray[np.float64]) -> dict[str, float]:
    """OpenOOD's figures, with good-rt's own FPR95 under another name."""
    metrics = asdict(detection_metrics(of_id, of_ood))
    at_id_recall = metrics.pop("fpr95")
    return {"fpr95": metrics.pop("fpr95_ood"), **metrics, "fpr95_at_id_recall": at_id_recall}


def over_runs(runs: Sequence[dict[str, Any]], statistic: Any) -> dict[str, Any]:
    """A statistic of each figure over the runs."""
    first = runs[0]
    return {
        score: {
            group: {
                key: float(statistic([run[score][group][key] for run in runs]))
                for key in first[score][group]
            }
            for group in first[score]
        }
        for score in first
    }


def table(figures: Mapping[str, Any], std: Mapping[str, Any], runs: int) -> str:
    """Near and far figures of each score, in %."""
    columns = ("fpr95", "auroc", "aupr_in", "aupr_out")
    heads = [f"{group} {key}" for group in ("near", "far") for key in columns]
    lines = [" " * 22 + "".join(f"{text:>16}" for text in heads)]
    for score, groups in figures.items():
        cells = []
        for group in ("near", "far"):
            for key in columns:
                spread = f" ± {100 * std[score][group][key]:.2f}" if runs > 1 else ""
                cells.append(f"{f'{100 * groups[group][key]:.2f}{spread}':>16}")
        lines.append(f"{score:22}" + "".join(cells))
    return "\n".join(lines)


@dataclass(frozen=True)
class Request:
    """What is evaluated.

    Attributes:
        name: A key of `BENCHMARKS`.
        data: OpenOOD's data folder.
        checkpoints: best.ckpt of one or more training runs.
        classifiers: good-rt classifiers in their place.
        generated: Sets of guided images.
        save: Where the checkpoints are kept as good-rt classifiers; None for nowhere.
        device: Where the classifiers run.
    """

    name: str
    data: Path
    checkpoints: Sequence[Path]
    classifiers: Sequence[str]
    generated: Sequence[Path]
    save: Path | None
    device: str

    def opened(self) -> Iterator[tuple[str, Classifier]]:
        """Each classifier with its name.

        Raises:
            GoodRtError: none is given, or one does not fit the benchmark.
        """
        if not self.checkpoints and not self.classifiers:
            raise GoodRtError("no classifier to evaluate; give --checkpoint or --classifier")
        with tempfile.TemporaryDirectory() as temporary:
            for number, path in enumerate(self.checkpoints):
                folder = (self.save or Path(temporary)) / str(number)
                yield str(path), published_classifier(self.name, path, folder)
        for spec in self.classifiers:
            yield spec, self._fitting(load_classifier(spec), spec)

    def _fitting(self, classifier: Classifier, spec: str) -> Classifier:
        benchmark = BENCHMARKS[self.name]
        classes = len(classifier.config.classes)
        if classes != benchmark.classes:
            raise GoodRtError(
                f"{spec} has {classes} classes, {self.name} {benchmark.classes}; give a classifier "
                "of the benchmark's classes"
            )
        return classifier.for_images(3, benchmark.size)


def evaluate(
    request: Request, lists: Lists, config: DetectorConfig, scores_path: Path | None
) -> dict[str, Any]:
    """Figures of every classifier, with mean and standard deviation over them.

    Args:
        request: What is evaluated.
        lists: The images.
        config: The discrepancies in the score, and their combination.
        scores_path: Where raw scores go, as .npz; None for nowhere.
    """
    benchmark, runs, raw = BENCHMARKS[request.name], [], dict[str, Any]()
    for classifier_name, classifier in request.opened():
        classifier = classifier.to(request.device)
        sets, accuracy = scores_of(classifier, benchmark, lists, config, request.generated)
        figures = figures_of(sets, benchmark)
        raw |= {
            f"{len(runs)}/{name}/{score}": values
            for name, scores in sets.items()
            for score, values in scores.items()
        }
        runs.append({"classifier": classifier_name, "id_accuracy": accuracy, "scores": figures})
        click.echo(f"{classifier_name}: ID accuracy {100 * accuracy:.2f} %")
    if scores_path is not None:
        np.savez_compressed(scores_path, **raw)
    of_runs = [run["scores"] for run in runs]
    return {
        "benchmark": request.name,
        "convention": CONVENTION,
        "images": {"train": len(lists.train.paths), "id": len(lists.test.paths)}
        | {name: len(images.paths) for name, images in lists.ood.items()},
        "generated": [str(path) for path in request.generated],
        "config": asdict(config),
        "versions": versions(("good-rt", "torch", "numpy", "scikit-learn", "pillow")),
        "mean": over_runs(of_runs, np.mean),
        "std": over_runs(of_runs, np.std),
        "runs": runs,
    }


@click.command()
@click.argument("name", metavar="BENCHMARK", type=click.Choice(list(BENCHMARKS)))
@click.option("--data", type=PATH, required=True, help="OpenOOD's data folder.")
@click.option(
    "--checkpoint", type=PATH, multiple=True,
    help="best.ckpt of a training run; may be repeated, for mean and standard deviation.",
)  # fmt: skip
@click.option(
    "--classifier", multiple=True,
    help="A good-rt classifier instead, such as one that `good-rt train` wrote; may be repeated.",
)  # fmt: skip
@click.option(
    "--generated", type=PATH, multiple=True,
    help="A set of guided images, for the combinations gate, kl and logistic; may be repeated.",
)  # fmt: skip
@click.option("--save", type=PATH, help="Where the checkpoints are kept as good-rt classifiers.")
@click.option("--scores", type=PATH, help="Where the raw scores are kept, as .npz.")
@click.option("--limit", type=click.IntRange(1), help="At most so many images of each test set.")
@click.option("--train-limit", type=click.IntRange(1), help="At most so many training images.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("-o", "--out", type=PATH, required=True, help="The JSON file.")
@click.option(
    "--discrepancy", "discrepancies", multiple=True, type=click.Choice(list(DISCREPANCIES)),
    default=DetectorConfig().discrepancies, show_default=True,
    help="Discrepancy in the score; may be repeated.",
)  # fmt: skip
@click.option(
    "--combination", type=click.Choice(list(COMBINATIONS)), default=DetectorConfig().combination,
    show_default=True, help="How they become one score.",
)  # fmt: skip
def main(
    name: str, data: Path, out: Path, scores: Path | None, combination: CombinationName,
    **others: Any,
) -> None:  # fmt: skip
    """Scores OpenOOD's test sets, prints near and far figures, and writes all of them as JSON."""
    request = Request(
        name, data, others["checkpoint"], others["classifier"], others["generated"],
        others["save"], others["device"],
    )  # fmt: skip
    try:
        config = DetectorConfig(discrepancies=others["discrepancies"], combination=combination)
        lists = Lists.read(data, name, others["limit"], others["train_limit"])
        result = evaluate(request, lists, config, scores)
    except GoodRtError as error:
        raise click.ClickException(str(error)) from None
    write_json(out, result)
    click.echo(table(result["mean"], result["std"], len(result["runs"])))
    click.echo(f"In %. {CONVENTION} Written to {out}.")


if __name__ == "__main__":
    main()
