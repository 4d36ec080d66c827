"""ONNX classifiers as tools write them: weights in other files, free axes, other types, errors of
the runtime."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from good_rt.classifier import Settings, load_classifier, save_classifier
from good_rt.errors import GoodRtError

SETTINGS = Settings(size=32)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


def write(path: Path, seed: int = 0, axes: dict[int, str] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network(seed),
            (IMAGES,),
            path,
            input_names=["x"],
            dynamic_axes={"x": axes or {0: "n"}},
            dynamo=False,
        )
    return path


def externalise(path: Path, folder: str = "") -> Path:
    """The same file with its weights in weights.bin."""
    model = onnx.load(path)
    onnx.external_data_helper.convert_model_to_external_data(
        model, location=f"{folder}weights.bin", size_threshold=0
    )
    (path.parent / folder).mkdir(exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("folder", ["", "data/"])
def test_weights_in_another_file_are_saved_and_decide_the_fingerprint(
    tmp_path: Path, folder: str, opaque: bool
) -> None:
    classifiers = []
    for seed in (0, 1):
        path = write(tmp_path / str(seed) / "clf.onnx", seed)
        if opaque:
            make_opaque(path)
        classifiers.append(load_classifier(externalise(path, folder), SETTINGS))
    assert classifiers[0].differentiable is not opaque
    assert classifiers[0].fingerprint != classifiers[1].fingerprint
    folders = []
    for seed, classifier in enumerate(classifiers):
        folders.append(tmp_path / f"saved{seed}")
        save_classifier(classifier, folders[-1])
        shutil.rmtree(tmp_path / str(seed))
    again = [load_classifier(folder) for folder in folders]
    for ours, theirs in zip(again, classifiers, strict=True):
        torch.testing.assert_close(ours(IMAGES)[0], theirs(IMAGES)[0])
    assert again[0].fingerprint != again[1].fingerprint
    assert sorted(file.name for file in folders[0].iterdir()) == ["classifier.json", "model.onnx"]


def test_a_weight_beside_a_saved_file_decides_the_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_classifier(load_classifier(write(tmp_path / "clf.onnx"), SETTINGS), folder)
    whole = load_classifier(folder).fingerprint
    externalise(folder / "model.onnx")
    before = load_classifier(folder).fingerprint
    data = bytearray((folder / "weights.bin").read_bytes())
    data[3] ^= 1
    (folder / "weights.bin").write_bytes(data)
    assert len({whole, before, load_classifier(folder).fingerprint}) >= 2
    assert load_classifier(folder).fingerprint != before


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    path = externalise(write(tmp_path / "clf.onnx"))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(GoodRtError, match=r"clf\.onnx: the data of .+ are missing \(weights\.bin"):
        load_classifier(path, SETTINGS)


def test_free_axes_take_channels_and_size(tmp_path: Path) -> None:
    path = write(tmp_path / "clf.onnx", axes=dict(enumerate("nchw")))
    with pytest.raises(GoodRtError, match=r"give the channels \(--channels\)"):
        load_classifier(path, SETTINGS)
    with pytest.raises(GoodRtError, match=r"give the size \(--size\)"):
        load_classifier(path, Settings(channels=3))
    classifier = load_classifier(path, Settings(size=32, channels=3))
    torch.testing.assert_close(classifier.network(IMAGES), network()(IMAGES))
    save_classifier(classifier, tmp_path / "saved")
    assert load_classifier(tmp_path / "saved").config == classifier.config
    with pytest.raises(GoodRtError, match=r"does not take images of shape|cannot run the class"):
        load_classifier(path, Settings(size=32, channels=1))


def retyped(path: Path, kind: int) -> Path:
    """The file with weights, input and output of another type of floats."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            helper.make_tensor(tensor.name, kind, array.shape, array.flatten().tolist())
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    onnx.save(model, path)
    return path


def make_opaque(path: Path) -> Path:
    """The file with an operation that is not converted, so that ONNX Runtime runs it."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["floored" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Max", ["x", "low"], ["floored"]))
    kind = model.graph.input[0].type.tensor_type.elem_type
    model.graph.initializer.append(helper.make_tensor("low", kind, (), [-100.0]))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_other_floats_are_read_as_float32(tmp_path: Path, kind: str, opaque: bool) -> None:
    path = retyped(write(tmp_path / "clf.onnx"), TensorProto.DataType.Value(kind))
    if opaque:
        make_opaque(path)
    classifier = load_classifier(path, SETTINGS)
    logits = classifier.network(IMAGES)
    assert logits.dtype == torch.float32 and classifier.differentiable is not opaque
    torch.testing.assert_close(logits, network()(IMAGES), rtol=0.05, atol=0.02)
    save_classifier(classifier, tmp_path / "saved")
    torch.testing.assert_close(load_classifier(tmp_path / "saved").network(IMAGES), logits)


def test_half_precision_inside_is_read_as_float32(tmp_path: Path) -> None:
    path = retyped(write(tmp_path / "clf.onnx"), TensorProto.FLOAT16)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        node.input[:] = ["half" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16))
    onnx.save(model, path)
    classifier = load_classifier(path, SETTINGS)
    torch.testing.assert_close(classifier.network(IMAGES), network()(IMAGES), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", ["UINT8", "INT8", "INT64"])
def test_integers_are_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "clf.onnx")
    model = onnx.load(path)
    model.graph.input[0].name = "bytes"
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DataType.Value(kind)
    model.graph.node.insert(0, helper.make_node("Cast", ["bytes"], ["x"], to=TensorProto.FLOAT))
    onnx.save(model, path)
    with pytest.raises(GoodRtError, match=f"takes images of type {kind.lower()}, but a classifier"):
        load_classifier(path, SETTINGS)


def shaped(path: Path, shape: list[int | str]) -> Path:
    model = onnx.load(path)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    model.graph.input[0].CopyFrom(value)
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (["n", 32, 32, 3], "with channels last; export it for"),
        (["n", 3, 32, 48], "takes images of 32x48 pixels; only square"),
        ([4, 3, 32, 32], "only takes batches of 4"),
        (["n", 3, 48, 48], "only takes images of size 48, not 32; leave out --size"),
        (["n", 7, 32, 32], r"takes an input of shape \[None, 7, 32, 32\]"),
    ],
)
def test_other_shapes_are_named(tmp_path: Path, shape: list[int | str], message: str) -> None:
    path = write(tmp_path / "clf.onnx", axes=dict(enumerate("nchw")))
    with pytest.raises(GoodRtError, match=f"{message}|is not an ONNX file"):
        load_classifier(shaped(path, shape), SETTINGS)


def test_the_runtimes_exceptions_are_one_line(tmp_path: Path) -> None:
    path = make_opaque(write(tmp_path / "clf.onnx", axes={0: "n", 2: "h", 3: "w"}))
    classifier = load_classifier(path, SETTINGS)
    for images in (torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 1, 1), torch.zeros(3, 32)):
        with pytest.raises(GoodRtError, match="ONNX Runtime cannot run the classifier") as caught:
            classifier.network.forward_features(images)  # type: ignore[operator]
        assert "\n" not in str(caught.value)


def test_a_damaged_weight_is_not_logits(tmp_path: Path) -> None:
    path = write(tmp_path / "clf.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    array = np.array(numpy_helper.to_array(tensor))
    array.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    with pytest.raises(GoodRtError, match="not finite"):
        load_classifier(path, SETTINGS)
