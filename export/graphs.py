"""Which graphs a diffusion model and a classifier have, with real and random inputs to check each
on.

`good_rt.export.export` writes and proves them. Another graph is one more entry in `graphs_of`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from good_rt.classifier import Classifier
from good_rt.diffusion import DiffusionModel
from good_rt.export.guidance_module import GuidanceModule
from good_rt.method.discrepancy import Discrepancy

EXPORTER = 2
"""The version of the exported graphs: engines of another one are exported again.

Whoever changes what a graph computes, or how, raises it; tests/export/test_exporter_version.py
fails where the text of a graph changes and this number does not.
"""
Arrays = Mapping[str, Tensor]
InputMaker = Callable[[int], Arrays]
"""Batch size -> inputs by name, in the module's order; the same for the same size."""


@dataclass(frozen=True)
class Graph:
    """A module to export.

    Attributes:
        module: Takes its inputs by position.
        outputs: Names of its outputs.
        inputs: What makes its inputs, by kind ("real", "random").
        wrt: Name of the input that the graph also gives the gradient with respect to; the graph
            then takes cotangents. None for no gradient.
        split: Whether the graph is also written as a forward and a backward half.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    inputs: Mapping[str, InputMaker]
    wrt: str | None = None
    split: bool = False


@dataclass(frozen=True)
class FusedGuidance:
    """What the fused guidance graph holds beside decoder and classifier."""

    feature: Discrepancy
    temperature: float = 1.0

    @property
    def fingerprint(self) -> str:
        settings = {**self.feature.parameters_used(), "temperature": self.temperature}
        digest = hashlib.sha256(f"{self.feature.name} {settings}".encode())
        for name, tensor in sorted(self.feature.graph().state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


def graphs_of(
    model: DiffusionModel,
    classifier: Classifier,
    images: Tensor | None,
    fused: FusedGuidance | None = None,
) -> dict[str, Graph]:
    """All graphs of a diffusion model and a classifier by name.

    "network" is the denoiser, a UNet or a transformer. Gradients go through the light decoder where
    the model has one.

    Args:
        model: The diffusion model.
        classifier: The classifier.
        images: (N, C, H, W) in [-1, 1], N > 0, the real inputs; latents come from them by the VAE.
            None for random inputs only.
        fused: The discrepancies of the graphs with gradients ("network_vjp", "decoder_vjp",
            "guidance_vjp"); None leaves them out.
    """
    config = classifier.config
    conditioning = model.conditioning(config.classes)

    def kinds(
        shape: tuple[int, int, int],
        real: Callable[[int], Tensor],
        complete: Callable[[Tensor], Arrays],
    ) -> dict[str, InputMaker]:
        makers: dict[str, InputMaker] = {"random": lambda n: complete(_normal((n, *shape), seed=n))}
        return makers if images is None else {"real": lambda n: complete(real(n)), **makers}

    def real_images(n: int) -> Tensor:
        assert images is not None
        return images[torch.arange(n) % len(images)]

    @torch.no_grad()
    def real_latents(n: int) -> Tensor:
        return real_images(n) if model.encoder is None else model.encoder(real_images(n))

    def noisy(latents: Tensor) -> Arrays:
        n = len(latents)
        timestep, signal, noise = (
            torch.from_numpy(part).float() for part in model.process.levels(n)
        )
        factors = signal.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1)
        sample = factors[0] * latents + factors[1] * _normal(latents.shape, seed=n)
        arrays = {"sample": sample, "timestep": timestep}
        if conditioning is not None:
            rows = torch.arange(n) % conditioning.count
            arrays |= dict(zip(conditioning.names, conditioning(rows), strict=True))
        return arrays

    def guided(latents: Tensor) -> Arrays:
        n = len(latents)
        weight = torch.linspace(0.2, 0.8, n)
        offset = 0.05 * _normal((n, *model.image_shape), seed=n)
        return {
            "latents": latents,
            "offset": offset,
            "image_weight": weight,
            "feature_weight": 1 - weight,
        }

    of_latents = kinds(model.sample_shape, real_latents, lambda latents: {"latents": latents})
    of_images = kinds(model.image_shape, real_images, lambda pixels: {"images": pixels})
    of_noisy = kinds(model.sample_shape, real_latents, noisy)
    graphs = {"network": Graph(model.network, ("output",), of_noisy)}
    if model.encoder is not None and model.decoder is not None:
        graphs["vae_encoder"] = Graph(model.encoder, ("latents",), of_images)
        graphs["vae_decoder"] = Graph(model.decoder, ("images",), of_latents)
    shape = (config.channels, config.image_size, config.image_size)
    of_pixels = kinds(shape, real_images, lambda pixels: {"images": pixels})
    graphs["classifier"] = Graph(classifier, ("logits", "features"), of_pixels)
    if fused is not None:
        graphs["network_vjp"] = Graph(
            model.network, ("output",), of_noisy, wrt="sample", split=True
        )
        if model.gradient_decoder is not None:
            graphs["decoder_vjp"] = Graph(
                model.gradient_decoder, ("images",), of_latents, wrt="latents", split=True
            )
        guidance = GuidanceModule(
            model.gradient_decoder, classifier, fused.feature, fused.temperature
        ).eval()
        of_guided = kinds(model.sample_shape, real_latents, guided)
        graphs["guidance_vjp"] = Graph(guidance, ("value",), of_guided, wrt="latents")
    return graphs


def graph_names(model: DiffusionModel, vjp: bool) -> tuple[str, ...]:
    """The names of all graphs, in the order of `graphs_of`.

    Args:
        model: The diffusion model.
        vjp: Whether those with gradients are among them.
    """
    latent = model.encoder is not None and model.decoder is not None
    names = ["network", *(("vae_encoder", "vae_decoder") if latent else ()), "classifier"]
    if vjp:
        names.append("network_vjp")
        if model.gradient_decoder is not None:
            names.append("decoder_vjp")
        names.append("guidance_vjp")
    return tuple(names)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
