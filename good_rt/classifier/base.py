"""The classifier that every step of the data's way shares: images in [-1, 1] to logits and
penultimate features.

The one place that knows a network's preprocessing; guidance, training, bank and detector all call
the same `Classifier`, so that they see the same features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from good_rt.classifier.logits import as_logits
from good_rt.classifier.resampling import resampling_matrix
from good_rt.config.declaration import Bounds
from good_rt.errors import GoodRtError

Images = Tensor | Iterable[Tensor]
"""Images (N, C, H, W) in [-1, 1], whole or in batches."""
PIXELS = 2**24
"""Of the images that are run at once."""
Side = Annotated[int, Bounds(low=1, high=2**14)]
Channels = Annotated[int, Bounds(low=1, high=2**10)]
Deviation = Annotated[float, Bounds(low=0, open_low=True)]
"""What classifier.json may have: bounds that keep a damaged file from taking all memory."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Grey of red, green and blue (ITU-R BT.601, as Pillow's)."""


@dataclass(frozen=True)
class Resize:
    """How images become what the network takes: to ``size`` pixels a side, then the middle ``crop``
    of them."""

    size: Side
    crop: Side
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class ClassifierConfig:
    """What classifier.json holds."""

    architecture: str
    classes: tuple[str, ...]
    channels: Channels
    """Of the images; a network of three takes grey ones as well."""
    image_size: Side
    """Of the images, whatever the network's own size is."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    """Per channel of the network, of images in [0, 1]; None where the network takes [-1, 1] as it
    is."""
    std: tuple[Deviation, ...] | None = None
    input_channels: Channels | None = None
    """Of the network; None where they are the images'."""
    resize: Resize | None = None
    """None where the network takes the images at their own size."""
    features: str | None = None
    """The module whose input the features are, where it is not the one that the library's
    convention names."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("classes is empty, but must be one or more names")


class Classifier(nn.Module):
    """images (N, C, H, W) float in [-1, 1] -> logits (N, K) and penultimate features (N, D).

    Args:
        network: Has timm's two methods: ``forward_features`` gives the penultimate features of what
            `prepare` makes of the images, ``forward_head`` the logits of the features. Feature maps
            (N, D, h, w) and tokens (N, T, D) are averaged.
        config: Shape and preprocessing of the images, and classes.
        fingerprint: Hash of config and weights.

    Raises:
        GoodRtError: the channels of network, images, mean and std do not fit together.
    """

    mean: Tensor | None
    std: Tensor | None
    resampling: Tensor | None
    luminance: Tensor

    def __init__(self, network: nn.Module, config: ClassifierConfig, fingerprint: str = "") -> None:
        super().__init__()
        self.notes: tuple[str, ...] = getattr(network, "notes", ())
        """How the network was read, where that is not obvious, for people."""
        self.network = network
        self.config = config
        self.fingerprint = fingerprint
        mean, std, resize = config.mean, config.std, config.resize
        channels = config.input_channels or config.channels
        if (
            channels != config.channels
            and config.channels != 1
            and (channels, config.channels) != (1, 3)
        ):
            raise GoodRtError(
                f"the classifier takes images of {channels} channel{'s' if channels > 1 else ''}, "
                "these have "
                f"{config.channels}; convert them"
            )
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) not in {1, channels}:
                raise GoodRtError(
                    f"the classifier's {name} has {len(values)} values for {channels} channels"
                )
        if (mean is None) != (std is None):
            raise GoodRtError("the classifier's mean and std belong together; give both or neither")
        self.register_buffer(
            "mean", None if mean is None else torch.tensor(mean).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", None if std is None else torch.tensor(std).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "luminance", torch.tensor(LUMINANCE).view(1, 3, 1, 1), persistent=False
        )
        matrix = None
        if resize is not None and config.image_size != resize.crop:
            matrix = resampling_matrix(
                config.image_size, resize.size, resize.crop, resize.interpolation
            )
        self.register_buffer("resampling", matrix, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size, channels = self.config.image_size, self.config.channels
        if tuple(images.shape[1:]) != (channels, size, size):
            found = tuple(images.shape[1:])
            raise GoodRtError(
                f"the classifier takes images of shape {(channels, size, size)}, not {found}"
            )
        if not images.is_floating_point():
            raise GoodRtError(
                f"the classifier takes floats in [-1, 1], not {images.dtype}; convert pixels with "
                "good_rt.data.pixels.from_uint8"
            )
        features = self.network.forward_features(self.prepare(images))  # type: ignore[operator]
        return self.head(features), as_vectors(features)

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features as the network gives them; 0 and the output of a network that
        has one output for two classes."""
        return as_logits(self.network.forward_head(features))  # type: ignore[operator]

    def prepare(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in [-1, 1] -> what the network takes: resized, normalised, with its
        channels.

        Images that already have the network's size are not resized. All of it is linear and
        differentiable.
        """
        if self.resampling is not None:
            across = F.linear(images, self.resampling)
            images = F.linear(across.transpose(2, 3), self.resampling).transpose(2, 3)
        channels = self.config.input_channels
        if channels == 1 and images.shape[1] == 3:
            images = (images * self.luminance).sum(dim=1, keepdim=True)
        if self.mean is not None and self.std is not None:
            images = ((images + 1) / 2 - self.mean) / self.std
        if channels is not None and images.shape[1] != channels:
            images = images.expand(-1, channels, -1, -1)
        return images

    def for_images(self, channels: int, size: int) -> Classifier:
        """The same network for images of other channels and size.

        Args:
            channels: 1 (grey) or 3 (RGB).
            size: Height and width.

        Raises:
            GoodRtError: the network cannot take them.
        """
        config = self.config
        if (channels, size) == (config.channels, config.image_size):
            return self
        if config.resize is None:
            own = (config.channels, config.image_size, config.image_size)
            raise GoodRtError(
                f"the classifier only takes images of shape {own}, not {(channels, size, size)}"
            )
        network_channels = config.input_channels or config.channels
        config = replace(
            config, channels=channels, image_size=size, input_channels=network_channels
        )
        digest = hashlib.sha256(f"{self.fingerprint} {channels} {size}".encode()).hexdigest()
        other = Classifier(self.network, config, digest).train(self.training).to(self.device)
        other.notes = self.notes
        return other

    def fitted(self, shape: Callable[[], tuple[int, ...]]) -> Classifier:
        """`for_images` of a shape that is only asked for where the classifier resizes at all.

        Args:
            shape: Gives (C, H, W).

        Raises:
            GoodRtError: the network cannot take such images.
        """
        if self.config.resize is None:
            return self
        channels, height, width = shape()
        if height != width:
            raise GoodRtError(
                f"the classifier takes square images, not {height}x{width}; crop them"
            )
        return self.for_images(channels, height)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.luminance.device

    @property
    def trainable(self) -> bool:
        """Whether `good_rt.method.training.finetune` can train it."""
        return bool(getattr(self.network, "trainable", True))

    @property
    def differentiable(self) -> bool:
        """Whether guidance can follow its gradient."""
        return bool(getattr(self.network, "differentiable", True))


def as_vectors(features: Tensor) -> Tensor:
    """(N, D), tokens (N, T, D) or maps (N, D, h, w) -> (N, D), averaged over places."""
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.ndim == 3 else features


@torch.no_grad()
def predict(
    classifier: Classifier, images: Tensor, batch: int | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and features (N, D) in evaluation mode, on the CPU.

    Args:
        classifier: The classifier.
        images: (N, C, H, W) in [-1, 1], on any device; each batch is moved to the classifier's.
        batch: Images that run at once; None for as many as `PIXELS` hold, at most 500.

    Raises:
        GoodRtError: the images do not fit the classifier.
    """
    training = classifier.training
    batch = batch or min(500, max(1, PIXELS // (images.shape[2] * images.shape[3])))
    classifier.eval()
    try:
        found = [classifier(part.to(classifier.device)) for part in images.split(batch)]
    finally:
        classifier.train(training)
    return torch.cat([logits.cpu() for logits, _ in found]), torch.cat(
        [features.cpu() for _, features in found]
    )


def outputs(classifier: Classifier, images: Images) -> tuple[Tensor, Tensor]:
    """`predict` of images that may come batch by batch.

    Args:
        classifier: The classifier.
        images: (N, C, H, W) in [-1, 1], whole or in batches.

    Raises:
        GoodRtError: the images do not fit the classifier.
    """
    if isinstance(images, Tensor):
        return predict(classifier, images)
    logits, features = zip(*(predict(classifier, batch) for batch in images), strict=True)
    return torch.cat(logits), torch.cat(features)
