"""Job files: what they may hold, and that every mistake is named with its line and the nearest
known key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from good_rt.errors import GoodRtError
from good_rt.workflow.init import _relative
from good_rt.workflow.job_file import Job, JobConfig
from good_rt.workflow.split import split

SMALL = """\
version = 3
[data]
images = "photos"
[models]
classifier = "clf"
diffusion = "ddpm"
"""


def job(folder: Path, text: str) -> Job:
    (folder / "job.toml").write_text(text)
    return Job.read(folder / "job.toml")


def test_a_small_file_has_defaults_and_paths_beside_it(tmp_path: Path) -> None:
    found = job(tmp_path, SMALL)
    assert isinstance(found.config, JobConfig)
    assert (
        found.config.generate.kinds == ("img", "feat", "both")
        and found.config.detector.config.alpha == 0.05
    )
    assert (found.images, found.out) == (tmp_path / "photos", tmp_path / "job")


def test_images_may_be_a_splits_file(
    tmp_path: Path, id_dir: Path, model_dir: Path, classifier_dir: Path
) -> None:
    split(id_dir, tmp_path / "splits.json")
    text = SMALL.replace("photos", "splits.json").replace("clf", str(classifier_dir))
    found = job(tmp_path, text.replace("ddpm", str(model_dir)))
    found.check_paths()
    (tmp_path / "splits.json").unlink()
    with pytest.raises(GoodRtError, match=r"splits\.json does not exist.*data\.images in"):
        found.check_paths()


def test_values_are_of_their_types(tmp_path: Path) -> None:
    text = 'seed = 3\nout = "x/y"\n' + SMALL
    text += "[generate]\nmu = 1\nband = [0.5, 2]\nstrengths = [1]\nspan = [0.0, 0.9]\nclip = 2.5\n"
    found = job(tmp_path, text + '[test_sets]\nstreet = "street"\n"far away" = "/far"\n')
    config = found.config.generate.config
    assert type(config.guidance.mu) is float and config.guidance.band == (0.5, 2.0)
    assert config.strengths == (1.0,)
    assert found.out == tmp_path / "x" / "y"
    assert found.test_sets == {"street": tmp_path / "street", "far away": Path("/far")}


def test_a_models_name_is_no_path(tmp_path: Path) -> None:
    assert job(tmp_path, SMALL.replace('"clf"', '"timm:resnet18"')).models.classifier == Path(
        "timm:resnet18"
    )
    for name in ("w.safetensors", "folder"):
        (tmp_path / name).touch()
    for spec, expected in (
        ("timm:resnet18@w.safetensors", f"timm:resnet18@{tmp_path / 'w.safetensors'}"),
        ("timm:folder", f"timm:{tmp_path / 'folder'}"),
        ("net:Net@gone.safetensors", "net:Net@gone.safetensors"),
    ):
        found = job(tmp_path, SMALL.replace('"clf"', json.dumps(spec)))
        assert found.models.classifier == Path(expected)
        # and back, as `good-rt init` writes it
        assert _relative(found.models.classifier, tmp_path) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1\n" + SMALL, r"job\.toml, line 1: there is no 'sed'; did you mean 'seed'\?"),
        (
            SMALL + "[generate]\n\ncuont = 5\n",
            r"line 9: there is no 'cuont' in \[generate\]; did you mean 'count'\?",
        ),
        (SMALL + "generate.stepz = 5\n", r"there is no 'generate' in \[models\]"),
        (SMALL + "[trian]\nsteps = 5\n", r"line 7: there is no 'trian'; did you mean 'train'\?"),
        (
            SMALL + "[detector]\nzzzzzz = 5\n",
            r"line 8: there is no 'zzzzzz' in \[detector\]; known are classifier, discrepancies,",
        ),
        (
            SMALL + "[detector]\nk = 1.5\n",
            r"line 8: detector\.k is 1\.5, but must be a whole number",
        ),
        (
            SMALL + "[detector]\nk = true\n",
            r"line 8: detector\.k is True, but must be a whole number",
        ),
        (
            SMALL + '[train]\ncontrol = "yes"\n',
            r"line 8: train\.control is 'yes', but must be true or false",
        ),
        (
            SMALL + '[train]\nkinds = ["imgg"]\n',
            r"line 8: .*'imgg', but .*one of none, img, feat, both; did you mean 'img'",
        ),
        (
            SMALL + "[generate]\nband = [1.0]\n",
            r"line 8: generate\.band .* must be a list of 2 values",
        ),
        (SMALL + "[generate]\ncount = 1\n", r"line 7: count must be at least 10"),
        (SMALL + "[generate]\nmu = 0\n", r"line 7: mu and rho are both 0"),
        (
            SMALL.replace("[data]", "[data]\nheld_out = 0.9"),
            r"line 2: the shares held_out and test leave nothing",
        ),
        (
            SMALL + '[generate]\nkinds = ["feat"]\n',
            "train.kinds names 'img', which generate.kinds does not make",
        ),
        (
            SMALL + "[generate]\ncounts = {none = -1}\n",
            r"line 7: count must be at least 1, not -1 for 'none'",
        ),
        (
            SMALL + "[train]\nkinds = []\n",
            'detector.classifier is "trained", but train.kinds is empty',
        ),
        ('out = "../x"\n' + SMALL, r"out is '\.\./x', but must be a folder beside the job file"),
        ('out = "/x"\n' + SMALL, r"out is '/x', but must be a folder beside the job file"),
        ('out = "."\n' + SMALL, r"out is '\.', but must be a folder beside the job file"),
        ('out = ""\n' + SMALL, "out is '', but must be a folder beside the job file"),
        (SMALL.replace("photos", ""), r"line 3: data\.images is '', but must be a path"),
        (SMALL.replace("clf", ""), r"line 5: models\.classifier is '', but must be a path"),
        (SMALL.replace("ddpm", ""), r"line 6: models\.diffusion is '', but must be a path"),
        (
            SMALL + 'gradient_decoder = ""\n',
            r"line 7: models\.gradient_decoder is '', but must be a path",
        ),
        (
            SMALL + '[test_sets]\nstreet = ""\n',
            r"line 8: test_sets\.street is '', but must be a path",
        ),
        (SMALL.replace('"photos"', "3"), r"line 3: data\.images is 3, but must be a text"),
        ("[data]\n[models]\n", r"job\.toml: 'images' is missing in \[data\]; add it"),
        (
            "data = 3\n" + SMALL.replace("[data]\nimages", "#"),
            r"line 1: data is 3, but must be a table",
        ),
        ("seed = \n", r"job\.toml is not valid TOML: .*line 1"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(GoodRtError, match=message):
        job(tmp_path, text)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        GoodRtError, match=r"cannot read .*job\.toml .*write one with `good-rt init`"
    ):
        Job.read(tmp_path / "job.toml")


OLD = """\
[data]
images = "photos"
[models]
classifier = "clf"
diffusion = "ddpm"
[generate]
schedule = "increase"
[train]
ood = ["feat"]
unguided = 40
[ood]
street = "street"
"""
"""A job file of good-rt 0.1."""


def test_a_file_of_version_1_is_migrated(tmp_path: Path) -> None:
    read = job(tmp_path, OLD)
    config = read.config
    guidance = config.generate.config.guidance
    assert (guidance.mu_schedule, guidance.rho_schedule) == ("increase", "increase")
    assert config.train.kinds == ("feat",)
    assert config.generate.sets == {"img": 256, "feat": 256, "both": 256, "none": 40}
    assert read.test_sets == {"street": tmp_path / "street"}
    # what it computed its gradients with
    assert config.generate.config.backend.gradients == "torch"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OLD.replace('"feat"', '"feet"'), r"line 9: train\.ood is 'feet', but must be one of"),
        ("version = 4\n" + SMALL[12:], r"line 1: .*\(job version 4\).* reads up to version 3"),
        ("version = 3\n" + OLD, r"line 12: there is no 'ood'"),
        ("version = true\n" + OLD, r"line 1: version is True, but must be a whole number"),
        ("version = 0\n" + OLD, r"line 1: version is 0, but must be a whole number"),
        (OLD.replace("40", '""'), "train.unguided is '', but must be a whole number"),
        ("train = 5\n" + SMALL[12:], "train is 5, but must be a table"),
        (
            SMALL[12:] + '[test_sets]\nstreet = "s"\n',
            r"job\.toml: test_sets .* add `version = 3` as its first",
        ),
        (
            SMALL[12:] + '[train]\nkinds = ["img"]\n',
            r"job\.toml: train\.kinds .* add `version = 3` as its first",
        ),
    ],
)
def test_versions_are_told_apart(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(GoodRtError, match=message):
        job(tmp_path, text)
