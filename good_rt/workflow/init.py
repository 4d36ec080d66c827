"""A first job file for images and models that lie somewhere: what is there, whether it fits,
settings for its size."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from good_rt.classifier import ClassifierConfig, load_classifier
from good_rt.config.job import DEMO, spec_of
from good_rt.data.id_data import IdData
from good_rt.data.image_files import image_header
from good_rt.data.sources.base import ImageSource
from good_rt.data.sources.open import open_source
from good_rt.config.settings import SplitConfig
from good_rt.data.splits import Splits, make_splits
from good_rt.demo import assets
from good_rt.diffusion import TEMPLATE, load_diffusion
from good_rt.errors import GoodRtError
from good_rt.method.conformal import check_alpha
from good_rt.config.settings import TrainConfig
from good_rt.workflow.pipeline import check_models

PROBED = 200
"""Images whose size is looked at."""
HELD_OUT = (0.3, 0.4)
"""Larger shares of the held-out part, of which the first that calibrates α is taken where the
default does not."""
ALPHA = 0.05


@dataclass(frozen=True)
class Findings:
    """What `good-rt init` found: the images divided, their sizes, and what the models take and
    make."""

    images: Path
    classifier: Path
    diffusion: Path
    ood: Mapping[str, Path]
    splits: Splits
    sizes: str
    config: ClassifierConfig
    latent: bool
    conditional: bool
    text: bool
    trainable: bool
    guidance_scale: float
    gradient_decoder: Path | None = None
    image_size: int | None = None

    def count(self, part: str) -> int:
        return len(self.splits.rows(part))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.splits.kind, "classes": list(self.config.classes), "sizes": self.sizes,
                "counts": self.splits.counts(), "skipped": list(self.splits.skipped)}  # fmt: skip

    def lines(self) -> list[str]:
        """What was found, to print."""
        copies = sum(file.copy for file in self.splits.files.values())
        made = "latent" if self.latent else "pixel"
        raised = self.splits.config.held_out != SplitConfig.held_out and not self.splits.given
        share = (
            f" (a share of {self.splits.config.held_out:g}, for α = {ALPHA:g})" if raised else ""
        )
        condition = (
            ", class-conditional"
            if self.conditional
            else ", which follows prompts"
            if self.text
            else ""
        )
        return [
            f"images:     {len(self.splits.files) - copies} in {len(self.config.classes)} classes "
            f"({self.splits.kind}, "
            f"{self.sizes}), {copies} copies; {self.splits.sizes}{share}",
            f"classifier: takes {self.config.image_size}x{self.config.image_size} pixels, "
            f"{self.config.channels} "
            f"channel{'s'[: self.config.channels != 1]}{'' if self.trainable else '; its file cannot be trained'}",
            f"diffusion:  a {made} model{condition}, of the same images",
        ]


def inspect(
    images: Path,
    classifier: Path,
    diffusion: Path,
    ood: Mapping[str, Path] | None = None,
    *,
    skip_bad: bool = False,
    gradient_decoder: Path | None = None,
    image_size: int | None = None,
    on_item: Callable[[int], None] = lambda count: None,
) -> Findings:
    """Looks at everything that a job needs. Raises GoodRtError that says what does not fit, and
    what to do.

    ``gradient_decoder`` and ``image_size`` are `load_diffusion`'s.
    """
    model = load_diffusion(diffusion, gradient_decoder=gradient_decoder, image_size=image_size)
    fitted = load_classifier(classifier).fitted(lambda: model.image_shape)
    check_models(model, fitted)
    classes = fitted.config
    data = IdData(images)
    data.labels(classes.classes)
    for path in (ood or {}).values():
        open_source(path)
    config = SplitConfig(skip_bad=skip_bad)
    splits = (
        data.splits
        if data.record is not None
        else make_splits(data.source, config, check=True, on_item=on_item)
    )
    for share in HELD_OUT:
        if (
            len(splits.rows("held_out")) // 2 >= round(1 / ALPHA) - 1
            or splits.given
            or data.record is not None
        ):
            break
        config = SplitConfig(held_out=share, skip_bad=skip_bad)
        splits = make_splits(data.source, config)
    calibration = len(splits.rows("held_out")) // 2
    try:
        check_alpha(ALPHA, calibration)
    except GoodRtError:
        used = sum(not file.copy for file in splits.files.values())
        raise GoodRtError(
            f"{images} has {used} images, of which {calibration} would calibrate the detector, and "
            f"alpha {ALPHA} needs "
            f"{round(1 / ALPHA) - 1}: at least 100 images that the classifier was not trained on "
            "would do; add images"
        ) from None
    null_class = model.num_class_embeds is not None and model.num_class_embeds > len(
        classes.classes
    )
    return Findings(
        images=images,
        classifier=classifier,
        diffusion=diffusion,
        ood=dict(ood or {}),
        splits=splits,
        sizes=_sizes(data.source),
        config=classes,
        latent=model.decoder is not None,
        conditional=model.num_class_embeds is not None,
        text=model.text,
        trainable=fitted.trainable,
        guidance_scale=1.5 if null_class else 1.0,
        gradient_decoder=gradient_decoder,
        image_size=image_size,
    )


def _sizes(source: ImageSource) -> str:
    """The sizes and modes of some images, evenly spaced: '320x240 to 640x480 pixels, L and RGB'."""
    count = len(source.entries)
    rows = sorted(set(np.linspace(0, count - 1, min(PROBED, count)).round().astype(int).tolist()))
    sizes, modes = set(), set()
    for item in source.items(rows):
        if isinstance(item.content, np.ndarray):
            height, width, channels = item.content.shape
            mode = {1: "L", 3: "RGB"}.get(channels, f"{channels} channels")
        else:
            try:
                width, height, mode = image_header(item.content, item.name)
            except GoodRtError:
                continue  # said when the images are divided
        sizes.add((width, height))
        modes.add(mode)
    if not sizes:
        return "no image that can be read"
    texts = [f"{width}x{height}" for width, height in (min(sizes), max(sizes))]
    return f"{' to '.join(dict.fromkeys(texts))} pixels, {' and '.join(sorted(modes))}"


def job_text(found: Findings, out: Path) -> str:
    """The job file: every setting that matters with what it does, chosen for the number and size of
    the images."""
    train, config = found.count("train"), found.splits.config
    count = min(max(-(-train // 8 // 32) * 32, 128), 1024)
    batch = 32 if found.config.image_size <= 64 else 8
    steps = TrainConfig.steps if train >= 2000 else 200
    # half of the held-out images validate; fewer than two of them are no loss that can be told from
    # chance
    drop = max(0.005, round(2 / max(1, found.count("held_out") // 2), 3))

    def quoted(path: Path, demo: Path | None = None) -> str:
        return json.dumps(DEMO if path == demo else _relative(path, out.parent), ensure_ascii=False)

    if found.trainable:
        trained = 'ood = ["img"]  # kinds to fine-tune the classifier with; [] for none (and detector.classifier = "before")'
    else:
        trained = "ood = []  # no fine-tuning: the weights in this classifier's file are frozen"

    variant = ""
    if found.gradient_decoder is not None:
        variant += f"gradient_decoder = {quoted(found.gradient_decoder)}  # gradients go through this light one\n"
    if found.image_size is not None:
        variant += f"image_size = {found.image_size}  # another than the diffusion model's own\n"
    prompts = (
        f'prompts = ["{TEMPLATE}"]  # {{}} is the class; several take turns\n' if found.text else ""
    )

    counts = "\n".join(
        f"#   {name}: "
        + ", ".join(f"{parts.get(name, 0)} {part}" for part, parts in found.splits.counts().items())
        for name in sorted({name for parts in found.splits.counts().values() for name in parts})
    )
    ood = "".join(f"{json.dumps(name)} = {quoted(path)}\n" for name, path in found.ood.items())
    given = "# They come in parts already, which are kept.\n" if found.splits.given else ""
    return f"""\
