"""Weights as people have them: names with prefixes, several files, LoRA layers, pickles."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from good_rt.classifier import load_classifier, load_weights
from good_rt.classifier.unpickle import read_tensors, run_command
from good_rt.classifier.weights import pickle_refusal, plain_names, weights_hash
from good_rt.errors import GoodRtError


class Net(nn.Module):
    image_size = 16

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))


@pytest.fixture
def mine() -> Iterator[Any]:
    module = types.ModuleType("mine")
    module.Net = Net  # type: ignore[attr-defined]
    sys.modules["mine"] = module
    yield module
    del sys.modules["mine"]


def state() -> dict[str, Tensor]:
    return {name: value.contiguous() + 1 for name, value in Net().state_dict().items()}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state().items()}


def inside(after: str, inserted: str) -> dict[str, Tensor]:
    return {name.replace(after, after + inserted, 1): value for name, value in state().items()}


READ: dict[str, dict[str, Tensor]] = {
    **{
        prefix or "plain": prefixed(prefix)
        for prefix in (
            "", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "ema.",
            "model._orig_mod.", "state_dict.model.", "net.", "ema_model.module.", "fc.",
        )
    },
    "compiled part": inside("features.", "_orig_mod."),
    "parallel part": inside("features.", "module."),
    "averaged": {**prefixed("module."), "n_averaged": torch.tensor(3)},
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "two sets": (
        {**prefixed("model."), **prefixed("ema.")},
        "holds 2 sets of weights, such as 'ema.fc.bias' and 'model.fc.bias'; save only the one",
    ),
    "own and ema": ({**state(), **prefixed("ema.")}, "holds 2 sets of weights, such as 'fc.bias'"),
    "LoRA beside": (
        {**state(), "fc.lora_A.default.weight": torch.ones(4, 8)},
        r"holds LoRA layers \('fc.lora_A.default.weight'\).*merge them .*merge_and_unload",
    ),
    "peft": (
        {"base_model.model.fc.base_layer.weight": torch.ones(2, 8)},
        "holds LoRA layers .'base_model.model.fc.base_layer.weight'",
    ),
    "kohya": ({"lora_unet_mid.lora_down.weight": torch.ones(2, 8)}, "holds LoRA layers"),
    "incomplete": (
        {name: value for name, value in prefixed("model.").items() if "fc.bias" not in name},
        "lacks 'fc.bias'; it does not belong to mine:Net",
    ),
    "too much": (
        {**prefixed("model."), "criterion.weight": torch.ones(2)},
        "has 'criterion.weight'",
    ),
    "another network": ({"conv.weight": torch.ones(2)}, "lacks 'fc.bias'"),
    "empty": ({}, "lacks 'fc.bias'"),
}


@pytest.mark.parametrize("form", list(READ))
def test_names_of_wrapped_networks_are_read(mine: Any, tmp_path: Path, form: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file(READ[form], path)
    network = load_classifier(f"mine:Net@{path}").network
    names = network.library_names()  # type: ignore[operator]
    for own, value in network.state_dict().items():
        torch.testing.assert_close(value, state()[names[own]])


@pytest.mark.parametrize("form", list(REFUSED))
def test_other_names_are_refused(mine: Any, tmp_path: Path, form: str) -> None:
    tensors, message = REFUSED[form]
    path = tmp_path / "w.safetensors"
    save_file(tensors, path)
    with pytest.raises(GoodRtError, match=message) as caught:
        load_classifier(f"mine:Net@{path}")
    assert "\n" not in str(caught.value) and "w.safetensors" in str(caught.value)


WORDS = st.sampled_from([".".join(word) for word in ("a", "b", "ab", "ba", "abc", "cab", "cc")])
PREFIXES = st.lists(st.sampled_from(["x", "module", "ema"]), max_size=3)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.sets(WORDS, min_size=1, max_size=4), PREFIXES)
def test_any_prefix_is_taken_off(wanted: set[str], prefix: list[str]) -> None:
    before = "".join(f"{word}." for word in prefix)
    names = {before + name for name in wanted}
    expected = {before + name: name for name in wanted}
    assert plain_names(names, wanted, Path("w")) == expected


def sharded(folder: Path, names: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> Path:
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for i, name in enumerate(state()):
        weight_map[name] = names[i % 2]
        save_file(
            {n: v for j, (n, v) in enumerate(state().items()) if j % 2 == i % 2},
            folder / names[i % 2],
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder / "model.safetensors"


def test_several_files_are_one(mine: Any, tmp_path: Path) -> None:
    path = sharded(tmp_path / "w")
    for given_path in (path, path.with_name("model.safetensors.index.json")):
        assert load_weights(given_path).keys() == state().keys()
    load_classifier(f"mine:Net@{path}.index.json")


def test_damaged_indexes_are_named(tmp_path: Path) -> None:
    path = sharded(tmp_path / "w")
    (tmp_path / "w" / "b.safetensors").unlink()
    with pytest.raises(GoodRtError, match=r"names 'b\.safetensors', which does not lie"):
        load_weights(path)
    index = tmp_path / "w" / "model.safetensors.index.json"
    save_file(state(), tmp_path / "secret.safetensors")
    for content, message in (
        ({"weight_map": {"a": "../secret.safetensors"}}, "which does not lie beside it"),
        ({"weight_map": ["a"]}, "names no files"),
        ({}, "names no files"),
        ({"weight_map": {"a": 3}}, "names no files"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(GoodRtError, match=message):
            load_weights(path)


def test_buffers_that_are_not_saved_decide_the_fingerprint() -> None:
    def network(value: float) -> nn.Module:
        net = Net()
        net.register_buffer("scale", torch.tensor([value]), persistent=False)
        return net

    assert weights_hash(network(1.0)) == weights_hash(network(1.0)) != weights_hash(network(2.0))


class Settings:
    """A class of the user's own in a checkpoint."""

    def __init__(self) -> None:
        self.rate = 0.1


