"""Classifiers in a TorchScript file, as `torch.jit.save` writes it, converted to a graph when they
are opened.

PyTorch itself has given TorchScript up for torch.export; what it cannot convert is asked for as
.pt2.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from good_rt.classifier.base import ClassifierConfig
from good_rt.classifier.network import example_images, output_of
from good_rt.classifier.sources.exported import graph_classifier, with_weights
from good_rt.classifier.sources.graph import GraphNetwork, graph_network
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
    settled,
)
from good_rt.classifier.weights import pickle_refusal
from good_rt.errors import GoodRtError, first_line

TORCHSCRIPT_FILE = "model.pt"


def open_torchscript(request: ClassifierRequest) -> OpenedClassifier:
    """The file's network, with the weights in it; the size of its images has to be given."""
    path = Path(request.name)
    size = settled(None, request.input_size, "size", str(path))
    channels = request.input_channels or 3
    network = _read(path, channels, size, request.features)
    return graph_classifier(network, "torchscript", (channels, size), request)


def restore_torchscript(config: ClassifierConfig, folder: Path) -> nn.Module:
    """The file in the folder, with the folder's weights."""
    size = config.resize.crop if config.resize else config.image_size
    return with_weights(
        _read(
            folder / TORCHSCRIPT_FILE,
            config.input_channels or config.channels,
            size,
            config.features,
        ),
        folder,
    )


TORCHSCRIPT = ClassifierSource(open_torchscript, restore_torchscript)


def _read(path: Path, channels: int, size: int, features: str | None) -> GraphNetwork:
    images = example_images(channels, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        try:
            script = torch.jit.load(path, map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            if "constants.pkl" in str(error):
                raise GoodRtError(pickle_refusal(path)) from None
            reason = first_line(error)
            raise GoodRtError(
                f"{path} is not a TorchScript file ({reason}); write it with torch.jit.save"
            ) from None
        try:
            from torch._export.converter import TS2EPConverter

            with torch.no_grad():
                whole = output_of(script(images))
                program = TS2EPConverter(script, (images,)).convert()
                converted = output_of(program.module(check_guards=False)(images))
        except GoodRtError:
            raise
        except Exception as error:  # the converter raises many kinds
            reason = first_line(error)
            raise GoodRtError(
                f"{path} cannot be converted ({reason[:120]}); export the network with "
                "torch.export.save to a .pt2 file"
            ) from None
    if whole.shape != converted.shape or not torch.allclose(whole, converted, 1e-3, 1e-4):
        raise GoodRtError(
            f"{path} computes something else once it is converted; export the network with "
            "torch.export.save to a .pt2 file"
        )
    network = graph_network(program, str(path), features)
    network.files = {TORCHSCRIPT_FILE: path.read_bytes()}
    return network
