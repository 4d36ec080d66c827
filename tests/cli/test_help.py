"""Every command and every option says what it is for, and every help ends with examples that
exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from good_rt import __version__
from good_rt.cli.main import COMMANDS, DETECTOR_COMMANDS, cli


def walk(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The command and everything below it, each with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, (*path, name))


ALL = dict(walk(cli))
PATHS = [pytest.param(path, id=" ".join(path) or "good-rt") for path in ALL]


def test_the_walk_finds_every_command() -> None:
    assert {path for path in ALL if len(path) == 1} == {(name,) for name in COMMANDS}
    assert {path[1] for path in ALL if path[:1] == ("detector",) and len(path) == 2} >= set(
        DETECTOR_COMMANDS
    )


@pytest.mark.parametrize("path", PATHS)
def test_help_and_examples(path: tuple[str, ...], run: Callable[..., Any]) -> None:
    command = ALL[path]
    assert command.help and command.help.split("\n")[0].rstrip().endswith(".")
    shown = run(*path, "--help")
    assert shown.code == 0
    assert run(*path, "-h").out == shown.out
    assert "Examples:" in shown.out
    examples = re.findall(
        r"^ *(good-rt .*)$", shown.out[shown.out.index("Examples:") :], re.MULTILINE
    )
    assert len(examples) >= 2
    for example in examples:
        words = shlex.split(re.split(r" {2,}", example)[0])[1:]
        found, length = max(
            ((p, len(p)) for p in ALL if tuple(words[: len(p)]) == p), key=lambda item: item[1]
        )
        assert found[: len(path)] == path or not path, example
        parameters = ALL[found].params
        options = {
            option
            for parameter in parameters
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        used = {word.partition("=")[0] for word in words[length:] if re.match(r"--?[a-z]", word)}
        assert used <= options, example


@pytest.mark.parametrize("path", PATHS)
def test_every_option_has_help_of_its_own(path: tuple[str, ...]) -> None:
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help and parameter.help.endswith((".", "]", '".')), (
                path,
                parameter.name,
            )


@pytest.mark.parametrize("path", PATHS)
def test_a_command_with_output_can_print_json(path: tuple[str, ...]) -> None:
    if not isinstance(ALL[path], click.Group) and path != ("serve",):
        assert "as_json" in {parameter.name for parameter in ALL[path].params}


def test_lists_of_commands_show_whole_sentences(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path in ALL:
        if isinstance(ALL[path], click.Group):
            listed = run(*path, "--help").out.partition("Commands:")[2].partition("Examples:")[0]
            assert listed and "..." not in listed, path


def test_the_version(run: Callable[..., Any]) -> None:
    assert run("--version").out == f"good-rt, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["detector", "unknown"],
        ["export", "--unknown"],
        ["generate", "-n", "0"],
        ["generate", "--batch", "some"],
        ["generate", "--strengths", "1,x"],
        ["generate", "--guidance", "more"],
        ["train", "--train-steps", "0"],
        ["detector", "score"],
        ["detector", "score", "x.png"],
        ["evaluate", "--generated", ".", "--classifier", "no pair"],
    ],
    ids=" ".join,
)
def test_what_the_command_line_does_not_know_ends_with_2(
    arguments: list[str], run: Callable[..., Any]
) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert "Error: " in ended.err and "Traceback" not in ended.err
    assert ended.out == ""
