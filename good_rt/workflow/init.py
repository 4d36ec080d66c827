"""The step `init`: a first job file for images and models: what is there, whether it fits, and
settings for its size."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from good_rt.config.declaration import settings_of
from good_rt.config.settings import DetectorConfig, SplitConfig, TrainConfig
from good_rt.config.toml import toml_key, toml_value
from good_rt.data.id_data import IdData
from good_rt.data.image_files import image_header
from good_rt.data.sources.base import ImageSource
from good_rt.data.sources.open import open_source
from good_rt.data.splits import Splits, make_splits
from good_rt.demo import assets
from good_rt.errors import GoodRtError
from good_rt.files import DEMO, printable
from good_rt.method.conformal import check_alpha
from good_rt.models import Models, ModelSpec
from good_rt.progress import SILENT, Progress
from good_rt.specs import resolved_spec
from good_rt.workflow.class_order import check_class_order
from good_rt.workflow.job_file import JOB_VERSION, JobConfig

PROBED = 200
"""Images whose size is looked at."""
HELD_OUT = (0.3, 0.4)
"""Larger shares of the held-out part, of which the first that calibrates α is taken where the
default does not."""
ALPHA = DetectorConfig.alpha
TABLES: Mapping[str, Sequence[str]] = {
    "data": ("images", "held_out", "test", "skip_bad"),
    "models": ("classifier", "diffusion", "gradient_decoder", "image_size"),
    "generate": (
        "count", "kinds", "mu", "strengths", "steps", "cfg", "prompts", "k", "batch", "engine",
        "gradients",
    ),
    "train": ("kinds", "control", "rounds", "steps", "lr", "interpolation", "max_drop"),
    "detector": ("classifier", "discrepancies", "combination", "alpha", "bank_size"),
}  # fmt: skip
"""The settings that a new job file shows, by table."""
NOTES = {
    ("generate", "mu"): "Look at contact_sheet.png of each kind: odd, but not yet noise, is right.",
    ("generate", "batch"): "Lower it when memory runs out.",
    ("data", "images"): "Held-out and test images must be ones that the classifier was NOT trained "
    "on, or p-values promise too much.",
}
"""What a new job file says of a setting beside its help."""


@dataclass(frozen=True)
class Findings:
    """What `good-rt init` found: images divided, their sizes, and what the models take and make."""

    images: Path
    spec: ModelSpec
    models: Models
    splits: Splits
    sizes: str
    test_sets: Mapping[str, Path] = field(default_factory=dict)

    def count(self, part: str) -> int:
        return len(self.splits.rows(part))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.models.classifier.config.classes)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.splits.kind,
            "classes": list(self.classes),
            "sizes": self.sizes,
            "counts": self.splits.counts(),
            "skipped": list(self.splits.skipped),
        }

    def lines(self) -> list[str]:
        """The findings as text."""
        diffusion, config = self.models.diffusion, self.models.classifier.config
        copies = sum(file.copy for file in self.splits.files.values())
        raised = self.splits.config.held_out != SplitConfig.held_out and not self.splits.given
        share = (
            f" (a share of {self.splits.config.held_out:g}, for α = {ALPHA:g})" if raised else ""
        )
        space = "pixel" if diffusion.decoder is None else "latent"
        condition = (
            ", class-conditional"
            if diffusion.num_class_embeds is not None
            else ", conditioned on text"
            if diffusion.text
            else ""
        )
        frozen = "" if self.models.classifier.trainable else "; its file cannot be trained"
        channels = "channel" if config.channels == 1 else "channels"
        return [
            f"images:     {len(self.splits.files) - copies} in {len(self.classes)} classes "
            f"({self.splits.kind}, {self.sizes}), {copies} copies; {self.splits.sizes}{share}",
            f"classifier: takes {config.image_size}x{config.image_size} pixels, "
            f"{config.channels} {channels}{frozen}",
            *(f"            {note}" for note in self.models.classifier.notes),
            f"diffusion:  a {space} model{condition}, of the same images",
        ]


def inspect_job(
    images: Path | str,
    spec: ModelSpec,
    test_sets: Mapping[str, Path] | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> Findings:
    """Looks at everything that a job needs.

    Args:
        images: In-distribution images; "demo" names the demo's.
        spec: The models.
        test_sets: Real OOD images by name.
        skip_bad: Leave out images that are damaged or contradict others.
        progress: Hears of every image.

    Raises:
        GoodRtError: something does not fit; it says what to do.
    """
    models = spec.load()
    data = IdData.of(images)
    data.labels(models.classifier.config.classes)
    for path in (test_sets or {}).values():
        open_source(path)
    with progress.task("looking at the images", len(data.source.entries)) as advance:
        config = SplitConfig(skip_bad=skip_bad)
        splits = (
            data.splits
            if data.record is not None
            else make_splits(data.source, config, check=True, on_item=advance)
        )
    needed = round(1 / ALPHA) - 1
    for share in HELD_OUT:
        enough = len(splits.rows("held_out")) // 2 >= needed
        if enough or splits.given or data.record is not None:
            break
        splits = make_splits(data.source, replace(config, held_out=share))
    calibration = len(splits.rows("held_out")) // 2
    try:
        check_alpha(ALPHA, calibration)
    except GoodRtError:
        used = sum(not file.copy for file in splits.files.values())
        raise GoodRtError(
            f"{images} has {used} images, of which {calibration} would calibrate the detector, and "
            f"alpha {ALPHA} needs {needed}: add images; 100 that the classifier was not trained on "
            "would do"
        ) from None
    check_class_order(data, models.classifier)
    return Findings(data.folder, spec, models, splits, _sizes(data.source), dict(test_sets or {}))


def _sizes(source: ImageSource) -> str:
    """The sizes and modes of some images, evenly spaced: '320x240 to 640x480 pixels, L and RGB'."""
    count = len(source.entries)
    rows = sorted(set(np.linspace(0, count - 1, min(PROBED, count)).round().astype(int).tolist()))
    sizes, modes = set(), set()
    for item in source.items(rows):
        try:
            content = item.readable()
            if isinstance(content, np.ndarray):
                height, width, channels = content.shape
                mode = {1: "L", 3: "RGB"}.get(channels, f"{channels} channels")
            else:
                width, height, mode = image_header(content, item.name)
        except GoodRtError:
            continue  # reported when the images are divided
        sizes.add((width, height))
        modes.add(mode)
    if not sizes:
        return "no image that can be read"
    texts = [f"{width}x{height}" for width, height in (min(sizes), max(sizes))]
    return f"{' to '.join(dict.fromkeys(texts))} pixels, {' and '.join(sorted(modes))}"


def job_text(findings: Findings, out: Path) -> str:
    """The job file for ``out``: settings with their help, chosen for the number and size of the
    images."""
    values = _chosen(findings, out)
    tables = {setting.key: setting.type for setting in settings_of(JobConfig)}
    counts = findings.splits.counts()
    labels = sorted({label for by_class in counts.values() for label in by_class})
    images = [f"# {findings.splits.kind}, {findings.sizes}; images by class:"]
    for label in labels:
        parts = ", ".join(f"{by_class.get(label, 0)} {part}" for part, by_class in counts.items())
        images.append(f"#   {printable(label)}: {parts}")
    if findings.splits.given:
        images.append("# They already come in parts, which are kept.")
    name = printable(out.name)
    lines = [
        f"# A job of good-rt: `good-rt run {name}` makes detector.onnx and report.html of it,",
        "# and resumes where it was interrupted. Paths are relative to this file. docs/jobs.md",
        "# lists every setting.",
        "",
        f"version = {JOB_VERSION}",
        *_commented("out", out.stem, "Folder of everything that is made, beside this file."),
        "seed = 0",
    ]
    for table, keys in TABLES.items():
        lines += ["", f"[{table}]", *(images if table == "data" else ())]
        for setting in settings_of(tables[table]):
            value = values.get((table, setting.key), setting.default)
            shown = setting.key in keys and value is not None
            if shown and (setting.key != "prompts" or findings.models.diffusion.text):
                note = NOTES.get((table, setting.key), "")
                lines += _commented(setting.key, value, f"{setting.declared.help} {note}".strip())
    lines += [
        "",
        "[test_sets]",
        "# Real OOD images that only the evaluation sees: name = path, of any kind that [data]",
        "# takes. Without any, it measures on generated images, which says less.",
    ]
    for name, path in findings.test_sets.items():
        lines.append(f"{toml_key(name)} = {toml_value(_relative(path, out.parent))}")
    if not findings.test_sets:
        lines.append('# street = "street/"')
    return "\n".join(lines) + "\n"


def _commented(key: str, value: object, help: str) -> list[str]:
    """A key with its help: beside it where that fits, else above."""
    line = f"{key} = {toml_value(value)}"
    if len(line) + len(help) + 4 <= 100:
        return [f"{line}  # {help}"]
    return [*textwrap.wrap(help, 98, initial_indent="# ", subsequent_indent="# "), line]


def _chosen(findings: Findings, out: Path) -> dict[tuple[str, str], Any]:
    """The values of a new job file that are not the defaults, by table and key."""
    models, spec, train = findings.models, findings.spec, findings.count("train")
    classifier, diffusion = models.classifier, models.diffusion

    def path(value: str | Path, demo: Path) -> str:
        return DEMO if Path(value) == demo else _relative(Path(value), out.parent)

    light = spec.gradient_decoder_path
    null_class = diffusion.num_class_embeds is not None and diffusion.num_class_embeds > len(
        findings.classes
    )
    # half of the held-out images validate; a loss of fewer than two of them is chance
    drop = max(TrainConfig.max_accuracy_drop, round(2 / max(1, findings.count("held_out") // 2), 3))
    return {
        ("data", "images"): path(findings.images, assets.DATA),
        ("data", "held_out"): findings.splits.config.held_out,
        ("data", "test"): findings.splits.config.test,
        ("data", "skip_bad"): findings.splits.config.skip_bad,
        ("models", "classifier"): path(spec.classifier_path, assets.CLASSIFIER),
        ("models", "diffusion"): path(spec.diffusion_path, assets.MODEL),
        ("models", "gradient_decoder"): light and path(light, assets.GRADIENT_DECODER),
        ("models", "image_size"): spec.image_size,
        ("generate", "count"): min(max(-(-train // 8 // 32) * 32, 128), 3584),
        ("generate", "cfg"): 1.5 if null_class else 1.0,
        ("generate", "k"): min(10, max(1, train // 4)),
        ("generate", "batch"): 32 if classifier.config.image_size <= 64 else 8,
        ("train", "kinds"): ("img",) if classifier.trainable else (),
        ("train", "steps"): TrainConfig.steps if train >= 2000 else 200,
        ("train", "max_drop"): drop,
        ("detector", "classifier"): "trained" if classifier.trainable else "before",
        ("detector", "bank_size"): min(DetectorConfig.bank_size, train),
    }


def _relative(path: Path, folder: Path) -> str:
    """Relative to the job file's folder when it lies below it, else absolute; so are the paths in a
    spec."""
    if not path.exists():
        return str(
            resolved_spec(
                str(path), lambda part: Path(_relative(part, folder)) if part.exists() else None
            )
        )
    inside = os.path.relpath(path.resolve(), folder.resolve())
    return str(path.resolve()) if inside.startswith("..") else Path(inside).as_posix()
