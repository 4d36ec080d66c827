"""Specs that name nothing usable end in one line that says what is wrong and what to do."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from good_rt.classifier import (
    Classifier,
    ClassifierConfig,
    Resize,
    Settings,
    load_classifier,
    save_classifier,
)
from good_rt.classifier.sources.exported import check_archive
from good_rt.demo.network import SmallResNet
from good_rt.errors import GoodRtError


class Ends(nn.Module):
    """A network whose last Linear is followed by what it should not be."""

    image_size = 16

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean(dim=(2, 3))).softmax(dim=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "state.pth")
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "state.pt")
    save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "small.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    (tmp_path / "broken.onnx").write_bytes(b"not one")
    (tmp_path / "broken.pt2").write_bytes(b"not one")
    (tmp_path / "ends.py").write_text("from torch import nn\nnumber = 3\n")
    return tmp_path


SPECS = {
    "nowhere": "nowhere is not a classifier folder",
    "state.pth": "is a pickle, which can run code, and is not read; "
    ".*to safetensors: python -m good_rt.classifier.unpickle state.pth state.safetensors$",
    "timm:resnet18@state.pth": "is a pickle, .*convert its tensors once to safetensors: python",
    "small.safetensors": "only holds weights; say of which network, such as "
    "timm:resnet18@small.safetensors",
    "gone.pt2": r"gone\.pt2 does not exist",
    "broken.pt2": r"broken\.pt2 is not a \.pt2 file",
    "broken.onnx": r"broken\.onnx is not an ONNX file that can be read",
    "broken.pt2@small.safetensors": "has its weights in it; leave out what follows the @",
    "timm:": "names no model; write timm:NAME",
    "timm:resnet18@gone.safetensors": r"gone\.safetensors does not exist",
    "no_such_module:Net": "module 'no_such_module' cannot be imported",
    "ends:Gone": "'ends' has no 'Gone'; give MODULE:ATTR",
    "ends:number": "does not say what images it takes",
    "some thing@small.safetensors": "is no classifier; known are FOLDER, timm:",
}


@pytest.mark.parametrize("spec", list(SPECS))
def test_a_bad_spec_is_named(here: Path, spec: str) -> None:
    with pytest.raises(GoodRtError, match=SPECS[spec]):
        load_classifier(spec)


def test_timm_says_what_does_not_fit(here: Path) -> None:
    pytest.importorskip("timm")
    for spec, message in (
        ("timm:resnet81@small.safetensors", "timm has no model 'resnet81'"),
        ("timm:test_resnet@broken.safetensors", "is not a safetensors file"),
        (
            "timm:test_vit@small.safetensors",
            "lacks 'head.weight'; it does not belong to timm:test_vit",
        ),
    ):
        with pytest.raises(GoodRtError, match=message):
            load_classifier(spec)


def test_a_hub_name_without_network_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for spec in ("timm:test_resnet", "transformers:nobody/nothing", "timm:nobody/nothing"):
        with pytest.raises(
            GoodRtError, match="cannot be fetched from the hub; connect to the network once"
        ):
            load_classifier(spec)


def test_torchvision_has_pickles_alone(here: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(
        GoodRtError, match=r"publishes its weights as pickles; give a safetensors file.*resnet18-"
    ):
        load_classifier("torchvision:resnet18")
    with pytest.raises(
        GoodRtError, match="torchvision has no classifier 'resnet81'; did you mean resnet"
    ):
        load_classifier("torchvision:resnet81@small.safetensors")


def test_transformers_folders(here: Path) -> None:
    pytest.importorskip("transformers")
    folder = here / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "vit", "auto_map": {"AutoModel": "own.Net"}})
    )
    with pytest.raises(
        GoodRtError, match=r"names code of its own in config.json, which is not run"
    ):
        load_classifier(f"transformers:{folder}")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(GoodRtError, match="is a pickle, which can run code"):
        load_classifier(f"transformers:{folder}")


def test_a_state_dict_is_no_torchscript(here: Path) -> None:
    with pytest.raises(
        GoodRtError, match=r"state\.pt is a pickle|state\.pt is not a TorchScript file"
    ):
        load_classifier("state.pt", Settings(size=32))


def test_probabilities_and_unknown_features_are_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ends  # type: ignore[import-not-found]

    monkeypatch.setattr(ends, "Ends", Ends, raising=False)
    with pytest.raises(
        GoodRtError, match=r"differs from that of 'fc'; .*logits, not probabilities"
    ):
        load_classifier("ends:Ends")
    with pytest.raises(
        GoodRtError, match="has no module 'body' to take the features from; it has fc"
    ):
        load_classifier("ends:Ends", Settings(features="body"))


def test_a_folder_names_no_code(tmp_path: Path) -> None:
    config = ClassifierConfig("module:os:system", ("a",) * 8, 1, 32)
    save_classifier(Classifier(SmallResNet(width=8), config), tmp_path)
    with pytest.raises(
        GoodRtError, match=r"a folder cannot have code run; .*open it as os:system@"
    ):
        load_classifier(tmp_path)


def test_a_folder_has_its_own_settings(classifier_dir: Path) -> None:
    with pytest.raises(GoodRtError, match=r"has settings of its own; mean cannot be given"):
        load_classifier(classifier_dir, Settings(mean=(0.5,), std=(0.5,)))


ARCHIVES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "pickled": (lambda v: v.update(use_pickle=True), "pickled values, which can run code"),
    "a call": (lambda v: v.update(target="torch.os.system"), "calls 'torch.os.system'"),
    "an expression": (
        lambda v: v.update(expr_str="__import__('os').system('x')"),
        "is no expression of sizes",
    ),
    "an attribute": (
        lambda v: v.update(expr_str="Symbol('s0').evalf()"),
        "is no expression of sizes",
    ),
}


@pytest.mark.parametrize("kind", list(ARCHIVES))
def test_an_archive_that_could_run_code_is_not_read(tmp_path: Path, kind: str) -> None:
    change, message = ARCHIVES[kind]
    value: dict[str, Any] = {
        "target": "torch.ops.aten.relu.default",
        "expr_str": "Symbol('s0', positive=True)",
    }
    path = tmp_path / "x.pt2"

    def write() -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/models/model.json", json.dumps({"graph": [value]}))

    write()
    check_archive(path)
    change(value)
    write()
    with pytest.raises(GoodRtError, match=message):
        check_archive(path)


def test_a_fixed_batch_and_training_mode_are_refused(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    images = (torch.randn(2, 3, 16, 16),)
    torch.export.save(torch.export.export(network.eval(), images), tmp_path / "fixed.pt2")
    with pytest.raises(
        GoodRtError, match="only takes batches of 2; export it with a dynamic batch"
    ):
        load_classifier(tmp_path / "fixed.pt2")
    free = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(
        torch.export.export(network.train(), images, dynamic_shapes=free), tmp_path / "train.pt2"
    )
    with pytest.raises(GoodRtError, match=r"was exported in training mode; call model.eval\(\)"):
        load_classifier(tmp_path / "train.pt2")


def test_channels_sizes_and_classes_that_do_not_fit(classifier: Classifier) -> None:
    network = SmallResNet(in_channels=1, width=8)
    config = ClassifierConfig(
        "small_resnet", ("a",) * 8, 1, 32, {"width": 8}, input_channels=1, resize=Resize(32, 32)
    )
    grey = Classifier(network, config)
    with pytest.raises(GoodRtError, match="takes images of 1 channel, these have 4; convert them"):
        grey.for_images(4, 32)
    with pytest.raises(GoodRtError, match=r"only takes images of shape \(1, 32, 32\)"):
        classifier.for_images(1, 64)
    with pytest.raises(GoodRtError, match="takes square images, not 32x48"):
        grey.fitted(lambda: (1, 32, 48))
    with pytest.raises(GoodRtError, match="mean has 2 values for 1 channels"):
        Classifier(
            network, ClassifierConfig("small_resnet", ("a",), 1, 32, mean=(0.1, 0.2), std=(0.1,))
        )
    with pytest.raises(GoodRtError, match="mean and std belong together"):
        Classifier(network, ClassifierConfig("small_resnet", ("a",), 1, 32, mean=(0.1,)))
    with pytest.raises(GoodRtError, match="unknown interpolation 'cubic'; known are nearest"):
        Classifier(
            network, ClassifierConfig("small_resnet", ("a",), 1, 48, resize=Resize(32, 32, "cubic"))
        )
    assert np.isfinite(grey.for_images(1, 64).resampling.numpy()).all()