class OwnDict(dict[str, Any]):
    """A dictionary of another class."""


def checkpoints() -> dict[str, Any]:
    optimizer = torch.optim.Adam(Net().parameters())
    return {
        "plain": state(),
        "timm": {
            "epoch": 3,
            "arch": "resnet18",
            "state_dict": state(),
            "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1, out=pathlib.Path("a")),
            "version": 2,
            "metric": np.float64(0.9),
        },
        "lightning": {
            "epoch": 3,
            "global_step": 9,
            "pytorch-lightning_version": "2.5",
            "state_dict": state(),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": {"settings": Settings(), "path": pathlib.PurePosixPath("a")},
            "hparams": OwnDict(lr=0.1),
        },
        "deit": {"model": state(), "args": argparse.Namespace(), "scaler": {}},
        "own dictionary": {"net": OwnDict(state())},
        "numbers beside": {**state(), "epoch": 3},
        "whole module": Net(),
        "accelerate": dict(state()),
    }


@pytest.mark.parametrize("form", list(checkpoints()))
def test_the_command_against_pickles_works(tmp_path: Path, form: str) -> None:
    path = tmp_path / "with space" / "check point.pth"
    path.parent.mkdir()
    torch.save(checkpoints()[form], path)
    with pytest.raises(GoodRtError, match="is a pickle") as caught:
        load_classifier(f"timm:resnet18@{path}")
    command = str(caught.value).partition("safetensors: ")[2]
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    tensors = load_file(path.with_suffix(".safetensors"))
    assert tensors.keys() == state().keys()
    if form != "whole module":
        for name, value in state().items():
            torch.testing.assert_close(tensors[name], value)


def test_two_sets_of_weights_are_ambiguous(tmp_path: Path, capsys: Any) -> None:
    path, out = tmp_path / "a.pth", tmp_path / "a.safetensors"
    ema = {name: value * 0 for name, value in state().items()}
    torch.save({"state_dict": state(), "state_dict_ema": ema}, path)
    assert run_command([str(path), str(out)]) == 2 and not out.exists()
    assert "holds 2 sets of weights (state_dict, state_dict_ema)" in capsys.readouterr().err
    assert run_command([str(path), str(out), "--key", "state_dict_ema"]) == 0
    assert float(load_file(out)["fc.bias"].abs().max()) == 0
    assert run_command([str(path), str(out), "--key", "model"]) == 2


def test_several_pickles_become_one_file(tmp_path: Path) -> None:
    names, values = list(state()), state()
    parts = [tmp_path / f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    torch.save({name: values[name] for name in names[:3]}, parts[0])
    torch.save({name: values[name] for name in names[3:]}, parts[1])
    command = pickle_refusal(*parts).partition("safetensors: ")[2]
    assert run_command(shlex.split(command)[3:]) == 0
    assert load_file(tmp_path / "pytorch_model.safetensors").keys() == values.keys()


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch ran",)


class Evaluated:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, ("open('ran', 'w')",)


@pytest.mark.parametrize("attack", [Evil, Evaluated])
def test_no_code_of_a_pickle_runs(
    tmp_path: Path, attack: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state(), "args": attack()}, "a.pth")
    Path("b.pth").write_bytes(pickle.dumps(attack()))
    torch.save({**state(), "x": attack()}, "c.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "b.pth", "c.pth"):
        with suppress(GoodRtError):
            assert read_tensors(Path(name)).keys() == state().keys()
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "words", [[], ["a"], ["gone.pth", "o.safetensors"], ["a.pth", "o.bin"], ["--key"], ["--x", "a"]]
)
def test_other_words_are_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pth").write_bytes(b"no pickle")
    assert run_command(words) == 2
    assert "usage" in capsys.readouterr().err
