"""Folders of transformers as people have them: names of classes, several files, no preprocessing,
other tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from good_rt.classifier import Settings, load_classifier, save_classifier
from good_rt.data.id_data import IdData
from good_rt.errors import GoodRtError

transformers = pytest.importorskip("transformers")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ResNet of four classes."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )
    torch.manual_seed(0)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "clf")
    values = {"size": {"height": 32, "width": 32}}
    (tmp_path / "clf" / "preprocessor_config.json").write_text(json.dumps(values))
    return tmp_path / "clf"


def configure(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


def named(*names: str, first: int = 0) -> dict[str, str]:
    return {str(first + i): name for i, name in enumerate(names)}


BAD_LABELS: dict[str, tuple[Any, str]] = {
    "from 1": (
        named("a", "b", "c", "d", first=1),
        "4 names for 4 outputs from 0, and 'a' could be output 1 or, in order, output 0",
    ),
    "gap": ({"0": "a", "1": "b", "3": "c", "4": "d"}, "and output 2 has no name"),
    "fewer": (named("a", "b"), "has 2 names for 4 outputs from 0, and output 2 has no name"),
    "more": (
        named("a", "b", "c", "d", "e"),
        "has 5 names for 4 outputs from 0, and the numbers go",
    ),
    "one": (named("a"), "has 1 names for 4 outputs from 0, and output 1 has no name"),
    "words": ({"a": "0", "b": "1", "c": "2", "d": "3"}, "must map the numbers of outputs to names"),
    "list": (["a", "b", "c", "d"], "must map the numbers of outputs to names"),
    "lists": ({"0": ["a"], "1": ["b"], "2": "c", "3": "d"}, "must map the numbers of outputs"),
    "negative": ({"-1": "a", "0": "b", "1": "c", "2": "d"}, "must map the numbers of outputs"),
    "twice": ({"0": "a", "00": "b", "1": "c", "2": "d"}, "and output 3 has no name"),
}


@pytest.mark.parametrize("form", list(BAD_LABELS))
def test_labels_that_do_not_fit_are_named(folder: Path, form: str, tmp_path: Path) -> None:
    labels, message = BAD_LABELS[form]
    expected = load_classifier(f"transformers:{folder}").network(IMAGES)
    configure(folder, id2label=labels, label2id=None)
    with pytest.raises(GoodRtError, match=f"id2label of config.json .*{message}") as caught:
        load_classifier(f"transformers:{folder}")
    assert "\n" not in str(caught.value) and "--classes names.txt" in str(caught.value)
    if isinstance(labels, dict) and "a" not in labels:  # what transformers itself reads
        classifier = load_classifier(f"transformers:{folder}", Settings(classes=tuple("wxyz")))
        assert classifier.config.classes == tuple("wxyz")
        torch.testing.assert_close(classifier.network(IMAGES), expected)
        save_classifier(classifier, tmp_path / "saved")
        torch.testing.assert_close(load_classifier(tmp_path / "saved").network(IMAGES), expected)


def test_labels_that_contradict_each_other_are_refused(folder: Path) -> None:
    names = ("a", "b", "c", "d")
    configure(folder, id2label=named(*names), label2id={"a": 1, "b": 0, "c": 2, "d": 3})
    with pytest.raises(GoodRtError, match="contradict each other: output 1 is 'b' or 'a'"):
        load_classifier(f"transformers:{folder}")
    configure(folder, label2id={name: i for i, name in enumerate(names)})
    assert load_classifier(f"transformers:{folder}").config.classes == names


def test_folders_called_as_the_labels_get_their_outputs(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=12
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "clf")
    classifier = load_classifier(
        f"transformers:{tmp_path / 'clf'}", Settings(size=32, mean=(0.5,), std=(0.5,))
    )
    for name in config.id2label.values():
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "photos" / name / "1.png")
    data = IdData(tmp_path / "photos")
    assert data.source.classes is not None
    for label, output in data.labels(classifier.config.classes).items():
        assert config.label2id[data.source.classes[label]] == output


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixed_weights_are_read(folder: Path, prefix: str) -> None:
    expected = load_classifier(f"transformers:{folder}").network(IMAGES)
    state = load_file(folder / "model.safetensors")
    save_file({prefix + name: value for name, value in state.items()}, folder / "model.safetensors")
    found = load_classifier(f"transformers:{folder}").network(IMAGES)
    torch.testing.assert_close(found, expected)


def test_sharded_weights_are_read(folder: Path, tmp_path: Path) -> None:
    classifier = load_classifier(f"transformers:{folder}")
    model = transformers.ResNetForImageClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    again = load_classifier(f"transformers:{folder}")
    torch.testing.assert_close(again.network(IMAGES), classifier.network(IMAGES))
    assert again.fingerprint == classifier.fingerprint
    save_classifier(again, tmp_path / "saved")
    torch.testing.assert_close(
        load_classifier(tmp_path / "saved").network(IMAGES), classifier.network(IMAGES)
    )
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(GoodRtError, match="which does not lie beside it"):
        load_classifier(f"transformers:{folder}")


def test_lora_is_named(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({"classifier.1.lora_A.weight": torch.ones(2, 16)}))
    with pytest.raises(GoodRtError, match=r"holds LoRA layers \('classifier\.1\.lora_A"):
        load_classifier(f"transformers:{folder}")
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(GoodRtError, match="is a LoRA adapter, which changes another network"):
        load_classifier(f"transformers:{folder}")


@pytest.mark.parametrize(
    ("task", "reason"),
    [("multi_label_classification", "several classes of an image"), ("regression", "numbers, no")],
)
def test_other_tasks_are_refused(folder: Path, task: str, reason: str) -> None:
    configure(folder, problem_type=task)
    with pytest.raises(GoodRtError, match=f"is made for {task}: it predicts {reason}"):
        load_classifier(f"transformers:{folder}")


def test_one_logit_is_two_classes(folder: Path, tmp_path: Path) -> None:
    config = transformers.ResNetConfig.from_pretrained(folder, num_labels=1)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    spec, settings = f"transformers:{folder}", Settings(classes=("no", "yes"))
    classifier = load_classifier(spec, settings)
    logits = classifier(IMAGES)[0]
    assert logits.shape == (2, 2) and bool((logits[:, 0] == 0).all())
    save_classifier(classifier, tmp_path / "saved")
    torch.testing.assert_close(load_classifier(tmp_path / "saved")(IMAGES)[0], logits)


def test_preprocessing_is_the_librarys_default_and_said(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    classifier = load_classifier(f"transformers:{folder}")
    default = transformers.ConvNextImageProcessor()
    assert classifier.config.mean == pytest.approx(tuple(default.image_mean))
    assert classifier.config.image_size == default.size["shortest_edge"]
    assert "the default of ConvNextImageProcessor" in classifier.notes[-1]
    assert "preprocessor_config.json is missing" in classifier.notes[-1]
    smaller = load_classifier(f"transformers:{folder}", Settings(size=32))
    assert smaller.config.resize is not None and smaller.config.resize.size == 32
    settings = Settings(size=32, mean=(0.1,), std=(0.3,))
    given = load_classifier(f"transformers:{folder}", settings)
    assert given.notes == () and given.config.mean == (0.1,) and given.config.std == (0.3,)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(GoodRtError, match=r"preprocessor_config\.json is not valid JSON"):
        load_classifier(f"transformers:{folder}")


def test_a_teachers_head_counts(tmp_path: Path) -> None:
    config = transformers.DeiTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    model.save_pretrained(tmp_path / "deit")
    settings = Settings(size=32, mean=(0.5,), std=(0.5,))
    classifier = load_classifier(f"transformers:{tmp_path / 'deit'}", settings)
    with torch.no_grad():
        expected = model(pixel_values=IMAGES).logits
    torch.testing.assert_close(classifier.network(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert "logits are the mean of 'cls_classifier' and" in classifier.notes[0]
    save_classifier(classifier, tmp_path / "saved")
    again = load_classifier(tmp_path / "saved")
    torch.testing.assert_close(again.network(IMAGES), expected, rtol=1e-4, atol=1e-5)
