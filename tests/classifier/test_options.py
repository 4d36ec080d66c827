"""Each option of each source acts or is refused: none is accepted and ignored."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from good_rt.classifier import Classifier, Settings, load_classifier
from good_rt.errors import GoodRtError

CLASSES = tuple(f"name {i}" for i in range(8))
OPTIONS: dict[str, dict[str, Any]] = {
    "features": {"features": "no such layer"},
    "size": {"size": 24},
    "channels": {"channels": 1},
    "mean": {"mean": (0.123,)},
    "std": {"std": (0.77,)},
    "interpolation": {"interpolation": "nearest"},
    "unknown interpolation": {"interpolation": "none"},
    "classes": {"classes": CLASSES},
    "too few classes": {"classes": CLASSES[:3]},
    "std of 0": {"std": (0.0,)},
    "NaN": {"mean": (float("nan"),)},
    "two values": {"mean": (0.1, 0.2)},
}
REFUSED = {
    "features", "unknown interpolation", "too few classes", "std of 0", "NaN", "two values",
}  # fmt: skip
IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def answers(classifier: Classifier) -> tuple[Any, torch.Tensor]:
    """What a classifier does with images of a size that nobody trains with."""
    with torch.no_grad():
        logits = classifier.for_images(3, 40)(IMAGES)[0]
    return asdict(replace(classifier.config, features=None)), logits


@pytest.mark.parametrize("option", list(OPTIONS))
def test_an_option_acts_or_is_refused(every_source: Any, option: str) -> None:
    try:
        settings = replace(every_source.settings, **OPTIONS[option])
        changed = load_classifier(every_source.spec, settings)
    except GoodRtError:
        assert option not in {"mean", "std", "interpolation", "classes"}
        return
    assert option not in REFUSED
    config, logits = answers(changed)
    before, logits_before = answers(load_classifier(every_source.spec, every_source.settings))
    assert config != before
    if option == "classes":
        assert config["classes"] == CLASSES
    else:
        assert not torch.allclose(logits, logits_before, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("option", ["size", "channels", "mean", "classes", "features"])
def test_a_folder_takes_none(classifier_dir: Any, option: str) -> None:
    with pytest.raises(GoodRtError, match=f"has settings of its own; {option} cannot be given"):
        load_classifier(classifier_dir, Settings(**OPTIONS[option]))


def test_channels_that_the_source_has_are_taken(every_source: Any) -> None:
    settings = replace(every_source.settings, channels=3)
    assert load_classifier(every_source.spec, settings).config.input_channels == 3
