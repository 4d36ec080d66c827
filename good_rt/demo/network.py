"""The demo's image classifier: a small residual network for 32x32 greyscale images.

It stands for the user's own classifier; nothing in the method depends on its form.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a (projected) shortcut (He et al., arXiv 1512.03385,
    Fig. 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A ResNet of three stages whose last feature map is average-pooled to ``4 * width`` features.

    The method names follow timm: ``forward_features`` gives the penultimate features,
    ``forward_head`` the logits.
    """

    def __init__(self, in_channels: int = 1, width: int = 32, num_classes: int = 8) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, 1, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.stages = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 1),
            ResidualBlock(2 * width, 4 * width, 2),
            ResidualBlock(4 * width, 4 * width, 1),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] -> (N, 4 * width) penultimate features, not normalised."""
        return self.stages(self.stem(x)).mean(dim=(2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        """(N, 4 * width) features -> (N, num_classes) logits."""
        return self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] -> (N, num_classes) logits."""
        return self.forward_head(self.forward_features(x))
