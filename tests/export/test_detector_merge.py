"""Detectors of classifiers that stay ONNX files: with the guard, and nothing that none may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from good_rt.classifier import Classifier, IdFeatures, load_classifier
from good_rt.config.settings import DetectorConfig
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.detector.module import build_module
from good_rt.detector.runtime import Detector
from good_rt.errors import GoodRtError
from good_rt.export.detector import export_detector
from good_rt.export.to_onnx import export_onnx

TRAIN = assets.load_images("train")
IMAGES = from_uint8(TRAIN.images[:80])
FLOORED = helper.make_node("Max", ["images", "low"], ["floored"])
LOW = numpy_helper.from_array(np.array(-100, np.float32), "low")


def branch(name: str) -> GraphProto:
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", ["images"], [name])], name, [], [value])


def condition() -> list[NodeProto]:
    return [
        helper.make_node("If", ["yes"], ["kept"], then_branch=branch("a"), else_branch=branch("b")),
        helper.make_node("Max", ["kept", "low"], ["floored"]),
    ]


def onnx_classifier(path: Path, nodes: list[NodeProto]) -> Classifier:
    """A classifier in an ONNX file, which nodes change from "images" to "floored" first: by an
    operation that good-rt doesn't convert."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, len(assets.CLASSES)),
    )  # fmt: skip
    export_onnx(network.eval(), {"images": torch.randn(2, 1, 32, 32)}, ("logits",), path)
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["floored" if name == "images" else name for name in node.input]
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])
    yes = numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.extend([LOW, yes])
    onnx.save(model, path)
    return load_classifier(path).for_images(1, 32)


def build(classifier: Classifier, path: Path) -> None:
    labels = torch.from_numpy(TRAIN.labels[:40])
    features = IdFeatures.of(classifier, [(IMAGES[:40], labels)])
    config = DetectorConfig(alpha=0.2)
    module = build_module(classifier, features, IMAGES[40:60], IMAGES[60:], [], config)
    export_detector(module, path, (IMAGES[:8] + 1) / 2, training="none")


def test_what_is_no_image_is_ood(tmp_path: Path) -> None:
    build(onnx_classifier(tmp_path / "c.onnx", [FLOORED]), tmp_path / "detector.onnx")
    assert "Max" in {node.op_type for node in onnx.load(tmp_path / "detector.onnx").graph.node}
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    images = assets.load_images("test").images[:4].transpose(0, 3, 1, 2).astype(np.float32) / 255
    expected = Detector(tmp_path / "detector.onnx").score(assets.load_images("test").images[:4])
    p_value, is_ood = session.run(["p_value", "is_ood"], {"images": images})
    np.testing.assert_array_equal(p_value, expected.p_value)
    assert p_value.min() > 0
    for wrong in (images * 255, images - np.float32(np.inf), np.full_like(images, np.nan)):
        p_value, is_ood = session.run(["p_value", "is_ood"], {"images": wrong})
        np.testing.assert_array_equal(p_value, 0)
        assert is_ood.all()


def test_a_condition_in_the_classifier_is_refused(tmp_path: Path) -> None:
    classifier = onnx_classifier(tmp_path / "c.onnx", condition())
    with pytest.raises(
        GoodRtError,
        match=r"this classifier's detector cannot be opened: detector\.onnx holds .*, which a",
    ) as caught:
        build(classifier, tmp_path / "detector.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "detector.onnx").exists()


def test_functions_of_the_classifier_are_inlined(tmp_path: Path) -> None:
    path = tmp_path / "c.onnx"
    onnx_classifier(path, [FLOORED])
    model = onnx.load(path)
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function(
        "own", "Floor", ["a", "b"], ["c"], [helper.make_node("Max", ["a", "b"], ["c"])], opsets
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Floor", "own"
    onnx.save(model, path)
    build(load_classifier(path).for_images(1, 32), tmp_path / "detector.onnx")
    assert not onnx.load(tmp_path / "detector.onnx").functions
    assert len(Detector(tmp_path / "detector.onnx").info.classes) == len(assets.CLASSES)
