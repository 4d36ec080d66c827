"""Options of former versions: accepted, hidden, answered by one line, and the same as the new
ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from good_rt.cli.main import cli
from good_rt.errors import GoodRtError
from good_rt.models import ModelSpec
from good_rt.progress import Progress

SAMPLER = [
    ("--steps 3", "--sampler-steps 3"),
    ("--schedule increase", "--mu-schedule increase --rho-schedule increase"),
    ("--step raw", "--gradient-scale raw"),
    ("--engines e", "--engine-folder e"),
]
GENERATED = ("--ood a --ood b", "--generated a --generated b")
RENAMED = [
    *(("generate", *words) for words in SAMPLER),
    *(("bench sampler", *words) for words in SAMPLER),
    ("export", "--no-gradients", "--no-vjp"),
    ("export", "--gradients", "--vjp"),
    ("train", *GENERATED),
    ("train --control", "--steps 7", "--train-steps 7"),
    ("demo", "--steps 7", "--train-steps 7"),
    ("detector build", *GENERATED),
    ("evaluate", *GENERATED),
    ("init a", "--ood x=b", "--test-set x=b"),
]
"""Command, words of former versions, and the words of this one."""
STEPS = (
    "bench.bench_sampler",
    "detector.build_detector",
    "evaluate.evaluate",
    "export.export",
    "generate.generate",
    "init.inspect_job",
    "run.run_job",
    "train.train",
)


@pytest.fixture
def call(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], tuple[Any, list[str]]]:
    """Calls a command up to its step: gives what the step is given, and the lines on standard
    error."""
    given: list[object] = []

    def step(*arguments: object, **named: object) -> None:
        positional = [value for value in arguments if not isinstance(value, Progress)]
        given.append((positional, {k: v for k, v in named.items() if k != "progress"}))
        raise GoodRtError("here the work would begin")

    for name in STEPS:
        monkeypatch.setattr(f"good_rt.workflow.{name}", step)
    # evaluate and detector build open their classifiers first
    monkeypatch.setattr("good_rt.workflow.detector.open_classifier", lambda *of: of)
    monkeypatch.setattr(ModelSpec, "load", lambda self, device="cpu": (self, device))
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    def call(words: str) -> tuple[Any, list[str]]:
        given.clear()
        ended = run(*words.split())
        assert "here the work would begin" in ended.failed(), ended
        return given[0], [line for line in ended.err.splitlines() if "deprecated" in line]

    return call


@pytest.mark.parametrize(("command", "old", "new"), RENAMED)
def test_a_former_option_means_what_the_new_one_means(
    command: str, old: str, new: str, call: Callable[[str], tuple[Any, list[str]]]
) -> None:
    formerly, lines = call(f"{command} {old}")
    now, none = call(f"{command} {new}")
    defaults = (
        None if {"--ood", "--gradients"} & set(old.split()) and "init" not in command
        else call(command)[0]
    )  # fmt: skip
    assert formerly == now != defaults
    options = dict.fromkeys(word for word in new.split() if word.startswith("--"))
    assert lines == [f"warning: {old.split()[0]} is deprecated, use {' and '.join(options)}"]
    assert none == []


@pytest.mark.parametrize(("command", "old", "new"), RENAMED)
def test_help_shows_only_the_new_option(
    command: str, old: str, new: str, run: Callable[..., Any]
) -> None:
    shown = run(*[word for word in command.split() if word not in {"a", "--control"}], "--help").out
    assert not re.search(rf"(?<![\w-]){old.split()[0]}(?![\w-])", shown)
    for word in new.split():
        assert not word.startswith("--") or word in shown


def test_every_hidden_option_is_tested() -> None:
    def hidden(command: click.Command, path: str = "") -> set[tuple[str, str]]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            below = {
                name: command.get_command(context, name) for name in command.list_commands(context)
            }
            return {
                pair
                for name, one in below.items()
                if one is not None
                for pair in hidden(one, f"{path} {name}".strip())
            }
        return {
            (path, flag)
            for option in command.params
            if isinstance(option, click.Option) and option.hidden
            for flag in (*option.opts, *option.secondary_opts)
        }

    tested = {
        (re.sub(r" (a|--control)$", "", command), old.split()[0]) for command, old, _ in RENAMED
    }
    assert hidden(cli) == tested


def test_both_names_of_an_option_are_refused(run: Callable[..., Any]) -> None:
    for words in (
        ["generate", "--steps", 3, "--sampler-steps", 5],
        ["generate", "--schedule", "increase", "--mu-schedule", "decrease"],
        ["generate", "--engines", "a", "--engine-folder", "b"],
        ["export", "--gradients", "--no-vjp"],
        ["demo", "--steps", 3, "--train-steps", 4],
    ):
        ended = run(*words)
        assert ended.code == 2 and "former name" in ended.err, words


def test_a_repeated_option_takes_both_names(
    call: Callable[[str], tuple[Any, list[str]]],
) -> None:
    (arguments, _), lines = call("train --ood a --generated b")
    assert (Path("a"), Path("b")) in arguments
    assert lines == ["warning: --ood is deprecated, use --generated"]
