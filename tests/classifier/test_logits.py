"""Probabilities are no logits, from whatever source; heads of other forms; notes that say so."""

from __future__ import annotations

import copy
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from good_rt.classifier import (
    Classifier,
    ClassifierConfig,
    Settings,
    load_classifier,
    save_classifier,
)
from good_rt.classifier.network import TwoHeads, part
from good_rt.demo.network import SmallResNet
from good_rt.errors import GoodRtError

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SETTINGS = Settings(size=16, channels=3)


class Net(nn.Module):
    """A small network, with what comes behind its last Linear."""

    image_size = 16

    def __init__(self, tail: nn.Module, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.fc = nn.Linear(8, outputs)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.fc(self.body(x)))


class Function(nn.Module):
    """What a network's code does without a module for it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def by_hand(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(dim=1, keepdim=True)


TAKEN_OFF: dict[str, nn.Module] = {
    "softmax": nn.Softmax(1),
    "log_softmax": nn.LogSoftmax(1),
    "sigmoid": nn.Sigmoid(),
    "hard sigmoid": nn.Hardsigmoid(),
    "tanh": nn.Tanh(),
    "clamped": Function(lambda x: x.softmax(dim=1).clamp(1e-7, 1)),
    "log of softmax": Function(lambda x: x.softmax(dim=1).log()),
    "map": Function(lambda x: x[:, :, None, None].softmax(dim=1).flatten(1)),
}
REFUSED: dict[str, nn.Module] = {
    "by hand": Function(by_hand),
    "percent": Function(lambda x: 100 * x.softmax(dim=1)),
    "reversed": Function(lambda x: 1 - x.sigmoid()),
    "log of sigmoid": Function(lambda x: -nn.functional.softplus(-x)),
}


def write(model: nn.Module, path: Path) -> Path:
    """A network as a file of the kind that the path's suffix names."""
    model = model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".pt2":
            batch = ({0: torch.export.Dim.DYNAMIC},)
            torch.export.save(torch.export.export(model, (IMAGES,), dynamic_shapes=batch), path)
        elif path.suffix == ".pt":
            torch.jit.trace(model, IMAGES).save(path)
        else:
            torch.onnx.export(
                model,
                (IMAGES,),
                path,
                input_names=["x"],
                dynamic_axes={"x": {0: "n"}},
                dynamo=False,
            )
    return path


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".onnx"])
@pytest.mark.parametrize("tail", list(TAKEN_OFF))
def test_probabilities_of_files_become_logits(tmp_path: Path, tail: str, suffix: str) -> None:
    path = write(Net(TAKEN_OFF[tail]), tmp_path / f"net{suffix}")
    classifier = load_classifier(path, SETTINGS)
    expected = Net(nn.Identity()).eval()(IMAGES)
    torch.testing.assert_close(classifier.network(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert len(classifier.notes) == 1 and "is left out" in classifier.notes[0]
    save_classifier(classifier, tmp_path / "saved")
    again = load_classifier(tmp_path / "saved")
    torch.testing.assert_close(again.network(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".onnx"])
@pytest.mark.parametrize("tail", list(REFUSED))
def test_other_probabilities_of_files_are_refused(tmp_path: Path, tail: str, suffix: str) -> None:
    path = write(Net(REFUSED[tail]), tmp_path / f"net{suffix}")
    names = {".pt2": "fc", ".pt": "fc", ".onnx": "/fc/Gemm"}
    message = "not logits|name the layer|name the node|no module or operation"
    for settings in (SETTINGS, Settings(size=16, channels=3, features=names[suffix])):
        with pytest.raises(GoodRtError, match=message):
            load_classifier(path, settings)


def test_a_named_layer_does_not_bring_probabilities_back(tmp_path: Path) -> None:
    path = write(Net(nn.Sigmoid()), tmp_path / "net.onnx")
    named = load_classifier(path, Settings(size=16, features="/fc/Gemm"))
    torch.testing.assert_close(named.network(IMAGES), Net(nn.Identity()).eval()(IMAGES))


@pytest.fixture
def mine() -> Iterator[Any]:
    """A module `mine` that Python finds, for networks of the user's own code."""
    module = types.ModuleType("mine")
    sys.modules["mine"] = module
    yield module
    del sys.modules["mine"]


class OwnParts(Net):
    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.tail(self.fc(features))


@pytest.mark.parametrize("kind", [Net, OwnParts])
@pytest.mark.parametrize("tail", ["softmax", "sigmoid", "tanh", "log_softmax"])
def test_probabilities_of_own_code_become_logits(mine: Any, kind: type[Net], tail: str) -> None:
    mine.net = kind(copy.deepcopy(TAKEN_OFF[tail])).eval()
    classifier = load_classifier("mine:net", SETTINGS)
    torch.testing.assert_close(classifier.network(IMAGES), Net(nn.Identity()).eval()(IMAGES))
    assert "'tail' at the network's end, which is left out" in classifier.notes[0]


@pytest.mark.parametrize("tail", ["clamped", *REFUSED])
def test_functions_of_own_heads_are_refused(mine: Any, tail: str) -> None:
    mine.net = OwnParts((TAKEN_OFF | REFUSED)[tail])
    with pytest.raises(GoodRtError, match=r"mine:net: the outputs are .+, not logits; let the"):
        load_classifier("mine:net", SETTINGS)


def test_a_softmax_in_the_network_stays(mine: Any) -> None:
    class Gated(Net):
        def forward(self, x: Tensor) -> Tensor:
            body = self.body(x)
            return self.fc(body * self.tail(body))

    mine.net = Gated(nn.Softmax(1))
    assert load_classifier("mine:net", SETTINGS).notes == ()


@pytest.mark.parametrize("outputs", [2, 3, 40])
@pytest.mark.parametrize("bias", [0.0, 0.5, 40.0])
def test_logits_are_not_taken_for_probabilities(mine: Any, outputs: int, bias: float) -> None:
    mine.net = Net(nn.Identity(), outputs)
    nn.init.constant_(mine.net.fc.bias, bias)
    mine.net.fc.weight.data *= 1e-3
    mine.net.fc.weight.data -= mine.net.fc.weight.data.mean(dim=0)  # as training leaves them
    assert load_classifier("mine:net", SETTINGS).notes == ()


def test_a_folder_with_probabilities_is_refused(tmp_path: Path) -> None:
    class Old(SmallResNet):
        def forward_head(self, features: Tensor) -> Tensor:
            return super().forward_head(features).softmax(dim=1)

    from good_rt.classifier.folder import check_network

    config = ClassifierConfig("small_resnet", ("a",) * 8, 1, 32, {"width": 8})
    with pytest.raises(GoodRtError, match=r"clf: the outputs are probabilities .*the sum 1"):
        check_network(Classifier(Old(width=8), config).eval(), "clf")


@pytest.mark.parametrize("tail", [nn.Identity(), nn.Sigmoid(), None])
@pytest.mark.parametrize("form", [".pt2", ".pt", ".onnx", "code"])
def test_one_logit_is_two_classes(
    mine: Any, tmp_path: Path, tail: nn.Module | None, form: str
) -> None:
    tail = Function(lambda x: x.squeeze(1)) if tail is None else tail
    network = Net(tail, outputs=1).eval()
    mine.net = copy.deepcopy(network)
    spec = "mine:net" if form == "code" else write(network, tmp_path / f"net{form}")
    classifier = load_classifier(spec, SETTINGS)
    logits = classifier(IMAGES.clamp(-1, 1))[0]
    inputs = classifier.prepare(IMAGES.clamp(-1, 1))
    expected = Net(nn.Identity(), outputs=1).eval()(inputs)
    torch.testing.assert_close(logits, torch.cat([0 * expected, expected], dim=1))
    assert classifier.config.classes == ("class 0", "class 1")
    assert "the one output is the second class's" in classifier.notes[-1]
    named = load_classifier(spec, Settings(size=16, channels=3, classes=("no", "yes")))
    assert named.config.classes == ("no", "yes")
    with pytest.raises(GoodRtError, match="one output, for two classes, but 1 classes are named"):
        load_classifier(spec, Settings(size=16, channels=3, classes=("yes",)))
    save_classifier(classifier, tmp_path / "saved")
    folder = tmp_path / "saved"
    again = load_classifier(f"mine:net@{folder}" if form == "code" else folder)
    torch.testing.assert_close(again(IMAGES.clamp(-1, 1))[0], logits)


class Distilled(nn.Module):
    """Two heads, as DeiT has them."""

    image_size = 16

    def __init__(self, both: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.both = Net(nn.Identity()).body, both
        self.head, self.head_dist = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        own, teacher = self.head(features), self.head_dist(features + 1)
        return (own, teacher) if self.both else (own + teacher) / 2


def test_the_mean_of_two_heads_is_split(mine: Any, tmp_path: Path) -> None:
    network = part(Distilled().eval(), IMAGES)
    assert isinstance(network, TwoHeads)
    expected = Distilled().eval()(IMAGES)
    torch.testing.assert_close(network(IMAGES), expected)
    assert network.forward_features(IMAGES).shape == (3, 16)
    assert set(network.library_names().values()) == set(Distilled().state_dict())
    mine.Net = Distilled
    classifier = load_classifier("mine:Net", SETTINGS)
    assert classifier.notes == ("logits are the mean of 'head' and 'head_dist'",)
    save_classifier(classifier, tmp_path / "saved")
    again = load_classifier(f"mine:Net@{tmp_path / 'saved'}")
    torch.testing.assert_close(again.network(IMAGES), expected)


def test_timms_distilled_heads_are_split() -> None:
    timm = pytest.importorskip("timm")
    settings = {"img_size": 224, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, **settings).eval()
    network, images = (
        part(copy.deepcopy(model), torch.randn(2, 3, 224, 224)),
        torch.ones(2, 3, 224, 224),
    )
    torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-5)
    assert set(network.library_names().values()) == set(model.state_dict())


class Returns(nn.Module):
    """A network with features, and what it returns of both."""

    image_size = 16

    def __init__(self, returned: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.returned = Net(nn.Identity()), returned

    def forward(self, x: Tensor) -> Any:
        features = self.net.body(x)
        return self.returned(features, self.net.fc(features))


AMBIGUOUS: dict[str, Callable[[], nn.Module]] = {
    "teacher": lambda: Distilled(both=True),
    "features first": lambda: Returns(lambda features, logits: (features, logits)),
    "features last": lambda: Returns(lambda features, logits: (logits, features)),
}


@pytest.mark.parametrize("form", list(AMBIGUOUS))
def test_two_outputs_that_could_be_logits_are_ambiguous(
    mine: Any, tmp_path: Path, form: str
) -> None:
    mine.Net = AMBIGUOUS[form]
    with pytest.raises(GoodRtError, match=r"several outputs that could be the logits \(output 0,"):
        load_classifier("mine:Net", SETTINGS)
    for suffix in (".pt2", ".pt", ".onnx"):
        path = write(AMBIGUOUS[form](), tmp_path / f"net{suffix}")
        with pytest.raises(GoodRtError, match="several outputs that could be the logits"):
            load_classifier(path, SETTINGS)


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".onnx", "code"])
def test_maps_beside_the_logits_are_not_them(mine: Any, tmp_path: Path, suffix: str) -> None:
    network = Returns(lambda features, logits: (features[:, :, None, None], logits)).eval()
    expected = network(IMAGES)[1]
    mine.net = copy.deepcopy(network)
    spec = "mine:net" if suffix == "code" else write(network, tmp_path / f"net{suffix}")
    found = load_classifier(spec, SETTINGS).network(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_logits_in_a_dictionary_are_taken(mine: Any, tmp_path: Path) -> None:
    network = Returns(lambda features, logits: {"features": features, "logits": logits}).eval()
    expected = network(IMAGES)["logits"]
    mine.net = copy.deepcopy(network)
    for spec in ("mine:net", write(network, tmp_path / "net.pt2")):
        found = load_classifier(spec, SETTINGS).network(IMAGES)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_output_called_logits_is_taken(tmp_path: Path) -> None:
    network, path = Distilled(both=True).eval(), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (IMAGES,),
            path,
            input_names=["x"],
            output_names=["teacher", "logits"],
            dynamic_axes={"x": {0: "n"}},
            dynamo=False,
        )
    found = load_classifier(path, SETTINGS).network(IMAGES)
    torch.testing.assert_close(found, network(IMAGES)[1], rtol=1e-4, atol=1e-5)
