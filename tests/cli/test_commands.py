"""export, generate, train, detector build and evaluate: what they make, as JSON, and how they
refuse.

Every refusal is one line `error: …` on standard error and exit code 2, and leaves nothing behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from good_rt.classifier import load_classifier
from good_rt.demo import assets
from good_rt.detector.runtime import Detector
from good_rt.evaluation.results import Evaluation
from good_rt.export.manifest import load_engines
from good_rt.export.vjp.rules.registry import RULES

Run = Callable[..., Any]
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model_words(model_dir: Path, classifier_dir: Path, id_dir: Path) -> list[object]:
    return ["--model", model_dir, "--classifier", classifier_dir, "--id", id_dir]


@pytest.fixture
def sets(generated_dirs: list[Path]) -> list[object]:
    return [word for folder in generated_dirs for word in ("--generated", folder)]


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_export_makes_engines_and_then_nothing(
    run: Run, pixel_dir: Path, classifier_dir: Path, id_dir: Path, tmp_path: Path
) -> None:
    options = [
        "export",
        "--model",
        pixel_dir,
        "--classifier",
        classifier_dir,
        "--id",
        id_dir,
        "-o",
        tmp_path / "e",
        "--no-vjp",
    ]
    made = run(*options, "--json").json
    assert made["exported"] is True
    assert set(made["graphs"]) == {"network", "classifier"}
    assert all(row["excess"] <= 1 for row in made["parity"])
    assert set(load_engines(tmp_path / "e")) == {"network", "classifier"}
    assert run(*options, "--json").json["exported"] is False
    text = run(*options)
    assert "unchanged: " in text.out and "of tolerance" in text.out
    strict = run(*options, "--relative", "0", "--absolute", "1e-12")
    assert (
        "is not what PyTorch computes" in strict.failed()
        and "nothing was written" in strict.failed()
    )
    assert run(*options, "--json").json["exported"] is False  # the old engines are still there


def test_generate_prints_what_the_manifest_holds(
    run: Run, model_words: list[object], tmp_path: Path
) -> None:
    options = ["generate", "--engine", "torch", *model_words, "-n", 6, "--twins"]
    options += ["--sampler-steps", 2]
    batch = ["--batch", 3, "-o", tmp_path / "ood"]
    found = run(*options, *batch, "--json").json
    rows = [
        json.loads(line) for line in (tmp_path / "ood" / "manifest.jsonl").read_text().splitlines()
    ]
    assert found["images"] == len(rows) == 6
    for name in ("energy", "energy_before", "knn_distance", "knn_distance_before"):
        assert found[name] == pytest.approx(np.mean([row[name] for row in rows]))
    with Image.open(found["contact_sheet"]) as sheet:
        assert sheet.size[0] == 8 * 32 * 2
    text = run(*options, *batch)
    assert text.out.startswith("6 images in ") and "unguided twins" in text.out
    changed = run(*options, *batch, "--seed", 1)
    assert "holds images of another job (different: seed)" in changed.failed()
    auto = run(*options, "--batch", "auto", "-o", tmp_path / "ood", "--json")
    # the batch size picked by timing does not replace the one it began with
    assert auto.json["images"] == 6


def test_generate_on_exported_engines(
    run: Run, model_words: list[object], engines_dir: Path, tmp_path: Path
) -> None:
    options = [
        "generate",
        *model_words,
        "--engine-folder",
        engines_dir,
        "-n",
        2,
        "--batch",
        2,
        "--sampler-steps",
        2,
        "--gradients",
        "torch",
        "--json",
    ]
    assert run(*options, "-o", tmp_path / "ood").json["images"] == 2
    assert json.loads((tmp_path / "ood" / "job.json").read_text())["engine"] == "onnx"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there(
    run: Run, model_words: list[object], sets: list[object], tmp_path: Path
) -> None:
    out = ("-o", tmp_path / "out")
    for command in (
        ["generate", *model_words, *out],
        ["train", *model_words, *sets, *out],
        ["detector", "build", *model_words[2:], *sets, *out],
        ["evaluate", *sets, *out],
        ["bench", "sampler", *model_words],
    ):
        assert (
            "sees no CUDA GPU here; leave --device out"
            in run(*command, "--device", "cuda").failed()
        )
    assert (
        "TensorRT needs --device cuda"
        in run("generate", "--engine", "tensorrt", *model_words, *out).failed()
    )
    assert "nothing is guided; set one" in run("bench", "sampler", "--mu", 0, *model_words).failed()
    assert (
        "span 0 to 0.01 holds none of the steps 4 to 9 that are sampled"
        in run("generate", "--span", 0, 0.01, "--sampler-steps", 10, *model_words, *out).failed()
    )
    assert (
        "--tensorrt needs --device cuda" in run("bench", "sampler", "--tensorrt", "fp16").failed()
    )
    assert (
        "the engine onnx computes in fp32 or fp16"
        in run("generate", "--precision", "bf16", *model_words, *out).failed()
    )
    half = ["generate", "--precision", "fp16", *model_words, *out]
    assert "ONNX Runtime only computes in fp16 on a GPU: add --device cuda" in run(*half).failed()
    assert (
        "precision is for the engines onnx and tensorrt" in run(*half, "--engine", "torch").failed()
    )
    assert (
        "there is no device 'tpu'"
        in run("generate", *model_words, *out, "--device", "tpu").failed()
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_samplers_speed_is_measured(
    run: Run, model_words: list[object], tmp_path: Path
) -> None:
    options = [
        "bench",
        "sampler",
        *model_words,
        "--engine-folder",
        tmp_path / "e",
        "--sampler-steps",
        2,
        "--batch",
        1,
        "--batch",
        3,
    ]
    measured = run(*options, "--repeats", 2, "--json").json
    assert measured["machine"]["threads"] == torch.get_num_threads()
    assert measured["machine"]["versions"]["torch"] == torch.__version__
    variants = {"unguided", "engines end to end", "engines, PyTorch gradients", "only PyTorch"}
    for seconds, parts in zip(
        measured["seconds"].values(), measured["parts"].values(), strict=True
    ):
        assert set(seconds) == variants and set(parts) == variants - {"unguided"}
        assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
        assert all(time > 0 for found in parts.values() for time in found.values())
    assert list(measured["seconds"]) == ["1", "3"]
    shown = run(*options, "--repeats", 1).out
    assert "only PyTorch" in shown and f"torch {torch.__version__}" in " ".join(shown.split())


def test_train_then_build_then_evaluate(
    run: Run,
    model_words: list[object],
    sets: list[object],
    classifier_dir: Path,
    id_dir: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "trained"
    trained = run(
        "train",
        *model_words,
        *sets,
        "--train-steps",
        4,
        "--lr",
        "1e-5",
        "--max-drop",
        1,
        "-o",
        out,
        "--json",
    ).json
    assert trained["kept_step"] == trained["steps"] == 4
    assert trained["regulariser"] > 0
    assert (
        load_classifier(Path(trained["classifier"])).config
        == load_classifier(classifier_dir).config
    )
    record = json.loads((out / "training.json").read_text())
    assert len(record["history"]) == 4 and record["config"]["lr"] == 1e-5

    build = ["detector", "build", *sets, "--classifier", trained["classifier"], "--id", id_dir]
    built = run(
        *build, "--bank-size", 100, "--alpha", 0.1, "-o", tmp_path / "d.onnx", "--json"
    ).json
    assert built["bytes"] == (tmp_path / "d.onnx").stat().st_size
    assert built["parity"]["class_disagreements"] == built["parity"]["ood_disagreements"] == 0
    info = Detector(tmp_path / "d.onnx").info
    assert (info.alpha, info.training) == (0.1, "generated OOD images")

    np.savez(tmp_path / "far.npz", images=assets.load_images("textures").images[:50])
    evaluate = ["evaluate", *sets, "--id", id_dir, "--test-set", f"far={tmp_path / 'far.npz'}"]
    evaluate += [
        "--classifier",
        f"before={classifier_dir}",
        "--classifier",
        f"trained={trained['classifier']}",
    ]
    found = run(*evaluate, "-o", tmp_path / "evaluation", "--json").json
    written = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert found == written
    evaluation = Evaluation.from_json(written)
    assert evaluation.models == ("before", "trained")
    assert (tmp_path / "evaluation" / "report.html").read_text().startswith("<!doctype html>")


def test_objective_augmentation_and_balance_are_options(
    run: Run, model_words: list[object], sets: list[object], tmp_path: Path
) -> None:
    options = ["--train-steps", 1, "--lr", "1e-5", "--max-drop", 1, "--balanced"]
    options += ["--objective", "mahalanobis", "--augmentation", "shift", "-o", tmp_path / "t"]
    trained = run("train", *model_words, *sets, *options, "--json").json
    assert trained["objective"] == "mahalanobis" and trained["regulariser"] > 0
    record = json.loads((tmp_path / "t" / "training.json").read_text())
    config = record["config"]
    assert (config["objective"], config["weight"], config["balanced"]) == ("mahalanobis", 3.0, True)
    decided = {"flip": False, "shift": True, "flip_loss": None, "shift_loss": None}
    assert record["augmentation"] == trained["augmentation"] == decided
    options[-1] = tmp_path / "auto"
    shown = run("train", *model_words, *sets, *options, "--augmentation", "auto").out
    assert "augmentation: " in shown and "(accuracy lost: flip " in shown


def test_the_control_is_trained_without_ood(
    run: Run, model_words: list[object], id_dir: Path, tmp_path: Path
) -> None:
    found = run(
        "train",
        *model_words,
        "--control",
        "--train-steps",
        2,
        "--lr",
        "1e-5",
        "--max-drop",
        1,
        "-o",
        tmp_path / "c",
        "--json",
    ).json
    assert found["regulariser"] is None
    build = [
        "detector",
        "build",
        "--classifier",
        found["classifier"],
        "--id",
        id_dir,
        "--bank-size",
        100,
    ]
    assert run(*build, "-o", tmp_path / "d.onnx").code == 0
    assert Detector(tmp_path / "d.onnx").info.training == "none"


def test_a_finished_training_is_not_taken_for_another(
    run: Run, model_words: list[object], sets: list[object], tmp_path: Path
) -> None:
    options = ["--train-steps", 2, "--lr", "1e-5", "--max-drop", 1, "-o", tmp_path / "t"]
    assert run("train", *model_words, *sets, *options).code == 0
    record = (tmp_path / "t" / "training.json").read_text()
    for other in (["--control"], sets[:2]):
        assert (
            "is of another training (different: images)"
            in run("train", *model_words, *other, *options).failed()
        )
    assert (tmp_path / "t" / "training.json").read_text() == record


def test_training_that_fails_says_what_to_change(
    run: Run, model_words: list[object], sets: list[object], tmp_path: Path
) -> None:
    broken = run(
        "train", *model_words, *sets, "--train-steps", 3, "--lr", "1e38", "-o", tmp_path / "t"
    )
    assert "a value is not finite at step 1" in broken.failed()
    assert not (tmp_path / "t" / "classifier").exists()
    neither = run("train", *model_words, "-o", tmp_path / "t")
    both = run("train", *model_words, *sets, "--control", "-o", tmp_path / "t")
    for ended in (neither, both):
        assert "give the generated images to train with (--generated DIR), or" in ended.failed()
        assert ended.failed().endswith("or --control for none; not both")


COMMANDS: dict[str, tuple[list[object], bool]] = {
    "export": (["export"], False),
    "generate": (
        ["generate", "--engine", "torch", "-n", 2, "--batch", 2, "--sampler-steps", 2],
        False,
    ),
    "train": (["train", "--train-steps", 1, "--lr", "1e-5"], True),
}
"""Commands that take --model, --classifier and --id, short; and whether they take --generated."""


def noise(name: str, *shape: int) -> np.ndarray:
    """Images of noise, other ones for each name, so that no two parts share one."""
    return np.random.default_rng(list(name.encode())).integers(0, 256, shape, np.uint8)


def damaged(
    kind: str, tmp_path: Path, model_dir: Path, classifier_dir: Path, id_dir: Path
) -> tuple[list[object], str]:
    """The models' options with one of them bad, and what the error must say."""
    model, classifier = (
        shutil.copytree(model_dir, tmp_path / "m"),
        shutil.copytree(classifier_dir, tmp_path / "c"),
    )
    data = shutil.copytree(id_dir, tmp_path / "id")
    message = ""
    if kind == "no model":
        shutil.rmtree(model)
        message = "m does not exist; give a diffusers folder"
    elif kind == "empty model":
        shutil.rmtree(model)
        model.mkdir()
        message = "m is not a diffusers folder: unet/config.json is missing"
    elif kind == "NaN in the UNet":
        state = load_file(model / UNET)
        state["conv_in.bias"][1] = torch.nan
        save_file(state, model / UNET, {"format": "pt"})
        message = "weight 'conv_in.bias' has values that are not finite"
    elif kind == "pickled UNet":
        (model / UNET).rename(model / "unet" / "pytorch_model.bin")
        message = "pytorch_model.bin is a pickle and is not read"
    elif kind == "no classifier":
        shutil.rmtree(classifier)
        message = "c does not exist; give a classifier folder"
    elif kind == "empty classifier":
        shutil.rmtree(classifier)
        classifier.mkdir()
        message = "c is not a classifier folder: classifier.json is missing"
    elif kind == "NaN in the classifier":
        state = load_file(classifier / "model.safetensors")
        state["head.bias"][0] = torch.nan
        save_file(state, classifier / "model.safetensors")
        message = "weight 'head.bias' has values that are not finite"
    elif kind == "classifier in colour":
        config = json.loads((classifier / "classifier.json").read_text())
        (classifier / "classifier.json").write_text(json.dumps({**config, "channels": 3}))
        message = "does not fit classifier.json"
    elif kind == "no ID images":
        for path in data.iterdir():
            path.unlink()
        message = "holds no images that good-rt knows"
    elif kind == "ID images in colour":
        for path in data.iterdir():
            np.savez(path, images=noise(path.name, 9, 32, 32, 3), labels=np.zeros(9, np.int64))
        message = "images are 32x32x3, the classifier takes 32x32x1"
    elif kind == "ID images of another size":
        for path in data.iterdir():
            np.savez(path, images=noise(path.name, 9, 28, 28), labels=np.zeros(9, np.int64))
        message = "images are 28x28x1, the classifier takes 32x32x1"
    elif kind == "truncated ID images":
        for path in data.iterdir():
            path.write_bytes(path.read_bytes()[:5000])
        message = "is not an .npz file of images"
    return ["--model", model, "--classifier", classifier, "--id", data], message


