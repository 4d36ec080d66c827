"""Plug-ins of real, tiny distributions on sys.path: loaded when named, never otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from good_rt.classifier import load_classifier, predict, save_classifier, saved_spec
from good_rt.errors import GoodRtError
from good_rt.method.scores import LOGIT_SCORES, plugin_scores
from good_rt.plugins import (
    CLASSIFIER_PLUGINS,
    SCORE_PLUGINS,
    load_plugin,
    plugin_names,
)

SOURCE = """
import torch
from torch import nn
from good_rt.classifier import ClassifierSource, OpenedClassifier, part, put_weights, load_weights

def network(width):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 3),
    )
    return part(model.eval(), torch.zeros(2, 1, 16, 16))

def open_acme(request):
    width = int(request.name)
    return OpenedClassifier(
        network(width), 3, arguments={"width": width}, input_channels=1, input_size=16
    )

def restore_acme(config, folder):
    restored = network(config.arguments["width"])
    path = folder / "model.safetensors"
    put_weights(restored, load_weights(path), path, "acme")
    return restored

ACME = ClassifierSource(open_acme, restore_acme)
"""
SCORE = """
import numpy as np

def margin(logits):
    ordered = np.sort(logits, axis=1)
    return ordered[:, -2] - ordered[:, -1]

def constant(logits):
    return 0.0

number = 3
"""
ENTRY_POINTS = """
[good_rt.classifiers]
acme = acme_source:ACME
acme-number = acme_score:number
broken = acme_broken:SOURCE

