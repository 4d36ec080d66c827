"""How the kinds of guidance differ: how far from ID their images lie, how varied they are, and
whether the gradients point the same way.

    python benchmarks/kinds.py

On the demo's models, with the demo's settings of the sampler, 200 images a setting from the same
noise. No test set is seen. Writes benchmarks/results/kinds.json and docs/kinds.png. One setting is
the paper's (arXiv 2510.17131): raw steps that increase, variance and mean guidance, smoothing,
k = 100. Its strengths multiply gradients of discrepancies that are standardised here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from record import RESULTS, write_result
from torch import Tensor

from good_rt.classifier import Classifier, IdFeatures, predict
from good_rt.config.settings import BankConfig, GenerationConfig, GuidanceConfig, SamplerConfig
from good_rt.data.batches import id_features, id_part
from good_rt.data.id_data import IdData
from good_rt.data.image_files import contact_sheet
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.method.discrepancy import DISCREPANCIES, DiscrepancyConfig, fit_discrepancy
from good_rt.models import Models, ModelSpec
from good_rt.workflow.generate import generate

PICTURE = RESULTS.parents[1] / "docs" / "kinds.png"
COLUMNS = 16
ID = "ID test images"
ID_IMAGES = 1_000
"""How many of them the sets are compared with."""
GRADIENTS = 200
"""Images at which the gradients are compared."""
SAMPLER = SamplerConfig(steps=12, start="noise", cfg=1.4, cfg_sigma_max=2.0)
UNIT = GuidanceConfig(mu=0.2)
PAPER = GuidanceConfig(
    mu=0.5, rho=0.5, sigma=0.1, mu_schedule="increase", rho_schedule="increase", step="raw"
)
BASE = GenerationConfig(
    kind="img", guidance=UNIT, sampler=SAMPLER, strengths=(1.0,), batch=50, count=200
)
SETTINGS: dict[str, GenerationConfig] = {
    "unguided": replace(BASE, kind="none"),
    "image": BASE,
    "feature, k = 1": replace(BASE, kind="feat", bank=BankConfig(k=1)),
    "feature, k = 10": replace(BASE, kind="feat"),
    "feature, k = 100": replace(BASE, kind="feat", bank=BankConfig(k=100)),
    "feature, Mahalanobis": replace(BASE, kind="feat", bank=BankConfig(feature="mahalanobis")),
    "feature, relative Mahalanobis": replace(
        BASE, kind="feat", bank=BankConfig(feature="relative_mahalanobis")
    ),
    "both": replace(BASE, kind="both"),
    "image, the paper's": replace(BASE, guidance=PAPER),
    "feature, the paper's": replace(
        BASE,
        kind="feat",
        bank=BankConfig(k=100),
        guidance=replace(PAPER, mu=1.0, rho=1.0, sigma=0.001),
    ),
}


def distances(first: Tensor, second: Tensor) -> Tensor:
    """(N,) 1 - cosine of the features (N, D) of two sets, row by row."""
    return 1 - F.cosine_similarity(first, second)


def spread(features: Tensor) -> float:
    """Mean 1 - cosine of two features (N, D) of a set."""
    unit = F.normalize(features)
    count = len(unit)
    return float(1 - ((unit @ unit.T).sum() - count) / (count * (count - 1)))


def figures_of(
    images: Mapping[str, NDArray[np.uint8]], classifier: Classifier, known: IdFeatures
) -> dict[str, dict[str, float]]:
    """By set: the mean of each discrepancy in standard deviations of ID test images, the spread of
    the features, and the difference to the images of the same noise that image-level guidance and
    no guidance give."""
    every = [fit_discrepancy(name, known, DiscrepancyConfig()) for name in DISCREPANCIES]
    outputs = {name: predict(classifier, from_uint8(of)) for name, of in images.items()}
    levels = {
        name: {one.name: one(logits, features).double() for one in every}
        for name, (logits, features) in outputs.items()
    }
    found = {}
    for name in images:
        row = {
            one: float((values.mean() - levels[ID][one].mean()) / levels[ID][one].std())
            for one, values in levels[name].items()
        }
        row["spread"] = spread(outputs[name][1])
        if name != ID:
            for other in ("unguided", "image"):
                difference = images[name].astype(float) - images[other].astype(float)
                row[f"pixels_from_{other}"] = float(np.sqrt(np.square(difference).mean()))
                from_other = distances(outputs[name][1], outputs[other][1])
                row[f"features_from_{other}"] = float(from_other.mean())
        found[name] = row
    return found


def gradient_cosines(pixels: Tensor, models: Models, known: IdFeatures) -> dict[str, float]:
    """Mean cosine of the gradients, in the latents, of energy and of each other discrepancy at
    images (N, C, H, W)."""
    encode, decode = models.diffusion.encoder, models.diffusion.decoder
    assert encode is not None and decode is not None
    with torch.no_grad():
        batches = [encode(part) for part in pixels.split(50)]
    choices = {f"knn_distance, k = {k}": ("knn_distance", k) for k in (1, 10, 100)}
    choices |= {name: (name, 10) for name in ("mahalanobis", "relative_mahalanobis")}
    gradients = {}
    for title, (name, k) in {"energy": ("energy", 10), **choices}.items():
        discrepancy = fit_discrepancy(name, known, DiscrepancyConfig(k=k))
        parts = []
        for batch in batches:
            latents = batch.clone().requires_grad_(True)
            value = discrepancy(*models.classifier(decode(latents))).sum()
            parts.append(torch.autograd.grad(value, latents)[0].flatten(1))
        gradients[title] = torch.cat(parts)
    energy = gradients.pop("energy")
    return {name: float(F.cosine_similarity(of, energy).mean()) for name, of in gradients.items()}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Keeps the images, to go on later.")
def main(work: Path | None) -> None:
    """Generates every set, and measures it."""
    models = ModelSpec(assets.CLASSIFIER, assets.MODEL, assets.GRADIENT_DECODER).load()
    data = IdData(assets.DATA)
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        images = {ID: id_part(data, "test", models.classifier, ID_IMAGES).images}
        for number, (name, config) in enumerate(SETTINGS.items()):
            click.echo(name)
            out = folder / str(number)
            images[name] = generate(models, data, out, config, folder / "engines").images()
    known = id_features(data, models.classifier)
    figures = figures_of(images, models.classifier, known)
    cosines = {
        name: gradient_cosines(from_uint8(images[name][:GRADIENTS]), models, known)
        for name in (ID, "unguided", "image")
    }
    sets: dict[str, Any] = {name: figures[name] for name in images}
    write_result("kinds", {"sets": sets, "gradient_cosines_with_energy": cosines}, [])
    rows = [of[:COLUMNS] for of in images.values()]
    contact_sheet(np.concatenate(rows), COLUMNS, scale=1).save(PICTURE)


if __name__ == "__main__":
    main()
