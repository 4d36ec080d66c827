"""Weights of diffusion models as people have them: prefixes, shards of variants, LoRA, other
networks. `inspect` and loading say the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from good_rt.diffusion import load_diffusion
from good_rt.diffusion.inspection import inspect_model
from good_rt.errors import GoodRtError

PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(pixel_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pixel_dir, tmp_path / "model")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "unet" / PLAIN
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def same_network(folder: Path, original: Path) -> bool:
    ours, theirs = (load_diffusion(path).network.state_dict() for path in (folder, original))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "ema.", "module._orig_mod."])
def test_prefixes_are_taken_off(folder: Path, pixel_dir: Path, prefix: str) -> None:
    rewrite(folder, lambda state: {prefix + name: value for name, value in state.items()})
    assert inspect_model(folder).problems == ()
    assert same_network(folder, pixel_dir)


def lacking(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != "conv_in.bias"}


PROBLEMS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "lacks one": (lacking, r"unet lacks the weight 'conv_in\.bias' \(1 missing in all\)"),
    "lacks all": (lambda state: {"x": torch.ones(2)}, "unet lacks the weight"),
    "another shape": (
        lambda state: state | {"conv_in.bias": torch.ones(3)},
        r"weight 'conv_in\.bias' has shape \(3,\), and config\.json describes",
    ),
    "too much": (
        lambda state: state | {"class_embedding.weight": torch.ones(9, 4)},
        r"has the weight 'class_embedding\.weight', which the network of its config",
    ),
    "LoRA": (
        lambda state: state | {"conv_in.lora_A.default.weight": torch.ones(4)},
        r"holds LoRA layers \('conv_in\.lora_A\.default\.weight'\).*fuse_lora",
    ),
    "two sets": (
        lambda state: {p + n: v.clone() for p in ("model.", "ema.") for n, v in state.items()},
        "holds 2 sets of weights",
    ),
}


@pytest.mark.parametrize("problem", list(PROBLEMS))
def test_inspect_and_loading_name_the_same_problem(folder: Path, problem: str) -> None:
    change, message = PROBLEMS[problem]
    rewrite(folder, change)
    problems = inspect_model(folder).problems
    with pytest.raises(GoodRtError, match=message) as caught:
        load_diffusion(folder)
    assert str(caught.value) in problems


def shard(folder: Path, older: bool, variant: str | None = "fp16") -> None:
    """The network in several files, under the names of diffusers since 0.31 or before."""
    unet = folder / "unet"
    network = UNet2DModel.from_pretrained(unet)
    (unet / PLAIN).unlink()
    network.save_pretrained(unet, variant=variant, max_shard_size="20KB")
    if older:
        index = next(unet.glob("*.index*.json"))
        text = json.loads(index.read_text())
        new = {
            name: name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")
            for name in set(text["weight_map"].values())
        }
        for before, after in new.items():
            (unet / before).rename(unet / after)
        text["weight_map"] = {key: new[name] for key, name in text["weight_map"].items()}
        index.write_text(json.dumps(text))
    assert len(list(unet.glob("*.safetensors"))) > 1


@pytest.mark.parametrize(("older", "variant"), [(False, None), (False, "fp16"), (True, "fp16")])
def test_shards_of_either_spelling_are_read(
    folder: Path, pixel_dir: Path, older: bool, variant: str | None
) -> None:
    shard(folder, older, variant)
    found = inspect_model(folder)
    assert found.problems == () and found.parts == tuple(
        type(part)(part.name, part.class_name, part.parameters, part.stored, found.parts[i].bytes)
        for i, part in enumerate(inspect_model(pixel_dir).parts)
    )
    assert same_network(folder, pixel_dir)


def test_a_missing_shard_is_a_problem(folder: Path) -> None:
    shard(folder, older=True)
    next((folder / "unet").glob("*-00001-*")).unlink()
    assert "lacks the weight" in inspect_model(folder).problems[0]
    with pytest.raises(GoodRtError, match="lacks the weight"):
        load_diffusion(folder)


def test_weights_that_are_there_twice_are_refused(folder: Path) -> None:
    whole = (folder / "unet" / PLAIN).read_bytes()
    shard(folder, older=False, variant=None)
    (folder / "unet" / PLAIN).write_bytes(whole)
    assert "has its weights twice" in inspect_model(folder).problems[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_lora_weights.safetensors", "holds LoRA layers"),
        ("unet.safetensors", "has none of their names: rename it to diffusion_pytorch_model"),
    ],
)
def test_other_files_are_not_taken_for_weights(folder: Path, name: str, message: str) -> None:
    (folder / "unet" / PLAIN).rename(folder / "unet" / name)
    assert message in inspect_model(folder).problems[0]
