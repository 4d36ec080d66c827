"""The two models of a job, a diffusion model and a classifier: named, loaded once, and compared.

`ModelSpec.load` is the only place that loads them together. Every step takes the `Models` that it
returns, so that one run reads and hashes each model once and computes the features of ID images
once. Importing this module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from good_rt.config.declaration import setting
from good_rt.demo import assets
from good_rt.errors import GoodRtError
from good_rt.files import demo_path, user_path
from good_rt.specs import (
    HUB_KINDS,
    is_mistyped_path,
    resolved_spec,
    split_kind,
    split_weights,
    suggestion,
)

if TYPE_CHECKING:
    import torch

    from good_rt.classifier import Classifier, IdFeatures
    from good_rt.data.id_data import IdData
    from good_rt.diffusion import DiffusionModel

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""owner/name on the Hugging Face hub."""


@dataclass(frozen=True)
class ModelSpec:
    """Which diffusion model and classifier to load, as paths or specs."""

    classifier: str | Path = setting(
        assets.CLASSIFIER,
        "Classifier: a folder, timm:NAME@FILE.safetensors, torchvision:NAME@FILE.safetensors, "
        "transformers:FOLDER_OR_NAME, MODULE:ATTR@FILE.safetensors, PLUGIN:ARGUMENT, or a .pt2, "
        ".pt or .onnx file.",
        default_text="the demo's",
        required_in_file=True,
    )
    diffusion: str | Path = setting(
        assets.MODEL,
        "Diffusion model: a diffusers folder, or a name on the Hugging Face hub.",
        option="--model",
        default_text="the demo's",
        required_in_file=True,
    )
    gradient_decoder: str | Path | None = setting(
        None,
        "Folder of a light autoencoder (AutoencoderTiny) that gradients go through, in place of "
        "the decoder.",
    )
    image_size: int | None = setting(
        None,
        "Height and width of the images, for diffusion models that accept other sizes than their "
        "own.",
        low=1,
    )

    @property
    def classifier_path(self) -> Path:
        """The classifier as a path; the demo's where "demo" names it."""
        return _without_home(demo_path(self.classifier, assets.CLASSIFIER))

    @property
    def diffusion_path(self) -> Path:
        """The diffusion model as a path; the demo's where "demo" names it."""
        return demo_path(self.diffusion, assets.MODEL)

    @property
    def gradient_decoder_path(self) -> Path | None:
        """The light autoencoder as a path; the demo's where "demo" names it. None where there is
        none.
        """
        value = self.gradient_decoder
        return None if value is None else demo_path(value, assets.GRADIENT_DECODER)

    def check_paths(self, blame: Blame = lambda name: nullcontext()) -> None:
        """Checks that the files exist, without importing or loading anything.

        Args:
            blame: Context in which each field is checked; a job uses it to name the field's key.

        Raises:
            GoodRtError: a path does not exist.
        """
        with blame("diffusion"):
            path = self.diffusion_path
            is_name = HUB_NAME.fullmatch(path.as_posix()) and not is_mistyped_path(
                str(self.diffusion)
            )
            if not path.exists() and not is_name:
                raise GoodRtError(
                    f"{path} does not exist{suggestion(path)}; give a diffusers folder, as "
                    "`save_pretrained` writes it, or a model's name on the Hugging Face hub"
                )
        with blame("gradient_decoder"):
            light = self.gradient_decoder_path
            if light is not None and not light.exists():
                raise GoodRtError(f"{light} does not exist; give the folder of an AutoencoderTiny")
        with blame("classifier"):
            check_classifier_path(self.classifier_path)

    def load(
        self, device: torch.device | str = "cpu", blame: Blame = lambda name: nullcontext()
    ) -> Models:
        """Both models, read once and compared with each other.

        Args:
            device: Where steps run them: "cpu", "cuda" or "cuda:N".
            blame: Context in which each field is read; a job uses it to name the field's key.

        Raises:
            GoodRtError: a model is missing or damaged, or they do not fit together.
        """
        self.check_paths(blame)
        from good_rt.classifier import load_classifier
        from good_rt.diffusion import load_diffusion
        from good_rt.environment import use_device

        used_device = use_device(device)
        with blame("diffusion"):
            diffusion = load_diffusion(
                self.diffusion_path,
                gradient_decoder=self.gradient_decoder_path,
                image_size=self.image_size,
            )
        with blame("classifier"):
            classifier = load_classifier(self.classifier_path)
            classifier = classifier.fitted(lambda: diffusion.image_shape)
            check_fit(diffusion, classifier)
        return Models(diffusion, classifier, used_device)


Blame = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, eq=False)
class Models:
    """A diffusion model and a classifier that fit together, loaded once.

    Attributes:
        diffusion: The diffusion model.
        classifier: The classifier, for images of the diffusion model's shape.
        device: Where steps run them.
    """

    diffusion: DiffusionModel
    classifier: Classifier
    device: torch.device
    _id_features: dict[tuple[IdData, int], IdFeatures] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of every weight of both models, as engines and generated sets record them."""
        return {"model": self.diffusion.fingerprint, "classifier": self.classifier.fingerprint}

    def id_features(self, id_data: IdData, size: int) -> IdFeatures:
        """The features of evenly spaced training images, computed once.

        Args:
            id_data: In-distribution images.
            size: Largest number of images.

        Raises:
            GoodRtError: the images do not fit the classifier.
        """
        for (data, asked), features in self._id_features.items():
            holds_all = len(features) < asked
            if data == id_data and (size == asked or (holds_all and size >= len(features))):
                return features
        from good_rt.data.batches import id_features

        self._id_features[id_data, size] = id_features(id_data, self.classifier, size)
        return self._id_features[id_data, size]


def _without_home(spec: Path) -> Path:
    """A spec whose paths do not begin with ~."""
    if "~" not in str(spec) or spec.exists():
        return spec

    def existing(part: Path) -> Path | None:
        path = user_path(part)
        return path if path.exists() else None

    return resolved_spec(str(spec), existing)


def check_classifier_path(path: Path) -> None:
    """Checks that the path of a classifier's spec exists, where the spec can only be a path.

    Args:
        path: Path or spec.

    Raises:
        GoodRtError: it does not exist.
    """
    name, weights = split_weights(str(path))
    if weights and not Path(weights).exists():
        raise GoodRtError(
            f"{weights} does not exist (in {str(path)!r}); give a safetensors file after the @"
        )
    kind, rest = split_kind(name)
    if kind in HUB_KINDS and is_mistyped_path(rest):
        raise GoodRtError(
            f"{rest} does not exist (in {str(path)!r}){suggestion(Path(rest))}; give a folder, or "
            "a model's name"
        )
    if not Path(name).exists() and not kind:
        raise GoodRtError(
            f"{path} does not exist{suggestion(path)}; give a classifier folder, or a spec such as "
            "timm:resnet18"
        )


def check_fit(diffusion: DiffusionModel, classifier: Classifier) -> None:
    """Checks that the diffusion model gives the images that the classifier takes.

    Args:
        diffusion: The diffusion model.
        classifier: The classifier.

    Raises:
        GoodRtError: channels or size differ, or the model knows fewer classes than the classifier.
    """
    from good_rt.diffusion.base import misfits

    config = classifier.config
    taken = (config.channels, config.image_size, config.image_size)
    problems = misfits(
        diffusion.image_shape, taken, diffusion.num_class_embeds, len(config.classes)
    )
    if problems:
        raise GoodRtError(problems[0])
