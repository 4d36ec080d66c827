"""What commands share: how far long work is, where there is no terminal to draw a bar on."""

from __future__ import annotations

import time

import pytest

from good_rt.cli.options import progress


def test_long_work_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress() as bars:
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
    with progress(quiet=True) as bars, bars.task("sampling", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""
