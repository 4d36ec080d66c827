"""DiT, the class-conditional latent transformer (Peebles & Xie, arXiv 2212.09748), which also
learns its variance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from good_rt.diffusion.base import Family, Shape, predicted_channels
from good_rt.diffusion.conditioning import ClassLabels, Conditioner
from good_rt.errors import GoodRtError
from good_rt.files import read_json


class DiTModule(nn.Module):
    """(sample (N, C, H, W), timestep (N,) float32, class_labels (N,) int64) -> prediction (N, C, H,
    W)."""

    def __init__(self, transformer: nn.Module, channels: int) -> None:
        super().__init__()
        self.transformer, self.channels = transformer, channels

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        output: Tensor = self.transformer(sample, timestep, class_labels, return_dict=False)[0]
        return output[:, : self.channels]


class DiT(Family):
    classes = ("DiTTransformer2DModel", "Transformer2DModel")
    about = "DiT, a transformer by class label"

    def check(self, config: Mapping[str, Any], folder: Path) -> None:
        super().check(config, folder)
        if config.get("norm_type") != "ada_norm_zero" or config.get("num_embeds_ada_norm") is None:
            raise GoodRtError(
                f"{folder} is a Transformer2DModel that is no DiT (norm_type ada_norm_zero with "
                "labels)"
            )

    def module(self, network: nn.Module, config: Mapping[str, Any], shape: Shape) -> nn.Module:
        return DiTModule(network, predicted_channels(config))

    def condition_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"class_labels": ()}

    def conditioner(
        self, config: Mapping[str, Any], folder: Path, image_shape: Shape
    ) -> Conditioner | None:
        # one more label than classes: the one that classes were dropped to in training
        return ClassLabels(config["num_embeds_ada_norm"] + 1, _names(folder))


def _names(folder: Path) -> dict[str, int] | None:
    """The label of every class name that model_index.json knows; a label may have several, between
    commas."""
    path = folder / "model_index.json"
    known = read_json(path).get("id2label") if path.exists() else None
    if not isinstance(known, dict):
        return None
    return {
        name.strip(): int(label) for label, names in known.items() for name in str(names).split(",")
    }
