"""Other ways of making outliers for the training, beside GOOD's, for benchmarks/quality.py.

Each takes ID images and gives as many outliers as are asked for, (count, C, H, W) float32 in
[-1, 1], on a grid of 8 bits; all are trained with in the same way. Strengths are the papers' or
plain ones, the same for every split and seed, and none was chosen by a test set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.data.pixels import from_uint8, to_uint8
from good_rt.method.patches import shuffled_patches
from good_rt.models import Models

BATCH = 100


@dataclass(frozen=True, eq=False)
class OutlierSource:
    """What outliers are made of.

    Attributes:
        models: Classifier and diffusion model, on the CPU.
        images: (N, C, H, W) in [-1, 1], ID images of the training part.
        labels: (N,) int64, their classes.
    """

    models: Models
    images: Tensor
    labels: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` random ID images and their labels."""
        rows = torch.randperm(len(self.images), generator=generator)[:count]
        return self.images[rows], self.labels[rows]


MakeOutliers = Callable[[OutlierSource, int, torch.Generator], Tensor]
OUTLIERS: dict[str, MakeOutliers] = {}
"""Every way of this file by the name that tables show."""


def outliers(name: str) -> Callable[[MakeOutliers], MakeOutliers]:
    """Decorator that enters a function in `OUTLIERS`; its images are rounded to 8 bits."""

    def enter(make: MakeOutliers) -> MakeOutliers:
        def rounded(source: OutlierSource, count: int, generator: torch.Generator) -> Tensor:
            return from_uint8(to_uint8(make(source, count, generator).clamp(-1, 1)))

        OUTLIERS[name] = rounded
        return rounded

    return enter


@outliers("uniform noise")
def uniform_noise(source: OutlierSource, count: int, generator: torch.Generator) -> Tensor:
    """Pixels drawn independently."""
    return torch.rand(count, *source.images.shape[1:], generator=generator) * 2 - 1


@outliers("mix-up")
def mix_up(source: OutlierSource, count: int, generator: torch.Generator) -> Tensor:
    """Means of two ID images of different classes, with weights in [0.3, 0.7] (Zhang et al., arXiv
    1710.09412, with both labels lost)."""
    first, of_first = source.draw(count, generator)
    second, of_second = source.draw(count, generator)
    for _ in range(100):
        same = of_first == of_second
        if not same.any():
            break
        second[same], of_second[same] = source.draw(int(same.sum()), generator)
    weights = 0.3 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    return weights * first + (1 - weights) * second


@outliers("patch shuffle")
def patch_shuffle(source: OutlierSource, count: int, generator: torch.Generator) -> Tensor:
    """ID images whose patches have changed places."""
    return shuffled_patches(source.draw(count, generator)[0], generator)


@outliers("pixel shuffle")
def pixel_shuffle(source: OutlierSource, count: int, generator: torch.Generator) -> Tensor:
    """ID images whose pixels have changed places (ASCOOD's outliers without its gradients)."""
    images, _ = source.draw(count, generator)
    return shuffled_patches(images, generator, per_side=images.shape[-1])


@outliers("class gradient")
def class_gradient(source: OutlierSource, count: int, generator: torch.Generator) -> Tensor:
    """ID images changed along the gradient of their own class's logit, in the 30 % of the pixels
    that matter most to it, by 0.5, 1 or 2 of the pixels' range (after ASCOOD, which adds that
    gradient)."""
    images, labels = source.draw(count, generator)
    changed = []
    for number, (batch, classes) in enumerate(
        zip(images.split(BATCH), labels.split(BATCH), strict=True)
    ):
        pixels = batch.clone().requires_grad_(True)
        logits = source.models.classifier(pixels)[0]
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), pixels)
        share = (gradient * batch).abs().flatten(1)
        mask = (share >= share.quantile(0.7, dim=1, keepdim=True)).view_as(batch)
        largest = gradient.abs().flatten(1).amax(dim=1).clamp_min(1e-12)[:, None, None, None]
        changed.append(batch + (0.5, 1.0, 2.0)[number % 3] * mask * gradient / largest)
    return torch.cat(changed)


@outliers("latent boundary")
def latent_boundary(source: OutlierSource, count: int, generator: torch.Generator) -> Tensor:
    """Decoded latents of ID images, moved until the classifier changes its mind (after BOOD, Liao
    et al., and Dream-OOD, Du et al., arXiv 2309.13415, without text).

    Each step climbs the gap between the largest other logit and the class's; two more follow the
    first with another class.
    """
    images, labels = source.draw(count, generator)
    diffusion, classifier = source.models.diffusion, source.models.classifier
    encode, decode = diffusion.encoder, diffusion.decoder
    if encode is None or decode is None:
        raise ValueError("a latent diffusion model is needed")
    moved = []
    for batch, classes in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        with torch.no_grad():
            latents = encode(batch)
        left = torch.full((len(batch),), 2)
        for _ in range(20):
            latents = latents.detach().requires_grad_(True)
            logits = classifier(decode(latents))[0]
            own = F.one_hot(classes, logits.shape[1]).bool()
            gap = logits.masked_fill(own, -torch.inf).amax(dim=1) - logits[own]
            (gradient,) = torch.autograd.grad(gap.sum(), latents)
            left = left - (gap.detach() > 0).long()
            size = gradient.flatten(1).square().mean(dim=1).sqrt().clamp_min(1e-12)
            step = 0.1 * gradient / size[:, None, None, None]
            latents = latents.detach() + step * (left >= 0)[:, None, None, None]
        with torch.no_grad():
            moved.append(decode(latents))
    return torch.cat(moved)
