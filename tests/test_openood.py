"""scripts/openood.py on a small stand-in of OpenOOD's data folder, against scikit-learn's figures;
its networks against their published numbers of weights and torchvision."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openood_tree import COUNTS, OOD_SETS, write_checkpoint, write_tree
from PIL import Image
from sklearn.metrics import auc, precision_recall_curve, roc_curve
from torch import nn

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.append(str(SCRIPTS))

import openood  # noqa: E402
import openood_networks  # noqa: E402

from good_rt.config.settings import DetectorConfig  # noqa: E402
from good_rt.errors import GoodRtError  # noqa: E402

NEAR, FAR = ("cifar100", "tin"), ("mnist", "svhn", "texture", "places365")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(SCRIPTS / "openood.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder for CIFAR-10, and the checkpoints s0 and s1. Not to be changed."""
    folder = tmp_path_factory.mktemp("openood")
    write_tree(folder / "data", "cifar10")
    for seed in (0, 1):
        write_checkpoint(openood_networks.cifar10(), folder / f"s{seed}" / "best.ckpt", seed)
    return folder


@pytest.fixture(scope="module")
def result(tree: Path) -> dict[str, Any]:
    """What the script writes for both checkpoints."""
    ended = command(
        "cifar10", "--data", tree / "data", "-o", tree / "out.json", "--scores", tree / "s.npz",
        "--checkpoint", tree / "s0" / "best.ckpt", "--checkpoint", tree / "s1" / "best.ckpt",
        "--save", tree / "saved",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "near fpr95" in ended.stdout and "OOD is the positive class" in ended.stdout
    written: dict[str, Any] = json.loads((tree / "out.json").read_text())
    return written


def by_scikit_learn(of_id: Any, of_ood: Any) -> dict[str, float]:
    """OpenOOD's figures by the library that it uses, OOD as the positive class."""
    is_ood = np.repeat([0, 1], [len(of_id), len(of_ood)])
    scores = np.concatenate([of_id, of_ood])
    fpr, tpr, _ = roc_curve(is_ood, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(is_ood, scores)
    precision_in, recall_in, _ = precision_recall_curve(1 - is_ood, -scores)
    return {
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
        "auroc": auc(fpr, tpr),
        "aupr_out": auc(recall, precision),
        "aupr_in": auc(recall_in, precision_in),
    }


def test_the_figures_are_openoods(tree: Path, result: dict[str, Any]) -> None:
    raw = np.load(tree / "s.npz")
    for number, run in enumerate(result["runs"]):
        assert {"MSP", "Energy", "knn_distance", "mahalanobis", "score"} < set(run["scores"])
        for score, rows in run["scores"].items():
            of_id = raw[f"{number}/id/{score}"]
            assert len(of_id) == COUNTS["test"]
            for name in (*NEAR, *FAR):
                expected = by_scikit_learn(of_id, raw[f"{number}/{name}/{score}"])
                found = {key: rows[name][key] for key in expected}
                assert found == pytest.approx(expected), (score, name)
            for group, names in (("near", NEAR), ("far", FAR)):
                for key, value in rows[group].items():
                    assert value == pytest.approx(np.mean([rows[name][key] for name in names]))


def test_mean_and_deviation_are_over_checkpoints(result: dict[str, Any]) -> None:
    of_runs = [run["scores"]["score"]["near"]["auroc"] for run in result["runs"]]
    assert len(of_runs) == 2 and of_runs[0] != of_runs[1]
    assert result["mean"]["score"]["near"]["auroc"] == pytest.approx(np.mean(of_runs))
    assert result["std"]["score"]["near"]["auroc"] == pytest.approx(np.std(of_runs))


def test_a_saved_checkpoint_is_a_classifier_with_the_same_figures(
    tree: Path, result: dict[str, Any]
) -> None:
    ended = command(
        "cifar10", "--data", tree / "data", "-o", tree / "again.json",
        "--classifier", f"openood_networks:cifar10@{tree / 'saved' / '0'}",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    again = json.loads((tree / "again.json").read_text())
    assert again["runs"][0]["scores"] == result["runs"][0]["scores"]


def test_generated_sets_fit_the_gate(
    tree: Path, tmp_path: Path, generated_dirs: list[Path]
) -> None:
    folder, score = tmp_path / "rgb", ("energy", "knn_distance")
    shutil.copytree(generated_dirs[0], folder)
    for path in (folder / "images").iterdir():
        Image.open(path).convert("RGB").save(path)
    checkpoint = tree / "s0" / "best.ckpt"
    classifier = openood.published_classifier("cifar10", checkpoint, tmp_path / "classifier")
    benchmark = openood.BENCHMARKS["cifar10"]
    lists = openood.Lists.read(tree / "data", "cifar10", limit=4, train_limit=30)
    gate, mean = (
        openood.scores_of(classifier, benchmark, lists, DetectorConfig(score, kind), [folder])[0]
        for kind in ("gate", "sum")
    )
    np.testing.assert_array_equal(gate["id"]["knn_distance"], mean["id"]["knn_distance"])
    assert not np.allclose(gate["id"]["score"], mean["id"]["score"])
    with pytest.raises(GoodRtError, match="gate is fitted on generated images; give some"):
        openood.scores_of(classifier, benchmark, lists, DetectorConfig(score, "gate"))


def test_limits_thin_the_lists(tree: Path) -> None:
    lists = openood.Lists.read(tree / "data", "cifar10", limit=4, train_limit=30)
    assert (len(lists.train.paths), len(lists.test.paths)) == (30, 4)
    assert {len(images.paths) for images in lists.ood.values()} == {4}
    assert len(lists.train.labels) == 30 and set(lists.ood) == set(OOD_SETS["cifar10"])


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, "cifar10", ood_images=1)
    (tmp_path / "benchmark_imglist" / "cifar10" / "test_tin.txt").unlink()
    with pytest.raises(
        GoodRtError, match=r"test_tin\.txt does not exist; --data must be OpenOOD's"
    ):
        openood.Lists.read(tmp_path, "cifar10", None, None)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(GoodRtError, match=r"gone\.png does not exist; download the set again"):
        openood.pixels(tmp_path / "gone.png", openood.BENCHMARKS["cifar10"])


def test_a_missing_checkpoint_is_an_error_of_one_line(tree: Path, tmp_path: Path) -> None:
    ended = command(
        "cifar10", "--data", tree / "data", "-o", tmp_path / "out.json",
        "--checkpoint", tmp_path / "best.ckpt",
    )  # fmt: skip
    assert ended.returncode == 1 and not (tmp_path / "out.json").exists()
    (line,) = ended.stderr.splitlines()
    assert line.endswith("best.ckpt does not exist; download OpenOOD's checkpoints")


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "best.ckpt")
    with pytest.raises(GoodRtError, match=r"not a checkpoint that holds only tensors .*; download"):
        openood.checkpoint_weights(tmp_path / "best.ckpt")


def test_a_checkpoint_of_another_benchmark_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(GoodRtError, match=r"does not (fit|belong)"):
        openood.published_classifier("cifar100", tree / "s0" / "best.ckpt", tmp_path)


def test_a_line_without_label_is_named(tree: Path, tmp_path: Path) -> None:
    lists = tmp_path / "benchmark_imglist" / "cifar10"
    lists.mkdir(parents=True)
    (lists / "test_tin.txt").write_text("a/b.png 3\nc/d.png\n")
    with pytest.raises(GoodRtError, match=r"line 2: 'c/d.png' is not of the form PATH LABEL"):
        openood.ImageList.read(tmp_path, "cifar10/test_tin", "images_classic")


@pytest.mark.parametrize(
    ("benchmark", "width", "height"),
    [("cifar10", 32, 32), ("cifar10", 64, 64), ("cifar10", 51, 33), ("imagenet200", 500, 375)],
)
def test_pixels_are_torchvisions(tmp_path: Path, benchmark: str, width: int, height: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    sizes = openood.BENCHMARKS[benchmark]
    expected = transforms.Compose(
        [
            transforms.Resize(sizes.shorter, transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(sizes.size),
        ]
    )(picture)
    np.testing.assert_array_equal(openood.pixels(tmp_path / "a.png", sizes), np.asarray(expected))


@pytest.mark.parametrize(("name", "count"), [("cifar10", 11_173_962), ("imagenet200", 11_279_112)])
def test_the_networks_have_the_published_number_of_weights(name: str, count: int) -> None:
    network = getattr(openood_networks, name)()
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    names = set(network.state_dict())
    shortcut = "shortcut" if name == "cifar10" else "downsample"
    assert {"conv1.weight", "bn1.running_var", f"layer2.0.{shortcut}.1.bias", "fc.bias"} < names
    assert not any(part.startswith(f"layer1.0.{shortcut}") for part in names)


@torch.no_grad()
def test_the_large_network_is_torchvisions(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = models.resnet18(num_classes=200).eval()
    ours = openood_networks.imagenet200().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_the_large_benchmark_runs_end_to_end(tmp_path: Path) -> None:
    write_tree(tmp_path / "data", "imagenet200", ood_images=3)
    write_checkpoint(openood_networks.imagenet200(), tmp_path / "best.ckpt")
    ended = command(
        "imagenet200", "--data", tmp_path / "data", "-o", tmp_path / "out.json",
        "--checkpoint", tmp_path / "best.ckpt", "--limit", 3, "--train-limit", 12,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["images"] == {"train": 12, "id": 3} | dict.fromkeys(OOD_SETS["imagenet200"], 3)
    assert 0 <= figures["mean"]["score"]["far"]["fpr95"] <= 1
