"""The manifest: there and back, and engines load only when they are the files that it vouches
for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from good_rt.classifier import Classifier
from good_rt.diffusion import load_diffusion
from good_rt.errors import GoodRtError
from good_rt.export.manifest import MANIFEST, Manifest, load_engines
from good_rt.files import sha256

GRAPHS = {"network", "vae_encoder", "vae_decoder", "classifier"}


@pytest.fixture
def folder(engines_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(engines_dir, tmp_path / "engines")


def test_it_describes_the_files(engines_dir: Path, model_dir: Path, classifier: Classifier) -> None:
    manifest = Manifest.read(engines_dir)
    assert dict(manifest.source) == {
        "model": load_diffusion(model_dir).fingerprint, "classifier": classifier.fingerprint
    }  # fmt: skip
    assert set(manifest.graphs) == GRAPHS
    assert {path.name for path in engines_dir.iterdir()} == {
        MANIFEST,
        *(f"{name}.onnx" for name in GRAPHS),
    }
    for entry in manifest.graphs.values():
        assert entry.sha256 == sha256(engines_dir / entry.file)
        assert entry.bytes == (engines_dir / entry.file).stat().st_size
    assert {(row.graph, row.inputs) for row in manifest.parity} == {
        (g, i) for g in GRAPHS for i in ("real", "random")
    }
    assert all(row.ok for row in manifest.parity)


def test_there_and_back(engines_dir: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(engines_dir)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


def test_engines_have_the_specs_of_the_manifest(engines_dir: Path) -> None:
    engines, manifest = load_engines(engines_dir), Manifest.read(engines_dir)
    assert set(engines) == GRAPHS
    for name, engine in engines.items():
        assert dict(engine.inputs) == dict(manifest.graphs[name].inputs)
        assert dict(engine.outputs) == dict(manifest.graphs[name].outputs)
    assert engines["vae_decoder"](latents=torch.zeros(3, 4, 8, 8))["images"].shape == (3, 1, 32, 32)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        value = json.loads((folder / MANIFEST).read_text())
        change(value)
        (folder / MANIFEST).write_text(json.dumps(value))

    return apply


def flip(folder: Path) -> None:
    content = bytearray((folder / "network.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "network.onnx").write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (
        shutil.rmtree,
        r"holds no engines \(manifest\.json is missing\); make them with `good-rt export`",
    ),
    "no JSON": (lambda f: (f / MANIFEST).write_text("{"), r"manifest\.json is not valid JSON"),
    "newer": (
        edit(lambda v: v.update(version=99)),
        r"was written by good-rt .* \(engines version 99\); .* reads up to version 2",
    ),
    "no graphs": (edit(lambda v: v.pop("graphs")), r"is damaged \(graphs is missing\)"),
    "odd graphs": (edit(lambda v: v.update(graphs=[1])), "is damaged"),
    "odd source": (edit(lambda v: v.update(source=[])), "is damaged"),
    "no versions": (edit(lambda v: v.update(versions=None)), "is damaged"),
    "no exporter": (edit(lambda v: v.pop("exporter")), r"is damaged \(exporter is missing\)"),
    "no tolerance": (edit(lambda v: v.update(tolerance=None)), "is damaged"),
    "odd file": (edit(lambda v: v["graphs"]["network"].update(file=5)), "is damaged"),
    "odd data": (edit(lambda v: v["graphs"]["network"].update(data=[3])), "is damaged"),
    "opset as text": (edit(lambda v: v.update(opset="20")), r"\(opset is '20', but must be a"),
    "odd shape": (
        edit(lambda v: v["graphs"]["network"]["inputs"]["sample"].update(shape=[None])),
        r"graphs\.network\.inputs\.sample\.shape\.0 is None, but must be a whole number .* or a",
    ),
    "odd parity": (edit(lambda v: v.update(parity=[{"graph": "network"}])), "is damaged"),
    "hash": (
        flip,
        r"network\.onnx is not the file that was exported \(its hash differs\); export again",
    ),
    "cut": (lambda f: (f / "network.onnx").write_bytes(b""), "its hash differs"),
    "missing file": (
        lambda f: (f / "network.onnx").unlink(),
        r"network\.onnx is missing; export again",
    ),
    "outside": (
        edit(lambda v: v["graphs"]["network"].update(file="../engines/network.onnx")),
        "graph 'network' lies outside the folder",
    ),
    "above": (
        edit(lambda v: v["graphs"]["network"].update(data=[".."])),
        "graph 'network' lies outside the folder",
    ),
    "a folder": (
        lambda f: ((f / "network.onnx").unlink(), (f / "network.onnx").mkdir()),
        r"network\.onnx is missing; export again",
    ),
    "absolute": (
        edit(lambda v: v["graphs"]["network"].update(file="/etc/passwd")),
        "graph 'network' lies outside",
    ),
}


def exchange(folder: Path) -> None:
    """The decoder's file, hash and all, under the network's name."""

    def change(value: dict[str, Any]) -> None:
        network, decoder = value["graphs"]["network"], value["graphs"]["vae_decoder"]
        network.update({key: decoder[key] for key in ("file", "sha256", "bytes")})

    edit(change)(folder)


DAMAGES["another graph"] = (
    exchange,
    r"vae_decoder\.onnx has other inputs or outputs than .* has for 'network'",
)


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_is_named(folder: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(folder)
    with pytest.raises(GoodRtError, match=message):
        load_engines(folder)


def test_a_graph_that_is_asked_for_and_not_there_is_named(folder: Path) -> None:
    edit(lambda value: value["graphs"].pop("network"))(folder)
    with pytest.raises(
        GoodRtError, match=r"manifest\.json has no graph 'network'; export again with --force"
    ):
        load_engines(folder, names=["network", "vae_decoder"])


def test_engines_of_another_model_are_refused(engines_dir: Path) -> None:
    source = dict(Manifest.read(engines_dir).source)
    load_engines(engines_dir, source)
    for name in source:
        with pytest.raises(GoodRtError, match="are of another model or classifier; export again"):
            load_engines(engines_dir, {**source, name: "0" * 64})