KINDS = (
    "no model",
    "empty model",
    "NaN in the UNet",
    "pickled UNet",
    "no classifier",
    "empty classifier",
    "NaN in the classifier",
    "classifier in colour",
    "no ID images",
    "ID images in colour",
    "ID images of another size",
    "truncated ID images",
)


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("kind", KINDS)
def test_bad_models_and_images(
    run: Run,
    sets: list[object],
    model_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    tmp_path: Path,
    kind: str,
    command: str,
) -> None:
    options, message = damaged(kind, tmp_path, model_dir, classifier_dir, id_dir)
    words, takes_sets = COMMANDS[command]
    before = tree(tmp_path)
    ended = run(*words, *options, *(sets if takes_sets else []), "-o", tmp_path / "out")
    assert message in ended.failed()
    assert tree(tmp_path) == before


def test_a_model_without_its_vae_does_not_fit(
    run: Run, model_dir: Path, classifier_dir: Path, id_dir: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(model_dir, tmp_path / "m", ignore=shutil.ignore_patterns("vae"))
    options = [
        "--model",
        bare,
        "--classifier",
        classifier_dir,
        "--id",
        id_dir,
        "-o",
        tmp_path / "out",
    ]
    for words in (["export"], ["generate", "--engine", "torch"]):
        assert (
            "makes images of 8x8 pixels, 4 channels; the classifier takes 32x32 pixels, 1 channel"
            in run(*words, *options).failed()
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--mu", "0"], "mu and rho are both 0"),
        (["--mu", "nan"], "mu is nan, but must be a number"),
        (["--mu=-1"], "'--mu': -1.0 is not in the range x>=0"),
        (["--strengths", "1,-1"], "strengths must be one or more numbers of at least 0"),
        (["--n-mc", "0"], "'--n-mc': 0 is not in the range x>=1"),
        (["--band", "3", "1"], "guidance's band must be (low, high)"),
        (["--k", "9999"], "k must be between 1 and 400"),
        (["--sampler-steps", "1001"], "steps must be between 1 and 1000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_without_a_meaning(
    run: Run, model_words: list[object], tmp_path: Path, settings: list[str], message: str
) -> None:
    ended = run("generate", "--engine", "torch", *model_words, *settings, "-o", tmp_path / "out")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert message in ended.err.splitlines()[-1]
    assert tree(tmp_path) == []


def bad_set(kind: str, folder: Path, source: Path) -> str:
    if kind == "missing":
        return "holds no generated images; create them with `good-rt generate`"
    shutil.copytree(source, folder)
    image = folder / "images" / "000003.png"
    if kind == "corrupt image":
        image.write_bytes(image.read_bytes()[:100])
        return "000003.png"
    if kind == "lost image":
        image.unlink()
        return "000003.png"
    if kind == "odd line":
        lines = (folder / "manifest.jsonl").read_text().splitlines()
        (folder / "manifest.jsonl").write_text("\n".join([lines[0], "odd", *lines[1:], ""]))
        return "manifest.jsonl, line 2 is not valid JSON"
    if kind == "colour":
        for path in (folder / "images").iterdir():
            with Image.open(path) as grey:
                colour = grey.convert("RGB")
            colour.save(path)
        return "images are (32, 32, 3), the classifier takes (32, 32, 1)"
    lines = (
        (folder / "manifest.jsonl").read_text().replace("images/000003.png", "../../../etc/passwd")
    )
    (folder / "manifest.jsonl").write_text(lines)
    return "line 4 is damaged (file is '../../../etc/passwd', but must be a path inside"


@pytest.mark.parametrize(
    "kind", ["missing", "corrupt image", "lost image", "odd line", "colour", "escape"]
)
def test_bad_generated_sets(
    run: Run,
    model_words: list[object],
    classifier_dir: Path,
    id_dir: Path,
    generated_dirs: list[Path],
    tmp_path: Path,
    kind: str,
) -> None:
    message = bad_set(kind, tmp_path / "set", generated_dirs[0])
    before = tree(tmp_path)
    np.savez(tmp_path.parent / "far.npz", images=assets.load_images("textures").images[:9])
    for words in (
        ["train", *model_words, "-o", tmp_path / "out"],
        [
            "detector",
            "build",
            "--classifier",
            classifier_dir,
            "--id",
            id_dir,
            "-o",
            tmp_path / "d.onnx",
        ],
        [
            "evaluate",
            "--classifier",
            f"x={classifier_dir}",
            "--id",
            id_dir,
            "-o",
            tmp_path / "out",
            "--test-set",
            f"far={tmp_path.parent / 'far.npz'}",
        ],
    ):
        assert message in run(*words, "--generated", tmp_path / "set").failed(), words[0]
        assert tree(tmp_path) == before


def test_bad_test_sets_and_alphas(
    run: Run, sets: list[object], classifier_dir: Path, id_dir: Path, tmp_path: Path
) -> None:
    evaluate = [
        "evaluate",
        *sets,
        "--classifier",
        f"x={classifier_dir}",
        "--id",
        id_dir,
        "-o",
        tmp_path / "out",
    ]
    assert (
        "gone.npz does not exist"
        in run(*evaluate, "--test-set", f"a={tmp_path / 'gone.npz'}").failed()
    )
    (tmp_path / "a.npz").write_bytes(b"odd")
    assert (
        "is not an .npz file of images"
        in run(*evaluate, "--test-set", f"a={tmp_path / 'a.npz'}").failed()
    )
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 32, 32, 3), np.uint8))
    line = run(*evaluate, "--test-set", f"a={tmp_path / 'a.npz'}").failed()
    assert "images are 32x32x3, the classifier takes 32x32x1" in line
    build = [
        "detector",
        "build",
        *sets,
        "--classifier",
        classifier_dir,
        "--id",
        id_dir,
        "-o",
        tmp_path / "d.onnx",
    ]
    assert (
        "alpha 0.001 needs at least 999 calibration images, there are 120"
        in run(*build, "--alpha", 0.001).failed()
    )
    assert "alpha is nan, but must be a number" in run(*build, "--alpha", "nan").failed()
    knn = ("--discrepancy", "knn_distance")
    assert "k must be between 1 and 400" in run(*build, *knn, "--k", 500).failed()
    assert [path.name for path in tree(tmp_path)] == ["a.npz"]


