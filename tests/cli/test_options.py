"""What commands share: how far long work is, where there is no terminal to draw a bar on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from good_rt.cli.options import out_option
from good_rt.errors import GoodRtError
from good_rt.progress import shown_progress

Run = Callable[..., Any]


def test_long_work_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with shown_progress() as bars:
        with bars.task("sampling [8x8]", 1000) as advance:
            for _ in range(8):
                now += 12
                advance(50)
        with bars.task("training", 2) as advance:
            now += 40
            advance(1)
            advance(1)
        with bars.task("drawing", None) as advance:
            now += 40
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "sampling [8x8] ...",
        "sampling [8x8] 150 of 1000, about 3 min left",
        "sampling [8x8] 300 of 1000, about 3 min left",
        "training ...",
        "training 1 of 2, about 40 s left",
        "drawing ...",
    ]
    with shown_progress(quiet=True) as bars, bars.task("sampling", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("split demo -o", "-o/--out"),
        ("split", "IMAGES"),
        ("init", "IMAGES"),
        ("init demo --classifier", "--classifier"),
        ("init demo --model", "--model"),
        ("init demo --gradient-decoder", "--gradient-decoder"),
        ("generate -o", "-o/--out"),
        ("generate --id", "--id"),
        ("generate --engine-folder", "--engine-folder"),
        ("generate --engines", "--engines"),
        ("train --generated", "--generated"),
        ("run", "JOB"),
        ("inspect", "MODEL"),
        ("inspect . --classifier", "--classifier"),
        ("classifier show", "SPEC"),
        ("classifier show x --classes", "--classes"),
        ("export --timing-cache", "--timing-cache"),
        ("detector score", "FILES"),
        ("detector score x --detector", "--detector"),
        ("detector score x --detector y --csv", "--csv"),
    ],
)
def test_an_empty_path_is_refused_by_its_option(run: Run, words: str, named: str) -> None:
    assert run(*words.split(), "").failed() == f"error: {named} is empty; give a path"


@pytest.mark.parametrize(
    ("default", "kind", "other"), [("ood", "folder", "file"), ("job.toml", "file", "folder")]
)
def test_where_nothing_can_be_written_is_refused_before_any_work(
    default: str, kind: str, other: str, tmp_path: Path
) -> None:
    written = list[Path]()

    @click.command()
    @out_option(default, "Where to.")
    def command(out: Path) -> None:
        written.append(out)

    def call(out: Path) -> None:
        command.main(["-o", str(out)], standalone_mode=False)

    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for fit in (tmp_path / kind, tmp_path / "new", tmp_path / "folder" / "deep" / "new"):
        call(fit)
        assert written.pop() == fit
    wrong = re.escape(str(tmp_path / other))
    with pytest.raises(
        GoodRtError, match=f"-o {wrong} is a {other}, and it must be a {kind}; choose another path"
    ):
        call(tmp_path / other)
    with pytest.raises(GoodRtError, match="file cannot be written to; choose another path"):
        call(tmp_path / "file" / "new")
    assert not written and sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
