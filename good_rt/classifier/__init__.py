"""The user's classifier, wherever it comes from: images in [-1, 1] to logits and features.

`base` has the one `Classifier` that guidance, training, bank and detector share; `load` opens one
from a folder or a spec such as ``timm:resnet18``, with the help of `sources`, a file a library.
"""

from __future__ import annotations

from good_rt.classifier.base import Classifier, ClassifierConfig, Images, Resize, outputs, predict
from good_rt.classifier.features import IdFeatures
from good_rt.classifier.folder import ARCHITECTURES, save_classifier
from good_rt.classifier.load import Settings, load_classifier, saved_spec
from good_rt.classifier.network import ClassifierNetwork, part
from good_rt.classifier.sources.registry import (
    ClassifierRequest,
    ClassifierSource,
    OpenedClassifier,
)
from good_rt.classifier.weights import load_weights, put_weights

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "ClassifierConfig",
    "ClassifierNetwork",
    "ClassifierRequest",
    "ClassifierSource",
    "IdFeatures",
    "Images",
    "OpenedClassifier",
    "Resize",
    "Settings",
    "load_classifier",
    "load_weights",
    "outputs",
    "part",
    "predict",
    "put_weights",
    "save_classifier",
    "saved_spec",
]