@pytest.mark.parametrize(
    "command",
    ["export", "generate", "generate --engine-folder", "train", "detector build", "evaluate"],
)
def test_outputs_that_cannot_be_written(
    run: Run,
    model_words: list[object],
    sets: list[object],
    classifier_dir: Path,
    id_dir: Path,
    tmp_path: Path,
    command: str,
) -> None:
    (tmp_path / "file.txt").write_text("in the way")
    np.savez(tmp_path / "far.npz", images=assets.load_images("textures").images[:20])
    out = tmp_path / "file.txt" / "out"
    ours: list[object] = ["--classifier", classifier_dir, "--id", id_dir]
    words: dict[str, list[object]] = {
        "export": ["export", *model_words, "-o", out],
        "generate": [
            "generate",
            "--engine",
            "torch",
            *model_words,
            "-n",
            2,
            "--batch",
            2,
            "--sampler-steps",
            2,
            "-o",
            out,
        ],
        "generate --engine-folder": [
            "generate",
            *model_words,
            "-n",
            2,
            "--engine-folder",
            out,
            "-o",
            tmp_path / "ood",
        ],
        "train": [
            "train",
            *model_words,
            *sets,
            "--train-steps",
            1,
            "--lr",
            "1e-5",
            "--max-drop",
            1,
            "-o",
            out,
        ],
        "detector build": ["detector", "build", *ours, *sets, "-o", out / "d.onnx"],
        "evaluate": [
            "evaluate",
            "--classifier",
            f"x={classifier_dir}",
            "--id",
            id_dir,
            *sets,
            "-o",
            out,
            "--test-set",
            f"far={tmp_path / 'far.npz'}",
        ],
    }
    before = tree(tmp_path)
    line = run(*words[command]).failed()
    assert "file.txt" in line and ("choose another" in line or "check the path" in line)
    assert tree(tmp_path) == before
    assert (tmp_path / "file.txt").read_text() == "in the way"


