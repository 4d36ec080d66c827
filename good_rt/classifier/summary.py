"""What there is to know of a classifier at a glance, for `good-rt classifier show`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from good_rt.classifier.base import Classifier, Resize, as_vectors
from good_rt.classifier.network import example_images, run_features


@dataclass(frozen=True)
class Summary:
    """A classifier's source, size, preprocessing and features, and what it can be used for."""

    source: str
    parameters: int
    classes: tuple[str, ...]
    channels: int
    size: int
    """Of the network's images."""
    resize: Resize | None
    """How images of another size become the network's."""
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    features: str
    feature_dimension: int
    trainable: bool
    gradient: bool
    """Whether guidance can follow its gradient; a detector needs none."""
    notes: tuple[str, ...] = ()
    """How the network was read, where that is not obvious."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(classifier: Classifier) -> Summary:
    """Runs the network once, for its features' dimension."""
    config, network = classifier.config, classifier.network
    channels = config.input_channels or config.channels
    size = config.resize.crop if config.resize else config.image_size
    parameters = getattr(
        network, "parameter_count", sum(tensor.numel() for tensor in network.parameters())
    )
    return Summary(
        source=config.architecture,
        parameters=parameters,
        classes=config.classes,
        channels=channels,
        size=size,
        resize=config.resize,
        mean=config.mean,
        std=config.std,
        features=getattr(network, "features", "") or "the network's forward_features",
        feature_dimension=as_vectors(run_features(network, example_images(channels, size))).shape[
            1
        ],
        trainable=classifier.trainable,
        gradient=classifier.differentiable,
        notes=classifier.notes,
    )
