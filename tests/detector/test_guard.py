"""What is no image is OOD with a p-value of 0, whatever runs the file; images score as before."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import helper

from good_rt.demo import assets
from good_rt.detector.module import PIXEL_TOLERANCE, are_images

Array = NDArray[np.float32]
Run = Callable[[Array], dict[str, Any]]
RUNTIMES = ("onnxruntime", "openvino")
SETS = ("test", "near", "mnist", "photos", "emoji")
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


def pixels(name: str, count: int) -> Array:
    """Images of a shipped set as the file takes them."""
    images = assets.load_images(name).images[:count]
    unit: Array = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return unit


def open_run(path: Path, runtime: str) -> Run:
    """What runs a file and gives its outputs by name."""
    if runtime == "openvino":
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU")
        return lambda images: {
            port.any_name: value for port, value in compiled({"images": images}).items()
        }
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


@pytest.fixture(
    scope="module", params=["onnxruntime", pytest.param("openvino", marks=needs_openvino)]
)
def run_file(request: pytest.FixtureRequest, detector_path: Path) -> Run:
    return open_run(detector_path, request.param)


def with_pixel(images: Array, value: float) -> Array:
    changed = images.copy()
    changed[:, :, 3, 5] = value
    return changed


WRONG: dict[str, Callable[[Array], Array]] = {
    "0..255": lambda images: images * 255,
    "-1..1": lambda images: images * 2 - 1,
    "normalised": lambda images: (images - np.float32(0.286)) / np.float32(0.353),
    "16 bits": lambda images: images * 65535,
    "all NaN": lambda images: np.full_like(images, np.nan),
    "all infinite": lambda images: np.full_like(images, np.inf),
    **{
        f"one pixel {value}": lambda images, value=value: with_pixel(images, value)
        for value in (np.nan, -np.nan, np.inf, -np.inf, 1e38, -1e38, 1.01, -0.01, 2.0)
    },
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["test", "photos"])
def test_wrong_inputs_are_ood(run_file: Run, name: str, wrong: str) -> None:
    images = pixels(name, 6)
    outputs = run_file(WRONG[wrong](images))
    np.testing.assert_array_equal(outputs["p_value"], np.zeros(6, np.float32))
    assert outputs["is_ood"].all()


def test_images_beside_wrong_inputs_keep_their_p_values(run_file: Run) -> None:
    images = pixels("test", 8)
    expected, mixed = run_file(images), images.copy()
    mixed[1] = np.nan
    mixed[4] *= 255
    outputs = run_file(mixed)
    wrong = np.isin(np.arange(8), (1, 4))
    np.testing.assert_array_equal(outputs["p_value"], np.where(wrong, 0, expected["p_value"]))
    np.testing.assert_array_equal(outputs["is_ood"], wrong | expected["is_ood"])


@pytest.mark.parametrize("rounding", [PIXEL_TOLERANCE * 0.99, -PIXEL_TOLERANCE * 0.99, 0.0])
def test_rounding_is_no_wrong_input(run_file: Run, rounding: float) -> None:
    images = pixels("test", 4)
    images[:, :, 0, 0], images[:, :, 0, 1] = min(rounding, 0), 1 + max(rounding, 0)
    assert (run_file(images)["p_value"] > 0).all()


def without_guard(path: Path, target: Path) -> int:
    """Writes the file as it would be without the guard; returns how many operators it had."""
    model = onnx.load(path)
    nodes = list(model.graph.node)
    where = next(node for node in nodes if "p_value" in node.output)
    less = next(node for node in nodes if node.op_type == "Less" and "p_value" in node.input)
    kept = [node for node in nodes if node not in (where, less) and "is_ood" not in node.output]
    for node in kept:
        node.output[:] = ["p_value" if name == where.input[1] else name for name in node.output]
    decision = helper.make_node("LessOrEqual", ["p_value", less.input[0]], ["is_ood"])
    kept.append(decision)
    ends = {output.name for output in model.graph.output}
    while unused := [
        node
        for node in kept
        if not {*node.output} & {name for other in kept for name in other.input}
        | ({*node.output} & ends)
    ]:
        kept = [node for node in kept if node not in unused]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, target)
    return len(nodes) - len(kept)


def test_images_score_bit_for_bit_as_without_the_guard(detector_path: Path, tmp_path: Path) -> None:
    added = without_guard(detector_path, tmp_path / "without.onnx")
    assert added == 10  # nine of the guard, and one for a decision that NaN does not pass
    guarded, plain = (
        open_run(path, "onnxruntime") for path in (detector_path, tmp_path / "without.onnx")
    )
    for name in SETS:
        found, expected = guarded(pixels(name, 64)), plain(pixels(name, 64))
        assert list(found) == list(expected)
        for output, values in expected.items():
            assert found[output].tobytes() == values.tobytes(), (name, output)


@settings(max_examples=200, deadline=None)
@given(
    arrays(
        np.float32,
        (3, 1, 2, 3),
        elements=st.one_of(
            st.floats(0, 1, width=32),
            st.floats(width=32),
            st.sampled_from([0.0, -0.0, 1.0, float(np.nextafter(np.float32(1.1), 2))]),
        ),
    )
)
def test_the_guard_is_numpys(values: Array) -> None:
    within = (values >= np.float32(-PIXEL_TOLERANCE)) & (values <= np.float32(1 + PIXEL_TOLERANCE))
    found = are_images(torch.from_numpy(values))
    np.testing.assert_array_equal(found, within.all(axis=(1, 2, 3)))
