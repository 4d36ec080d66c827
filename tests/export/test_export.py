"""`export_models` as a whole: proved engines or nothing, done once, and again when something
changed."""

from __future__ import annotations

import inspect
import json
import pydoc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import good_rt
import good_rt.export.export as under_test
from good_rt.classifier import Classifier
from good_rt.config.settings import ExportConfig
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
from good_rt.errors import GoodRtError, ParityError
from good_rt.export.export import export_models
from good_rt.export.graphs import FusedGuidance, graph_names, graphs_of
from good_rt.export.manifest import Manifest, load_engines
from good_rt.export.parity import RELATIVE
from good_rt.models import Models, ModelSpec
from good_rt.workflow.export import export
from good_rt.workflow.generator import Generator

IMAGES = from_uint8(assets.load_images("held_out").images[:4])


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


@pytest.fixture(scope="session")
def pixel_models(pixel_dir: Path, classifier_dir: Path) -> Models:
    return ModelSpec(classifier_dir, pixel_dir).load()


@pytest.fixture
def pixel_engines(pixel_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of the pixel model's engines, which are quickly made."""
    made = tmp_path_factory.getbasetemp() / "pixel-engines"
    if not made.exists():
        export_models(pixel_models, made, images=IMAGES)
    return shutil.copytree(made, tmp_path_factory.mktemp("copy") / "engines")


@pytest.mark.parametrize("vjp", [False, True])
@pytest.mark.parametrize("kind", ["models", "pixel_models"])
def test_graph_names_are_those_of_the_graphs(
    kind: str, vjp: bool, generator: Generator, request: pytest.FixtureRequest
) -> None:
    models: Models = request.getfixturevalue(kind)
    fused = FusedGuidance(generator.feature) if vjp else None
    graphs = graphs_of(models.diffusion, models.classifier, None, fused)
    assert graph_names(models.diffusion, vjp) == tuple(graphs)


def test_a_pixel_model_has_two_graphs(pixel_engines: Path) -> None:
    engines = load_engines(pixel_engines)
    assert set(engines) == {"network", "classifier"}
    assert set(engines["network"].inputs) == {"sample", "timestep"}


def test_an_unchanged_model_is_left_alone(pixel_models: Models, pixel_engines: Path) -> None:
    before = state(pixel_engines)
    heard: list[str] = []
    manifest, done = export_models(
        pixel_models, pixel_engines, images=IMAGES, on_graph=heard.append
    )
    assert not done and heard == [] and state(pixel_engines) == before
    assert manifest == Manifest.read(pixel_engines)


@pytest.mark.slow
def test_an_export_with_tolerances_of_its_own_is_left_alone_where_none_are_asked_for(
    pixel_models: Models, tmp_path: Path
) -> None:
    made, _ = export_models(
        pixel_models, tmp_path / "out", config=ExportConfig(relative=5e-3), images=IMAGES
    )
    again, done = export_models(pixel_models, tmp_path / "out", images=IMAGES)
    assert not done and again == made
    anew, done = export_models(
        pixel_models, tmp_path / "out", config=ExportConfig(force=True), images=IMAGES
    )
    assert done and anew.tolerance == made.tolerance
    usual, done = export_models(
        pixel_models, tmp_path / "out", config=ExportConfig(relative=RELATIVE), images=IMAGES
    )
    assert done and usual.tolerance["relative"] == RELATIVE


@pytest.mark.parametrize("change", ["classifier", "damage", "tolerance", "version", "force"])
def test_what_changed_is_exported_again(
    pixel_models: Models,
    pixel_dir: Path,
    classifier_dir: Path,
    pixel_engines: Path,
    tmp_path: Path,
    change: str,
) -> None:
    config, models = ExportConfig(), pixel_models
    if change == "classifier":
        classifier_dir = shutil.copytree(classifier_dir, tmp_path / "clf")
        record = json.loads((classifier_dir / "classifier.json").read_text())
        (classifier_dir / "classifier.json").write_text(
            json.dumps({**record, "mean": [0.5], "std": [0.5]})
        )
        models = ModelSpec(classifier_dir, pixel_dir).load()
    elif change == "damage":
        (pixel_engines / "classifier.onnx").write_bytes(b"damaged")
    elif change == "tolerance":
        config = ExportConfig(relative=2e-3)
    elif change == "version":
        manifest_path = pixel_engines / "manifest.json"
        older = json.loads(manifest_path.read_text())
        older["exporter"] -= 1
        manifest_path.write_text(json.dumps(older))
    else:
        config = ExportConfig(force=True)
    before = state(pixel_engines)
    manifest, done = export_models(models, pixel_engines, config, images=IMAGES)
    after = state(pixel_engines)
    assert done and after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    assert load_engines(pixel_engines, manifest.source).keys() == {"network", "classifier"}
    assert [path.name for path in pixel_engines.parent.iterdir()] == ["engines"]


class Off(nn.Module):
    """A module that computes something slightly else once it is traced, as a faulty exporter would
    make it."""

    def __init__(self, module: nn.Module, by: float) -> None:
        super().__init__()
        self.module, self.by = module, by

    def forward(self, *inputs: Tensor) -> Any:
        first, *rest = out if isinstance(out := self.module(*inputs), tuple) else (out,)
        return (first + self.by, *rest) if rest else first + self.by


@pytest.mark.parametrize(("by", "passes"), [(0.05, False), (5e-5, True)])
def test_a_perturbed_graph_fails_and_leaves_everything_as_it_was(
    pixel_models: Models,
    pixel_engines: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: float,
    passes: bool,
) -> None:
    exported = under_test.export_onnx

    def perturbed(module: nn.Module, *arguments: Any, **settings: Any) -> None:
        exported(Off(module, by), *arguments, **settings)

    monkeypatch.setattr(under_test, "export_onnx", perturbed)
    before = state(pixel_engines)
    fresh = pixel_engines.parent / "fresh"
    if passes:  # the difference is within the tolerance
        assert export_models(pixel_models, fresh, images=IMAGES)[1]
        return
    for out in (pixel_engines, fresh):
        with pytest.raises(
            ParityError,
            match=r"(network|classifier)\.onnx is not what PyTorch computes: .* times the ",
        ):
            export_models(pixel_models, out, config=ExportConfig(force=True), images=IMAGES)
    assert state(pixel_engines) == before
    assert list(pixel_engines.parent.iterdir()) == [pixel_engines]


def test_a_folder_of_other_things_is_not_replaced(pixel_models: Models, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(GoodRtError):
        export_models(pixel_models, tmp_path, images=IMAGES)
    with pytest.raises(GoodRtError):
        export_models(pixel_models, tmp_path, config=ExportConfig(force=True), images=IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_model_and_classifier_that_do_not_fit_are_refused(
    models: Models, pixel_models: Models, tmp_path: Path
) -> None:
    colour = replace(pixel_models.classifier.config, channels=3)
    wrong = Models(models.diffusion, Classifier(SmallResNet(3, 8), colour), models.device)
    with pytest.raises(GoodRtError, match="makes images of 32x32 pixels, 1 channel; the classif"):
        export_models(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_model_and_one_without_its_vae_are_refused(
    model_dir: Path, classifier_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(GoodRtError):
        ModelSpec(classifier_dir, model_dir / "vae").load()
    bare = shutil.copytree(model_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("vae"))
    with pytest.raises(GoodRtError, match="makes images of 8x8 pixels, 4 channels; the classifier"):
        ModelSpec(classifier_dir, bare).load()


def test_real_inputs_are_latents_of_the_images_at_levels_of_the_schedule(
    engines_dir: Path, model_dir: Path
) -> None:
    from good_rt.classifier import load_classifier
    from good_rt.diffusion import load_diffusion

    model = load_diffusion(model_dir)
    classifier = load_classifier(assets.CLASSIFIER)
    graphs = graphs_of(model, classifier, IMAGES)
    assert set(graphs) == {"network", "vae_encoder", "vae_decoder", "classifier"}
    assert model.encoder is not None
    with torch.no_grad():
        torch.testing.assert_close(
            graphs["vae_decoder"].inputs["real"](3)["latents"], model.encoder(IMAGES[:3])
        )
    made = graphs["network"].inputs["real"](5)
    assert made["sample"].shape == (5, 4, 8, 8)
    assert made["timestep"].tolist() == [999, 749, 500, 250, 0]
    assert made["timestep"].dtype == torch.float32
    assert made["class_labels"].tolist() == [0, 1, 2, 3, 4]
    without = graphs_of(model, classifier, None)
    assert set(without["network"].inputs) == {"random"}


@pytest.mark.slow
def test_weights_beyond_one_file(
    models: Models,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a model of more than 2 GB: weights in a file beside the graph, which the halves of a
    gradient share."""
    monkeypatch.setattr("good_rt.export.to_onnx.LARGEST_FILE", 100_000)
    fused = FusedGuidance(generator.feature)
    manifest, _ = export_models(
        models, tmp_path / "engines", ExportConfig(batches=(1, 3)), images=IMAGES, fused=fused
    )
    assert {row.batch for row in manifest.parity} == {1, 3} and all(
        row.ok for row in manifest.parity
    )
    data = {name: entry.data for name, entry in manifest.graphs.items()}
    assert data["network"] == ("network.onnx.data",)
    assert (
        data["network_vjp"]
        == data["network_forward"]
        == data["network_backward"]
        == ("network_vjp.onnx.data",)
    )
    path = tmp_path / "engines" / "network.onnx.data"
    assert (
        path.with_name("network.onnx").stat().st_size + path.stat().st_size
        == manifest.graphs["network"].bytes
    )
    load_engines(tmp_path / "engines")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(GoodRtError, match=r"network\.onnx is not the file that was exported"):
        load_engines(tmp_path / "engines")
    path.unlink()
    with pytest.raises(GoodRtError, match=r"network\.onnx\.data is missing; export again"):
        load_engines(tmp_path / "engines")


def test_the_callable_package_has_the_signature_and_help_of_the_step() -> None:
    assert inspect.signature(good_rt.export) == inspect.signature(export)
    assert list(inspect.signature(good_rt.export).parameters)[:3] == ["models", "id_data", "out"]
    text = pydoc.plain(pydoc.render_doc(good_rt.export))
    for line in (
        "Exports both models into the folder",
        "out: Folder of the engines",
        "ParityError",
    ):
        assert line in text