def test_export_does_not_replace_a_folder_of_other_things(
    run: Run, model_words: list[object], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in ([], ["--force"]):
        assert (
            "choose another folder for engines"
            in run("export", *model_words, *force, "-o", tmp_path).failed()
        )
    assert tree(tmp_path) == [tmp_path / "thesis.tex"]


def test_without_a_gradient_rule_the_other_graphs_are_exported_and_pytorch_is_named(
    run: Run,
    pixel_dir: Path,
    classifier_dir: Path,
    id_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(RULES, torch.ops.aten.convolution.default)
    ours = ["--model", pixel_dir, "--classifier", classifier_dir, "--id", id_dir]
    made = run("export", *ours, "-o", tmp_path / "e")
    assert made.code == 0
    assert "no engines for gradients: aten.convolution.default" in made.err
    assert "has no gradient rule; PyTorch's gradients need none: --gradients torch" in made.err
    assert set(load_engines(tmp_path / "e")) == {"network", "classifier"}
    assert run("export", *ours, "-o", tmp_path / "e", "--json").json["exported"] is False
    generate = [
        "generate",
        *ours,
        "--engine-folder",
        tmp_path / "e",
        "-n",
        1,
        "--batch",
        1,
        "--sampler-steps",
        1,
        "--no-twins",
    ]
    line = run(*generate, "-o", tmp_path / "ood", "--gradients", "engine").failed()
    assert "aten.convolution.default" in line and "--gradients torch" in line
    assert run(*generate, "-o", tmp_path / "ood", "--json").json["images"] == 1


def test_damaged_engines_are_made_anew_and_those_of_another_model_as_well(
    run: Run, pixel_dir: Path, classifier_dir: Path, id_dir: Path, tmp_path: Path
) -> None:
    ours = ["--model", pixel_dir, "--classifier", classifier_dir, "--id", id_dir]
    assert run("export", *ours, "--no-vjp", "-o", tmp_path / "e").code == 0
    (tmp_path / "e" / "network.onnx").write_bytes(b"damaged")
    generate = [
        "generate",
        *ours,
        "--engine-folder",
        tmp_path / "e",
        "-n",
        1,
        "--batch",
        1,
        "--sampler-steps",
        1,
        "--no-twins",
        "--gradients",
        "torch",
    ]
    assert run(*generate, "-o", tmp_path / "ood", "--json").json["images"] == 1
    assert set(load_engines(tmp_path / "e")) == {"network", "classifier"}
