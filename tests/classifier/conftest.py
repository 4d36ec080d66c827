"""Tiny classifiers of every source, with random weights: each as a spec, and as the bare library
computes it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from good_rt.classifier import Classifier, Settings, load_classifier
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets

CLASSES = 8


class Plain(nn.Module):
    """A user's own module: no forward_features, one Linear after a pooling."""

    image_size = 32

    def __init__(self, head_bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(12, CLASSES, bias=head_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


def settle(model: nn.Module, size: int) -> nn.Module:
    """Random weights under which an image matters, with batch norm's statistics of real images; in
    evaluation mode."""
    torch.manual_seed(3)
    for tensor in model.parameters():
        if tensor.ndim > 1:
            nn.init.normal_(tensor, 0, (1 / tensor[0].numel()) ** 0.5)
        else:
            nn.init.uniform_(tensor, 0.5, 1.5)
    images = F.interpolate(
        from_uint8(assets.load_images("train").images[:32]), (size, size), mode="bilinear"
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images.expand(-1, 3, -1, -1))
    return model.eval()


@dataclass(frozen=True)
class Source:
    """A spec, and by itself: the library's own network, the features it has, its preprocessing."""

    spec: str
    logits: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: Settings = field(default_factory=Settings)
    differentiable: bool = True

    def load(self) -> Classifier:
        """The spec's classifier, for the demo's images."""
        return load_classifier(self.spec, self.settings).for_images(1, 32)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}


def timm_source(folder: Path) -> Source:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: Any = settle(timm.create_model("test_resnet", num_classes=CLASSES), 160)
    save_file(state_of(model), folder / "timm.safetensors")
    data = timm.data.resolve_model_data_config(model)
    return Source(
        f"timm:test_resnet@{folder / 'timm.safetensors'}",
        model,
        lambda x: model.forward_head(model.forward_features(x), pre_logits=True),
        data["input_size"][1],
        int(data["input_size"][1] / data["crop_pct"]),
        data["interpolation"],
        tuple(data["mean"]),
        tuple(data["std"]),
    )


def torchvision_source(folder: Path) -> Source:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model: Any = settle(torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES), 64)
    save_file(state_of(model), folder / "torchvision.safetensors")
    transforms = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()
    taken: list[Tensor] = []

    def features(x: Tensor) -> Tensor:
        hook = model.fc.register_forward_hook(
            lambda module, inputs, output: taken.append(inputs[0])
        )
        model(x)
        hook.remove()
        return taken.pop()

    return Source(
        f"torchvision:shufflenet_v2_x0_5@{folder / 'torchvision.safetensors'}",
        model,
        features,
        64,  # set, since 224 take long; the weights' own size is tested by itself
        64,
        transforms.interpolation.value,
        tuple(transforms.mean),
        tuple(transforms.std),
        Settings(size=64),
    )


def transformers_source(folder: Path) -> Source:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=48,
        patch_size=16,
        num_labels=CLASSES,
    )
    model: Any = settle(transformers.ViTForImageClassification(config), 48)
    model.save_pretrained(folder / "vit")
    preprocessing = {
        "do_resize": True,
        "size": {"height": 48, "width": 48},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.25],
    }
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return Source(
        f"transformers:{folder / 'vit'}",
        lambda x: model(pixel_values=x).logits,
        lambda x: model.vit(pixel_values=x).last_hidden_state[:, 0],
        48,
        48,
        "bicubic",
        (0.5, 0.4, 0.3),
        (0.2, 0.3, 0.25),
    )


def module_source(folder: Path) -> Source:
    torch.manual_seed(0)
    model: Any = settle(Plain(), 32)
    save_file(state_of(model), folder / "plain.safetensors")
    (folder / "own_code.py").write_text(f"import sys\nfrom {Plain.__module__} import Plain\n")
    return Source(
        f"own_networks:Plain@{folder / 'plain.safetensors'}",
        model,
        model.body,
        32,
        32,
        "bilinear",
        (0.4, 0.5, 0.6),
        (0.2, 0.3, 0.4),
        Settings(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    )


def graph_source(spec: str) -> Source:
    torch.manual_seed(0)
    model: Any = settle(Plain(), 32)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    settings = Settings(mean=mean, std=std, size=32)
    return Source(spec, model, model.body, 32, 32, "bilinear", mean, std, settings)


def exported_source(folder: Path) -> Source:
    source = graph_source(str(folder / "plain.pt2"))
    program = torch.export.export(
        source.logits, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, folder / "plain.pt2")
    return source


def torchscript_source(folder: Path) -> Source:
    source = graph_source(str(folder / "plain.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(source.logits).save(folder / "plain.pt")
    return source


def onnx_source(folder: Path) -> Source:
    source = graph_source(str(folder / "plain.onnx"))
    write_onnx(source.logits, folder / "plain.onnx")
    return source


def opaque_source(folder: Path) -> Source:
    """An ONNX file with an operation that is not converted: ONNX Runtime runs it as it is."""
    import onnx

    source = graph_source(str(folder / "opaque.onnx"))
    write_onnx(source.logits, folder / "opaque.onnx")
    model = onnx.load(folder / "opaque.onnx")
    graph = model.graph
    image = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["floored" if name == image else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("Max", [image, "low"], ["floored"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.full((), -100, np.float32), "low"))
    onnx.save(model, folder / "opaque.onnx")
    return replace(source, differentiable=False)


def write_onnx(model: Any, path: Path) -> None:
    from good_rt.export.to_onnx import export_onnx

    export_onnx(model, {"images": torch.randn(2, 3, 32, 32)}, ("logits",), path, opset=18)


MAKERS: dict[str, Callable[[Path], Source]] = {
    "timm": timm_source,
    "torchvision": torchvision_source,
    "transformers": transformers_source,
    "module": module_source,
    "exported": exported_source,
    "torchscript": torchscript_source,
    "onnx": onnx_source,
    "opaque onnx": opaque_source,
}


@pytest.fixture(scope="session")
def sources_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the sources' files lie, and a module `own_networks` that Python finds."""
    import sys
    import types

    own = types.ModuleType("own_networks")
    own.Plain = Plain  # type: ignore[attr-defined]
    sys.modules["own_networks"] = own
    yield tmp_path_factory.mktemp("sources")
    del sys.modules["own_networks"]


@pytest.fixture(scope="session")
def source(sources_dir: Path) -> Callable[[str], Source]:
    """The source of a kind, made once."""
    return cache(lambda kind: MAKERS[kind](sources_dir))


@pytest.fixture(params=list(MAKERS))
def every_source(request: pytest.FixtureRequest, source: Callable[[str], Source]) -> Source:
    """Each source in turn."""
    return source(request.param)


@pytest.fixture(params=["folder", *MAKERS])
def every_classifier(
    request: pytest.FixtureRequest, source: Callable[[str], Source], classifier: Classifier
) -> tuple[str, Classifier]:
    """Each kind of classifier in turn: its name, and one for the demo's images. "folder" is one
    that good-rt wrote."""
    if request.param == "folder":
        return request.param, classifier
    return request.param, source(request.param).load()


@pytest.fixture
def network_of_files(source: Callable[[str], Source]) -> Classifier:
    """The network that the TorchScript and ONNX files were made from, with its gradient."""
    return source("exported").load()