# A job of good-rt: `good-rt run {out.name}` makes detector.onnx and report.html of it, and goes on
# where it stopped. Paths are relative to this file. What may be set, and its default, is in
# good-rt's docs/jobs.md.

out = {json.dumps(out.stem)}  # folder of everything that is made, beside this file
seed = 0

[data]
# {found.splits.kind}, {found.sizes}; images by class:
{counts}
{given}# Held-out and test images must be ones that the classifier was NOT trained on, or p-values promise too much.
images = {quoted(found.images, assets.DATA)}
held_out = {config.held_out}  # share that validates and calibrates
test = {config.test}  # share that the evaluation alone looks at
skip_bad = {str(config.skip_bad).lower()}  # leave damaged images out, and name them; false: they are an error

[models]
classifier = {quoted(found.classifier, assets.CLASSIFIER)}
diffusion = {quoted(found.diffusion, assets.MODEL)}
{variant}
[generate]
count = {count}  # OOD images of each kind of guidance
kinds = ["img", "feat", "both"]  # image level, feature level, both
mu = 0.1  # strength of guidance; look at the contact_sheet.png of each kind: odd, but not yet rubbish, is right
strengths = [0.5, 1.0, 2.0]  # factors of mu that images take in turn, from near to far OOD
steps = 25  # of the sampler
cfg = {found.guidance_scale}  # classifier-free guidance scale; 1.0 for none
{prompts}k = {min(10, max(1, train // 4))}  # neighbour of the k-NN distance that is climbed
batch = {batch}  # lower it when memory runs out; part of what determines an image's last bits
engine = "onnx"  # or "torch": without an export; "tensorrt": with --device cuda

[train]
{trained}
unguided = 0  # samples without guidance that are ID in training; some thousands make it steadier
control = false  # also fine-tune as long without OOD images, to compare with
steps = {steps}
lr = {TrainConfig.lr}
interpolation = {TrainConfig.interpolation}  # how much of the way from the old weights to the trained ones is gone
max_drop = {drop}  # largest loss of held-out accuracy with which a state is kept

[detector]
classifier = "{"trained" if found.trainable else "before"}"  # "trained", or "before": the one that came
k = 1  # neighbour of the k-NN distance; small ones are best for small banks
alpha = {ALPHA}  # share of in-distribution inputs that may be refused
bank_size = {min(10_000, train)}

[ood]
# Test sets of real OOD images, for the evaluation alone: name = "path", of any kind that [data]
# takes. Without one, the evaluation takes generated images that nothing was trained on, which says
# less.
{ood or '# street = "street/"' + chr(10)}"""


def _relative(path: Path, folder: Path) -> str:
    """Relative to the job file's folder when it lies below it, else absolute; so are the paths in a
    spec."""
    if not path.exists():
        return str(
            spec_of(
                str(path), lambda part: Path(_relative(part, folder)) if part.exists() else None
            )
        )
    place = os.path.relpath(path.resolve(), folder.resolve())
    return str(path.resolve()) if place.startswith("..") else Path(place).as_posix()
