"""The light detector: its answers are the file's, whatever the batch; what is no detector is
refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from detector_files import V3, in_front, write_sealed

from good_rt.demo import assets
from good_rt.detector.runtime import METADATA_KEY, Detector, DetectorInfo, output_names
from good_rt.errors import GoodRtError

IMAGES = assets.load_images("test").images[200:240]


def test_scores_are_onnx_runtimes_own(detector_path: Path) -> None:
    found = Detector(detector_path).score(IMAGES)
    session = onnxruntime.InferenceSession(detector_path)
    pixels = IMAGES[:, None, :, :, 0].astype(np.float32) / np.float32(255)
    names = output_names(("energy", "knn_distance", "mahalanobis"))
    assert tuple(output.name for output in session.get_outputs()) == names
    expected = dict(zip(names, session.run(list(names), {"images": pixels}), strict=True))
    assert tuple(found.discrepancies) == names[1:4]
    columns = {"score": found.score, "p_value": found.p_value, "logits": found.logits}
    for name, values in {**columns, **found.discrepancies}.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found.is_ood, expected["is_ood"])
    np.testing.assert_array_equal(found.label, expected["logits"].argmax(1))


def test_an_image_scores_the_same_in_every_batch(detector_path: Path) -> None:
    detector = Detector(detector_path)
    whole, single = detector.score(IMAGES[:9]), detector.score(IMAGES[:9], batch=1)
    np.testing.assert_allclose(single.score, whole.score, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(single.label, whole.label)


def test_alpha_decides(detector_path: Path) -> None:
    info = Detector(detector_path).info
    assert (info.alpha, info.calibration_size, info.classes) == (0.1, 120, assets.CLASSES)
    for alpha in (1 / 121, 0.3, 0.99):
        scores = Detector(detector_path, alpha).score(IMAGES)
        np.testing.assert_array_equal(scores.is_ood, scores.p_value <= np.float32(alpha))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, 0.008, float("nan")])
def test_an_alpha_that_calibration_cannot_hold_is_refused(
    detector_path: Path, alpha: float
) -> None:
    with pytest.raises(
        GoodRtError, match=r"alpha must be at least 0\.00826 for this detector, and below 1; not"
    ):
        Detector(detector_path, alpha)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES[..., 0],
        IMAGES[:, :31],
        IMAGES.repeat(3, axis=3),
        IMAGES.astype(np.float32),
        IMAGES[:0],
    ],
    ids=["no channels", "size", "rgb", "float", "none"],
)
def test_images_that_do_not_fit_are_refused(detector_path: Path, images: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(GoodRtError, match=r"images must be uint8 \(N, 32, 32, 1\), not \w+ \("):
        Detector(detector_path).score(images)


def test_files_that_are_no_detector_are_refused(detector_path: Path, tmp_path: Path) -> None:
    whole, path = detector_path.read_bytes(), tmp_path / "d.onnx"
    with pytest.raises(
        GoodRtError,
        match=r"d\.onnx does not exist; give a detector\.onnx, which `good-rt detector build`",
    ):
        Detector(path)
    with pytest.raises(GoodRtError, match="is a folder; give a detector"):
        Detector(tmp_path)
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(
            GoodRtError, match=r"d\.onnx is (damaged|an ONNX file, but no)"
        ) as caught:
            Detector(path)
        assert "\n" not in str(caught.value)


def metadata(path: Path, target: Path, text: str | None) -> Path:
    """A copy of a detector with another description."""
    model = onnx.load(path)
    del model.metadata_props[:]
    if text is not None:
        model.metadata_props.add(key=METADATA_KEY, value=text)
    onnx.save(model, target)
    return target


def test_an_onnx_file_that_is_not_ours_is_refused(detector_path: Path, tmp_path: Path) -> None:
    with pytest.raises(GoodRtError, match="is an ONNX file, but not a good-rt detector"):
        Detector(metadata(detector_path, tmp_path / "d.onnx", None))
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
    )
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(GoodRtError, match="is an ONNX file, but not a good-rt detector"):
        Detector(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    "change", ["type", "version", "classes", "alpha", "score", "no json", "list"]
)
def test_a_description_that_cannot_be_read_is_refused(
    detector_path: Path, tmp_path: Path, change: str
) -> None:
    values = json.loads(Detector(detector_path).info.to_json())
    values.pop(change, None)
    text = {"no json": "{", "list": "[]"}.get(change, json.dumps(values))
    with pytest.raises(GoodRtError, match=r"d\.onnx (is|must) .+(build it|give another)"):
        Detector(metadata(detector_path, tmp_path / "d.onnx", text))


@pytest.mark.parametrize("part", ["head", "calibration"])
def test_nan_weights_are_found_when_scoring(detector_path: Path, tmp_path: Path, part: str) -> None:
    model, size = onnx.load(detector_path), Detector(detector_path).info.calibration_size
    if part == "head":
        weight = max(
            (t for t in model.graph.initializer if "head" in t.name), key=lambda t: len(t.dims)
        )
    else:
        weight = next(t for t in model.graph.initializer if list(t.dims) in ([size], [1, size]))
    array = onnx.numpy_helper.to_array(weight).copy()
    array[..., :1] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    write_sealed(model, tmp_path / "nan.onnx")
    with pytest.raises(
        GoodRtError,
        match=r"nan\.onnx gives a value that is not finite \(image 0 of 2\); its weights or",
    ):
        Detector(tmp_path / "nan.onnx").score(IMAGES[:2])


def test_the_description_there_and_back(detector_path: Path) -> None:
    info = Detector(detector_path).info
    assert DetectorInfo.from_json(info.to_json()) == info
    assert info.training == "nothing"
    assert len(info.weights_sha256) == 64


def test_more_images_than_fit_into_memory_are_scored_in_parts(tmp_path: Path) -> None:
    """Each takes 200 MB: three at once are too many, and two are not."""
    expand = onnx.helper.make_node("Tile", ["images", "times"], ["large"])
    largest = onnx.helper.make_node("ReduceMax", ["large", "axes"], ["largest"], keepdims=1)
    times = onnx.numpy_helper.from_array(np.array([1, 50_000, 1, 1]), "times")
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    nothing = [
        onnx.helper.make_node("Sub", ["largest", "images"], ["nothing"]),
        onnx.helper.make_node("Add", ["images", "nothing"], ["checked"]),
    ]
    model = in_front(onnx.load(V3), [expand, largest, *nothing], [times, axes])
    detector = Detector(write_sealed(model, tmp_path / "large.onnx"))
    expected = Detector(V3).score(IMAGES[:5])
    found = detector.score(IMAGES[:5])
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.label, expected.label)
    assert detector._at_once <= 2


def test_large_images_run_in_small_parts() -> None:
    detector = Detector(V3)
    assert detector.images_at_once == 256
    detector.info = dataclasses.replace(detector.info, image_size=4096, channels=3)
    assert detector.images_at_once == 1
    detector.info = dataclasses.replace(detector.info, image_size=224)
    assert 64 < detector.images_at_once < 256


def test_the_hash_is_the_files(detector_path: Path, tmp_path: Path) -> None:
    """SHA-256 of the file with zeros in the place of the digits, as docs/format.md says."""
    content, digits = detector_path.read_bytes(), Detector(detector_path).info.weights_sha256
    assert content.count(digits.encode()) == 1
    zeros = content.replace(digits.encode(), b"0" * 64)
    assert hashlib.sha256(zeros).hexdigest() == digits


@pytest.mark.slow
def test_files_of_many_weights_open_in_the_memory_of_one_run(tmp_path: Path) -> None:
    """The limit is for what a run makes; weights come on top, however many they are."""
    node, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    product = [
        node("GlobalMaxPool", ["images"], ["brightest"]),
        node("Expand", ["brightest", "wide"], ["expanded"]),
        node("Flatten", ["expanded"], ["rows"]),
        node("MatMul", ["rows", "weights"], ["product"]),
        node("ReduceMax", ["product"], ["largest"], keepdims=0),
        node("Mul", ["largest", "zero"], ["nothing"]),
        node("Add", ["images", "nothing"], ["checked"]),
    ]
    tensors = [
        array(np.ones((12_000, 12_000), np.float32), "weights"),  # 576 MB
        array(np.array([1, 12_000, 1, 1]), "wide"),
        array(np.array(0, np.float32), "zero"),
    ]
    path = write_sealed(in_front(onnx.load(V3), product, tensors), tmp_path / "heavy.onnx")
    expected = Detector(V3).score(IMAGES[:2]).score
    np.testing.assert_allclose(Detector(path).score(IMAGES[:2]).score, expected, rtol=1e-4)
