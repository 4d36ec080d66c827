"""Separators are looked for where they can stand, and mistyped paths are not called names."""

from __future__ import annotations

from pathlib import Path

import pytest

from good_rt.errors import GoodRtError
from good_rt.models import ModelSpec, check_classifier_path
from good_rt.specs import resolved_spec, split_kind, split_weights


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("timm:resnet18", ("timm", "resnet18")),
        ("folder", ("", "folder")),
        (r"C:\models\clf", ("", r"C:\models\clf")),
        ("D:/models/clf.onnx", ("", "D:/models/clf.onnx")),
        (r"timm:C:\models\clf", ("timm", r"C:\models\clf")),
        ("x:ARGUMENT", ("x", "ARGUMENT")),
    ],
)
def test_a_drive_letter_is_no_kind(text: str, parts: tuple[str, str]) -> None:
    assert split_kind(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("timm:resnet18@w.st", ("timm:resnet18", "w.st")),
        ("timm:resnet18@me@work/w.st", ("timm:resnet18", "me@work/w.st")),
        ("me@work/clf", ("me@work/clf", "")),
        ("me@work/gone", ("me@work/gone", "")),
        ("timm:me@work/clf", ("timm:me@work/clf", "")),
        ("timm:me@work/clf@w.st", ("timm:me@work/clf", "w.st")),
        ("timm:me@work/clf@me@work/w.st", ("timm:me@work/clf", "me@work/w.st")),
        ("module:attr@me@work/gone.st", ("module:attr", "me@work/gone.st")),
        (r"timm:resnet18@C:\gone.st", ("timm:resnet18", r"C:\gone.st")),
    ],
)
def test_an_at_in_a_folders_name_is_none_before_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, parts: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@work" / "clf").mkdir(parents=True)
    (tmp_path / "w.st").touch()
    (tmp_path / "me@work" / "w.st").touch()
    assert split_weights(text) == parts


def test_paths_in_a_spec_are_resolved_whatever_they_hold(tmp_path: Path) -> None:
    for name in ("a b#c@d/clf", "~x", "w: 1.st"):
        (tmp_path / name).mkdir(parents=True)

    def inside(path: Path) -> Path | None:
        return tmp_path / path if (tmp_path / path).exists() else None

    for text in ("timm:a b#c@d/clf", "timm:~x@w: 1.st", "timm:resnet18@w: 1.st", "timm:resnet18"):
        expected = "@".join(
            ":".join(f"{inside(Path(p)) or p}" for p in part.split(":", 1)) if i == 0
            else f"{inside(Path(part)) or part}"
            for i, part in enumerate(split_weights(text, lambda p: inside(Path(p)) is not None))
            if part
        )  # fmt: skip
        assert str(resolved_spec(text, inside)) == expected


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clf").mkdir()
    (tmp_path / "w.st").touch()
    spec = ModelSpec(classifier="timm:~/clf@~/w.st", diffusion="~/clf", gradient_decoder="~/clf")
    assert str(spec.classifier_path) == f"timm:{tmp_path}/clf@{tmp_path}/w.st"
    assert spec.diffusion_path == spec.gradient_decoder_path == tmp_path / "clf"
    spec.check_paths()


@pytest.mark.parametrize(
    "path",
    ["models/ddmp", "modles/ddpm", "./x/y", "../x", "~/x/y", "/x/y", "a/b/c", "models/x", "x\\y/z"],
)
def test_a_mistyped_path_is_not_sought_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "ddpm").mkdir(parents=True)
    with pytest.raises(GoodRtError, match="does not exist") as diffusion:
        ModelSpec(diffusion=path).check_paths()
    with pytest.raises(GoodRtError, match="does not exist") as classifier:
        check_classifier_path(Path(f"timm:{path}"))
    if path in ("models/ddmp", "modles/ddpm"):
        assert "did you mean models/ddpm?" in str(diffusion.value)
        assert "did you mean models/ddpm?" in str(classifier.value)


def test_a_name_on_the_hub_is_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ModelSpec(diffusion="google/ddpm-cifar10-32").check_paths()
    check_classifier_path(Path("timm:timm/resnet18.a1_in1k"))
    check_classifier_path(Path("timm:resnet18"))


@pytest.mark.parametrize("path", [r"C:\gone\clf", "D:/gone/clf"])
def test_a_missing_path_with_a_drive_letter_is_a_missing_path(path: str) -> None:
    with pytest.raises(GoodRtError, match="does not exist; give a classifier folder"):
        check_classifier_path(Path(path))
