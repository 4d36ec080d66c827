"""The networks of OpenOOD v1.5's published checkpoints, by the names of their weights.

As a classifier of any good-rt command, with this folder on PYTHONPATH:
`openood_networks:cifar10@FOLDER`, where FOLDER is what `openood.py --save` wrote.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., arXiv 1512.03385, Fig. 2)."""

    def __init__(self, channels_in: int, channels: int, stride: int, projection: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.projection = projection if stride > 1 else ""
        if self.projection:
            convolution = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.add_module(projection, nn.Sequential(convolution, nn.BatchNorm2d(channels)))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.get_submodule(self.projection)(x) if self.projection else x
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + shortcut)


class ResNet18(nn.Module):
    """ResNet-18: RGB images -> logits (N, K), by way of features (N, 512).

    Args:
        classes: K.
        image_size: 32: no pooling after the first convolution, a 3x3 one (OpenOOD's
            ResNet18_32x32); 224: torchvision's ResNet-18 (ResNet18_224x224).
    """

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        small = image_size == 32
        self.image_size, self.pools = image_size, not small
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for number, width in enumerate(WIDTHS, 1):
            first = BasicBlock(
                WIDTHS[max(number - 2, 0)],
                width,
                stride=1 if number == 1 else 2,
                projection="shortcut" if small else "downsample",
            )
            blocks = OrderedDict({"0": first, "1": BasicBlock(width, width, 1, "")})
            self.add_module(f"layer{number}", nn.Sequential(blocks))
        self.fc = nn.Linear(WIDTHS[-1], classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 512) penultimate features."""
        x = F.relu(self.bn1(self.conv1(images)))
        if self.pools:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return torch.mean(x, dim=(2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        """(N, K) logits."""
        return self.fc(features)

    def forward(self, images: Tensor) -> Tensor:
        """(N, K) logits."""
        return self.forward_head(self.forward_features(images))


def cifar10() -> ResNet18:
    """For the checkpoints ``cifar10_resnet18_32x32_…``."""
    return ResNet18(10, 32)


def cifar100() -> ResNet18:
    """For the checkpoints ``cifar100_resnet18_32x32_…``."""
    return ResNet18(100, 32)


def imagenet200() -> ResNet18:
    """For the checkpoints ``imagenet200_resnet18_224x224_…``."""
    return ResNet18(200, 224)
