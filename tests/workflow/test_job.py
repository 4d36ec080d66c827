"""Job files: what they may hold, and that every mistake is named with its line and the nearest
known key."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from good_rt.config.job import (
    DataSection,
    DetectorSection,
    GenerateSection,
    Job,
    JobConfig,
    ModelsSection,
    TrainSection,
)
from good_rt.errors import GoodRtError
from good_rt.workflow.init import _relative

SECTIONS = {
    "data": DataSection,
    "models": ModelsSection,
    "generate": GenerateSection,
    "train": TrainSection,
    "detector": DetectorSection,
}

SMALL = """\
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
        and found.config.detector.alpha == 0.05
    )
    assert (found.images, found.out) == (tmp_path / "photos", tmp_path / "job")


def test_values_are_of_their_types(tmp_path: Path) -> None:
    text = 'seed = 3\nout = "x/y"\n' + SMALL
    text += "[generate]\nmu = 1\nband = [0.5, 2]\nstrengths = [1]\nspan = [0.0, 0.5]\nclip = 2.5\n"
    found = job(tmp_path, text + '[ood]\nstreet = "street"\n"far away" = "/far"\n')
    generate = found.config.generate
    assert (
        type(generate.mu) is float and generate.band == (0.5, 2.0) and generate.strengths == (1.0,)
    )
    assert found.out == tmp_path / "x" / "y"
    assert found.ood == {"street": tmp_path / "street", "far away": Path("/far")}


def test_a_models_name_is_no_path(tmp_path: Path) -> None:
    assert job(tmp_path, SMALL.replace('"clf"', '"timm:resnet18"')).classifier == Path(
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
        assert found.classifier == Path(expected)
        # and back, as `good-rt init` writes it
        assert _relative(found.classifier, tmp_path) == spec


def test_the_documentation_has_every_key_with_its_default() -> None:
    def toml(value: object) -> str:
        if value in (MISSING, None):
            return ""
        if isinstance(value, float) and value == float("inf"):
            return " `inf`"
        return f" `{json.dumps(list(value) if isinstance(value, tuple) else value)}`"

    expected: dict[str, list[str]] = {"": []}
    for key in fields(JobConfig):
        section = SECTIONS.get(key.name)
        if section is not None:
            expected[key.name] = [
                f"| `{inner.name}` |{toml(inner.default)} |" for inner in fields(section)
            ]
        elif key.name != "ood":  # a table of the user's own names
            expected[""].append(f"| `{key.name}` |{toml(key.default)} |")
    page = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()
    table = page[page.index("| key |") :].partition("\n\n")[0]
    found: dict[str, list[str]] = {"": []}
    rows = found[""]
    for line in table.splitlines()[2:]:
        name = line.split("|")[1].strip()
        if name.startswith("**"):
            rows = found.setdefault(name.strip("*`[]"), [])
        else:
            rows.append("|".join(line.split("|")[:3]) + "|")
    assert found.pop("ood") == []
    assert found == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1\n" + SMALL, r"job\.toml, line 1: there is no 'sed'; did you mean 'seed'\?"),
        (
            SMALL + "[generate]\n\ncuont = 5\n",
            r"line 8: there is no 'cuont' in \[generate\]; did you mean 'count'\?",
        ),
        (SMALL + "generate.stepz = 5\n", r"there is no 'generate' in \[models\]"),
        (SMALL + "[trian]\nsteps = 5\n", r"line 6: there is no 'trian'; did you mean 'train'\?"),
        (
            SMALL + "[detector]\nzzzzzz = 5\n",
            r"line 7: there is no 'zzzzzz' in \[detector\]; known are classifier, k,",
        ),
        (
            SMALL + "[detector]\nk = 1.5\n",
            r"line 7: detector\.k is 1\.5, but must be a whole number",
        ),
        (
            SMALL + "[detector]\nk = true\n",
            r"line 7: detector\.k is True, but must be a whole number",
        ),
        (
            SMALL + '[train]\ncontrol = "yes"\n',
            r"line 7: train\.control is 'yes', but must be true or false",
        ),
        (
            SMALL + '[train]\nood = ["imgg"]\n',
            r"line 7: .*'imgg', but .*one of img, feat, both; did you mean 'img'",
        ),
        (
            SMALL + "[generate]\nband = [1.0]\n",
            r"line 7: generate\.band .* must be a list of 2 values",
        ),
        (SMALL + "[generate]\ncount = 1\n", r"line 6: count must be at least 10"),
        (SMALL + "[generate]\nmu = 0\n", r"line 6: mu and rho are both 0"),
        (
            SMALL.replace("[data]", "[data]\nheld_out = 0.9"),
            r"line 1: the shares held_out and test leave nothing",
        ),
        (
            SMALL + '[generate]\nkinds = ["feat"]\n',
            "train.ood names 'img', which generate.kinds does not make",
        ),
        (SMALL + "[train]\nunguided = -1\n", r"line 6: unguided is -1, but counts samples"),
        (SMALL + "[train]\nood = []\n", 'detector.classifier is "trained", but train.ood is empty'),
        ('out = "../x"\n' + SMALL, r"out is '\.\./x', but must be a folder beside the job file"),
        ('out = "/x"\n' + SMALL, r"out is '/x', but must be a folder beside the job file"),
        ('out = "."\n' + SMALL, r"out is '\.', but must be a folder beside the job file"),
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
