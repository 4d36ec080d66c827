"""The user's classifier, wherever it comes from: logits and unit-norm features from images in [-1,
1].

`good_rt.classifier.base` has the one `Classifier` that guidance, training, bank and detector share;
the other files say how to read one: a file a library. `load_classifier` takes a folder or a spec
such as ``timm:resnet18``.
"""

from __future__ import annotations

from good_rt.classifier.base import Classifier, ClassifierConfig, Images, Resize, outputs, predict
from good_rt.classifier.folder import ARCHITECTURES, save_classifier
from good_rt.classifier.load import Settings, load_classifier, saved_spec
from good_rt.classifier.weights import load_weights

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "ClassifierConfig",
    "Images",
    "Resize",
    "Settings",
    "load_classifier",
    "load_weights",
    "outputs",
    "predict",
    "save_classifier",
    "saved_spec",
]
