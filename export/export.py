"""`good-rt export` as a function: UNet, VAE and classifier to ONNX engines that are proved before they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import good_rt
from good_rt.classifier import Classifier, load_classifier
from good_rt.diffusion import DiffusionModel, load_diffusion
from good_rt.engines.onnxruntime import OnnxRuntimeEngine
from good_rt.errors import GoodRtError, ParityError
from good_rt.export.manifest import MANIFEST, GraphEntry, Manifest
from good_rt.export.parity import ABSOLUTE, RELATIVE, Parity, compare
from good_rt.export.to_onnx import OPSET, export_onnx
from good_rt.files import atomic_path, sha256

InputMaker = Callable[[int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Graph:
    """A module to export: its outputs' names, and what makes its inputs by name for any batch size, by kind."""

    module: nn.Module
    outputs: tuple[str, ...]
    inputs: Mapping[str, InputMaker]


def graphs_of(model: DiffusionModel, classifier: Classifier, images: Tensor | None) -> dict[str, Graph]:
    """All graphs that a model and a classifier have.

    ``images`` (N, C, H, W) in [-1, 1], any N > 0, are the real inputs; latents come from them by the VAE.
    """

    def latents(n: int) -> Tensor:
        assert images is not None
        real = images[torch.arange(n) % len(images)]
        with torch.no_grad():
            return real if model.encoder is None else model.encoder(real)

    def noisy(latent: Tensor) -> Mapping[str, Tensor]:
        n, generator = len(latent), torch.Generator().manual_seed(len(latent))
        timestep = torch.linspace(len(model.alphas_cumprod) - 1, 0, n).round()
        alpha = torch.from_numpy(model.alphas_cumprod)[timestep.long()].float().view(-1, 1, 1, 1)
        noise = torch.randn(latent.shape, generator=generator)
        found = {"sample": alpha.sqrt() * latent + (1 - alpha).sqrt() * noise, "timestep": timestep}
        if model.num_class_embeds is not None:
            found["class_labels"] = torch.arange(n) % model.num_class_embeds
        return found

    def random(shape: tuple[int, int, int], n: int) -> Tensor:
        return torch.randn((n, *shape), generator=torch.Generator().manual_seed(n))

    def kinds(name: str, shape: tuple[int, int, int], real: Callable[[int], Tensor]) -> dict[str, InputMaker]:
        makers: dict[str, InputMaker] = {"random": lambda n: {name: random(shape, n)}}
        return {"real": lambda n: {name: real(n)}, **makers} if images is not None else makers

    def real_images(n: int) -> Tensor:
        assert images is not None
        return images[torch.arange(n) % len(images)]

    unet_inputs: dict[str, InputMaker] = {"random": lambda n: noisy(random(model.sample_shape, n))}
    if images is not None:
        unet_inputs = {"real": lambda n: noisy(latents(n)), **unet_inputs}
    graphs = {"unet": Graph(model.unet, ("output",), unet_inputs)}
    if model.encoder is not None and model.decoder is not None:
        graphs["vae_encoder"] = Graph(model.encoder, ("latents",), kinds("images", model.image_shape, real_images))
        graphs["vae_decoder"] = Graph(model.decoder, ("images",), kinds("latents", model.sample_shape, latents))
    config = classifier.config
    shape = (config.channels, config.image_size, config.image_size)
    graphs["classifier"] = Graph(classifier, ("logits", "features"), kinds("images", shape, real_images))
    return graphs


def export_models(
    model_dir: Path,
    classifier_dir: Path,
    out: Path,
    *,
    images: Tensor | None = None,
    opset: int = OPSET,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
    force: bool = False,
    on_graph: Callable[[str], None] = lambda name: None,
) -> tuple[Manifest, bool]:
    """Exports every graph into ``out`` and returns the manifest, and whether anything had to be done.

    ``images`` (N, C, H, W) in [-1, 1] are the real inputs of the parity check. An unchanged model with intact files is
    left alone unless ``force``. Raises ParityError, leaving ``out`` as it was, when a graph is not what PyTorch
    computes, and GoodRtError when ``out`` holds other things than engines.
    """
    model, classifier = load_diffusion(model_dir), load_classifier(classifier_dir)
    if model.image_shape[0] != classifier.config.channels or model.image_shape[1] != classifier.config.image_size:
        raise GoodRtError(
            f"the diffusion model makes images of shape {model.image_shape}, the classifier takes "
            f"{classifier.config.channels} channels of {classifier.config.image_size} pixels; both must agree"
        )
    source = {"model": model.fingerprint, "classifier": classifier.fingerprint}
    tolerance = {"relative": relative, "absolute": absolute}
    if not force:
        try:
            found = Manifest.read(out)
            found.check_files(out)
        except GoodRtError:
            pass  # nothing there yet, or damaged: exported anew
        else:
            if (dict(found.source), found.opset, dict(found.tolerance)) == (source, opset, tolerance):
                return found, False
    if out.is_dir() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise GoodRtError(
            f"{out} holds other files than engines, and would be replaced as a whole; choose another --out"
        )
    entries: dict[str, GraphEntry] = {}
    rows: list[Parity] = []
    with atomic_path(out) as folder:
        folder.mkdir()
        for name, graph in graphs_of(model, classifier, images).items():
            on_graph(name)
            path = folder / f"{name}.onnx"
            export_onnx(graph.module, graph.inputs["random"](2), graph.outputs, path, opset=opset)
            engine = OnnxRuntimeEngine(path)
            rows += compare(name, engine, graph.module, graph.inputs, relative=relative, absolute=absolute)
            entries[name] = GraphEntry(path.name, sha256(path), path.stat().st_size, engine.inputs, engine.outputs)
        failed = [row for row in rows if not row.ok]
        if failed:
            worst = max(failed, key=lambda row: row.excess)
            raise ParityError(
                f"{worst.graph}.onnx is not what PyTorch computes: output {worst.output!r} on {worst.inputs} inputs at "
                f"batch {worst.batch} differs by {worst.max_absolute:.1e}, {worst.excess:.3g} times the tolerance "
                f"({absolute:g} + {relative:g} relative); nothing was written"
            )
        versions = {
            "good-rt": good_rt.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        }
        manifest = Manifest(source, opset, tolerance, entries, tuple(rows), versions)
        manifest.write(folder)
    return manifest, True