[good_rt.scores]
margin = acme_score:margin
constant = acme_score:constant
number = acme_score:number
absent = acme_score:absent
Energy = acme_score:margin
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a distribution with entry points where Python finds it; returns its folder."""

    def write(name: str, entry_points: str, modules: dict[str, str]) -> Path:
        folder = tmp_path / name
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points)
        for module, code in modules.items():
            (folder / f"{module}.py").write_text(code)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(folder)
        return folder

    return write


@pytest.fixture
def acme(install: Callable[..., Path]) -> Path:
    modules = {
        "acme_source": SOURCE,
        "acme_score": SCORE,
        "acme_broken": "raise OSError('no licence file')\n",
    }
    return install("acme", ENTRY_POINTS, modules)


def test_a_classifier_plugin_is_a_spec(acme: Path) -> None:
    classifier = load_classifier("acme:5")
    assert classifier.config.architecture == "plugin:acme:5"
    assert classifier.config.arguments == {"width": 5}
    logits, features = predict(classifier, torch.zeros(2, 1, 16, 16))
    assert logits.shape == (2, 3) and features.shape == (2, 5)


def test_a_saved_plugin_classifier_needs_its_name_to_open(acme: Path, tmp_path: Path) -> None:
    classifier, folder = load_classifier("acme:5"), tmp_path / "saved"
    with torch.no_grad():
        for tensor in classifier.network.parameters():
            tensor.mul_(1.5)
    save_classifier(classifier, folder)
    with pytest.raises(GoodRtError, match=rf"open it as acme:5@{folder}"):
        load_classifier(folder)
    again = load_classifier(saved_spec(classifier, folder))
    images = torch.linspace(-1, 1, 512).view(2, 1, 16, 16)
    assert torch.equal(predict(again, images)[0], predict(classifier, images)[0])
    with pytest.raises(GoodRtError, match="was made from plugin:acme:5, not from plugin:acme:6"):
        load_classifier(f"acme:6@{folder}")


def test_a_folder_imports_no_plugin(acme: Path, tmp_path: Path) -> None:
    classifier = load_classifier("acme:5")
    config = replace(classifier.config, architecture="plugin:acme:5")
    del sys.modules["acme_source"]
    save_classifier(type(classifier)(classifier.network, config), tmp_path / "from_elsewhere")
    with pytest.raises(GoodRtError, match="a folder cannot have code run"):
        load_classifier(tmp_path / "from_elsewhere")
    assert "acme_source" not in sys.modules


def test_unknown_classifier_plugins_list_the_installed_ones(acme: Path) -> None:
    installed = "installed are acme, acme-number, broken"
    with pytest.raises(
        GoodRtError, match=rf"names no classifier plug-in: {installed}; known forms"
    ):
        load_classifier("acmee:some/model")
    with pytest.raises(GoodRtError, match=rf"cannot be imported .*not a plug-in.*{installed}"):
        load_classifier("acmee:model")
    with pytest.raises(GoodRtError, match=r"'acme-number' is of type int; .*ClassifierSource"):
        load_classifier("acme-number:1")


def test_without_plugins_the_error_says_so() -> None:
    with pytest.raises(GoodRtError, match="none are installed"):
        load_plugin("good_rt.no_such_group", "acme")


def test_an_import_error_names_plugin_and_distribution(acme: Path) -> None:
    with pytest.raises(
        GoodRtError, match=r"'broken' \(acme_broken:SOURCE of acme\).*OSError: no licence file"
    ):
        load_classifier("broken:model")
    with pytest.raises(GoodRtError, match=r"'absent' .*AttributeError"):
        plugin_scores(["absent"])


def test_a_name_of_two_distributions_is_refused(acme: Path, install: Callable[..., Path]) -> None:
    install("rival", "[good_rt.scores]\nmargin = rival_score:margin\n", {"rival_score": SCORE})
    with pytest.raises(
        GoodRtError, match=r"acme_score:margin of acme, rival_score:margin of rival"
    ):
        plugin_scores(["margin"])


def test_score_plugins_are_rows_in_the_order_named(acme: Path) -> None:
    scores = plugin_scores(["margin"])
    logits = np.array([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    assert list(scores) == ["margin"]
    np.testing.assert_array_equal(scores["margin"](logits), [-2.0, 0.0])
    assert plugin_scores([]) == {}


def test_score_plugins_that_cannot_be_a_row_are_refused(acme: Path) -> None:
    known = "installed are Energy, absent, constant, margin, number"
    with pytest.raises(GoodRtError, match=rf"no plug-in 'margni' .*{known}"):
        plugin_scores(["margni"])
    for name in ("Energy", "Unified", *LOGIT_SCORES):
        with pytest.raises(GoodRtError, match="is always reported"):
            plugin_scores([name])
    with pytest.raises(GoodRtError, match="must name a function of logits"):
        plugin_scores(["number"])
    with pytest.raises(GoodRtError, match=r"'constant' gave an array of shape \(\) for 2 images"):
        plugin_scores(["constant"])["constant"](np.zeros((2, 3)))


def test_names_are_listed_without_an_import(acme: Path) -> None:
    assert plugin_names(CLASSIFIER_PLUGINS) == ("acme", "acme-number", "broken")
    assert "margin" in plugin_names(SCORE_PLUGINS)
    assert {"acme_source", "acme_score", "acme_broken"}.isdisjoint(sys.modules)


def test_nothing_is_searched_until_a_plugin_is_named(acme: Path, classifier_dir: Path) -> None:
    """Imports, a classifier folder and the built-in scores look at no entry point of ours."""
    code = f"""
import importlib.metadata as metadata, sys
searched, whole = [], metadata.entry_points
def entry_points(**parameters):
    searched.append(parameters)
    return whole(**parameters)
metadata.entry_points = entry_points
sys.path.insert(0, {str(acme)!r})
import good_rt, good_rt.plugins
from good_rt.classifier import load_classifier
from good_rt.method.scores import LOGIT_SCORES, plugin_scores
load_classifier({str(classifier_dir)!r})
assert plugin_scores([]) == {{}}
assert not [found for found in searched if 'good_rt' in str(found.get('group'))], searched
assert not {{name for name in sys.modules if name.startswith('acme')}}
load_classifier('acme:4')
assert [found for found in searched if found.get('group') == 'good_rt.classifiers']
print(*sorted(name for name in sys.modules if name.startswith('acme')))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=acme
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "acme_source\n"
