"""How the scripts train: one loop with checkpoints, cosine schedule and moving average, and the
latent UNet by it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Fit:
    """How long and in what batches a model is trained.

    Attributes:
        name: Of the checkpoint.
        folder: Of the checkpoint.
        batch: Images in a step.
        steps: Optimiser steps.
        ema: Decay of the moving average of the weights, which the model ends as.
        clip: Largest norm of the gradient.
    """

    name: str
    folder: Path
    batch: int
    steps: int
    ema: float = 0.995
    clip: float = 1.0


def fit(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    size: int,
    plan: Fit,
) -> None:
    """Minimises ``loss(indices, generator)`` over ``size`` images with a warm-up and a cosine
    schedule, resuming from a checkpoint."""
    name, batch, steps = plan.name, plan.batch, plan.steps
    checkpoint = plan.folder / f"{name}.ckpt"
    average = copy.deepcopy(model).requires_grad_(False)
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.load_state_dict(state["average"])
        step = state["step"]
        click.echo(f"{name}: resumes at step {step}")
    peaks = [group.setdefault("peak", group["lr"]) for group in optimiser.param_groups]
    began, first, shown = time.time(), step, 0.0
    model.train()
    while step < steps:
        generator = torch.Generator().manual_seed(
            step
        )  # a batch depends on its step alone, so a resumed run agrees
        if step % (size // batch) == 0 or step == first:
            epoch = torch.Generator().manual_seed(1_000_000 + step // (size // batch))
            order = torch.randperm(size, generator=epoch)
        offset = step % (size // batch) * batch
        factor = min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        value = loss(order[offset : offset + batch], generator)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimiser.step()
        step += 1
        decay = min(plan.ema, (1 + step) / (10 + step))
        for target, weight in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            if target.is_floating_point():
                target.lerp_(weight, 1 - decay)  # batch norm's running statistics as well
        shown = 0.98 * shown + 0.02 * value.item()
        if step % 100 == 0 or step == steps:
            speed = (time.time() - began) / (step - first)
            click.echo(
                f"{name} step {step}/{steps} loss {shown / (1 - 0.98 ** (step - first)):.5f} "
                f"{speed:.3f} s/step"
            )
        if step % 250 == 0 or step == steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
            state["average"] = average.state_dict()
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    model.load_state_dict(average.state_dict())
    model.eval().requires_grad_(False)


def batches(run: Callable[[Tensor], Tensor], x: Tensor, size: int = 500) -> Tensor:
    with torch.no_grad():
        return torch.cat([run(part) for part in x.split(size)])


def detail_density(alphas_cumprod: Tensor) -> Tensor:
    """(T,) ᾱ -> (T,) probabilities that put the timesteps where an image's details are decided.

    Nine tenths are EDM's normal distribution of log σ (arXiv 2206.00364, Tab. 1, for latents of
    unit variance), a tenth is uniform. By uniform timesteps alone, three quarters would have σ > 1.
    """
    log_sigma = ((1 - alphas_cumprod) / alphas_cumprod).log() / 2
    normal = torch.exp(-0.5 * ((log_sigma + 0.5) / 1.2) ** 2) * torch.gradient(log_sigma)[0]
    return 0.9 * normal / normal.sum() + 0.1 / len(normal)


def fit_unet(
    model: UNet2DModel,
    latents: Tensor,
    labels: Tensor,
    null_class: int,
    out: Path,
    plan: Fit,
    lr: float = 1e-3,
    details: bool = False,
) -> None:
    """Trains a class-conditional UNet by v-prediction on latents (N, C, H, W) and labels (N,), and
    saves it in ``out``.

    A tenth of the labels is dropped to ``null_class`` for classifier-free guidance. Timesteps are
    drawn uniformly, or for ``details`` by `detail_density`.
    """
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0195,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-4)
    density = detail_density(scheduler.alphas_cumprod) if details else torch.ones(1000)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        z, label = latents[index], labels[index].clone()
        t = torch.multinomial(density, len(z), replacement=True, generator=generator)
        noise = torch.randn(z.shape, generator=generator)
        label[torch.rand(len(z), generator=generator) < 0.1] = null_class
        predicted = model(scheduler.add_noise(z, noise, t), t, class_labels=label).sample
        return F.mse_loss(predicted, scheduler.get_velocity(z, noise, t))

    fit(model, optimiser, loss, len(latents), plan)
    model.save_pretrained(out / "unet")
    scheduler.save_pretrained(out / "scheduler")
