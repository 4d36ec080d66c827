"""Sinusoidal embeddings of timesteps whose frequencies are constants, so that every runtime has
PyTorch's.

diffusers computes them again at each call. A runtime's exp differs in the last bit, and a timestep
of 1000 (Flux embeds its guidance as 3500) makes that an error of 1e-4 in the angle: larger than all
others of an exported graph together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FixedTimesteps(nn.Module):
    """timesteps (N,) -> embedding (N, channels): diffusers' `Timesteps`, bit for bit (Vaswani et
    al., arXiv 1706.03762, Sec. 3.5).

    Args:
        channels: Length of an embedding.
        flip: Whether cosines come before sines.
        shift: Subtracted from the number of frequencies in the exponent's denominator.
        scale: Factor of the angles.
        period: Largest period over 2π.
    """

    frequencies: Tensor

    def __init__(
        self, channels: int, flip: bool, shift: float, scale: float = 1, period: int = 10000
    ) -> None:
        super().__init__()
        half = channels // 2
        exponent = -math.log(period) * torch.arange(half, dtype=torch.float32) / (half - shift)
        self.channels, self.flip, self.scale = channels, flip, scale
        self.register_buffer("frequencies", torch.exp(exponent), persistent=False)

    def forward(self, timesteps: Tensor) -> Tensor:
        angles = timesteps[:, None].float() * self.frequencies[None]
        angles = angles if self.scale == 1 else self.scale * angles
        parts = [angles.sin(), angles.cos()]
        embedding = torch.cat(parts[::-1] if self.flip else parts, -1)
        return F.pad(embedding, (0, 1)) if self.channels % 2 else embedding


def fix_timesteps(network: Any) -> None:
    """Puts `FixedTimesteps` in the place of every `Timesteps` of a diffusers network."""
    from diffusers.models.embeddings import Timesteps

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Timesteps):
                fixed = FixedTimesteps(
                    child.num_channels,
                    child.flip_sin_to_cos,
                    child.downscale_freq_shift,
                    child.scale,
                )
                setattr(module, name, fixed)
