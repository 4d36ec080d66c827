"""Writes the tables of settings in docs/jobs.md from the declarations in good_rt/config.

python scripts/settings_tables.py          # write
python scripts/settings_tables.py --check  # compare only; exit code 1 where a table differs
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from good_rt.config.declaration import Setting, settings_of
from good_rt.config.toml import toml_value
from good_rt.workflow.job_file import JobConfig

PAGE = Path(__file__).parents[1] / "docs" / "jobs.md"
COMMANDS = {
    "": ("run",),
    "data": ("split",),
    "models": ("generate",),
    "generate": ("generate",),
    "train": ("train",),
    "detector": ("detector", "build"),
    "evaluate": ("evaluate",),
}
"""The command that has the settings of each table of a job file as options."""
TYPES = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text"}


def tables() -> dict[str, list[Setting]]:
    """The settings of each table of a job file; those outside all tables under ""."""
    top = settings_of(JobConfig)
    rows = {"": [setting for setting in top if not is_dataclass(setting.type)]}
    by_table = {
        setting.key: settings_of(setting.type) for setting in top if is_dataclass(setting.type)
    }
    return rows | by_table


def option(table: str, setting: Setting) -> str:
    """The option of the table's command; "" where the command has none."""
    if len(setting.path) == 1 and table != "models":
        return "--control" if (table, setting.key) == ("train", "control") else ""
    return setting.option


def values(setting: Setting) -> str:
    """Type, choices and bounds of a setting's values."""
    kinds = list(dict.fromkeys(_type_text(kind) for kind in setting.value_types))
    bounds = setting.declared.bounds
    if bounds is not None and bounds.low is not None:
        kinds[0] += f" {'>' if bounds.open_low else '≥'} {bounds.low:g}"
    if bounds is not None and bounds.high is not None:
        comma = "," if bounds.low is not None else ""
        kinds[0] += f"{comma} {'<' if bounds.open_high else '≤'} {bounds.high:g}"
    return " or ".join(kinds)


def _type_text(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{toml_value(value)}`" for value in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {_plural(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} {_plural(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"table of {_plural(arguments[1])}"
    return TYPES.get(kind, "text")


def _plural(kind: Any) -> str:
    text = _type_text(kind)
    return f"{text}s" if kind in TYPES or text == TYPES[str] else text


def default(setting: Setting) -> str:
    """What a file without the key means."""
    if setting.required or setting.declared.required_in_file:
        return "required"
    if setting.declared.default_text is not None:
        return setting.declared.default_text
    return "" if setting.default is None else f"`{toml_value(setting.default)}`"


def table(name: str) -> str:
    """One table of settings, a row a key."""
    lines = ["| key | values | default | option | meaning |", "|---|---|---|---|---|"]
    for setting in tables()[name]:
        flag = option(name, setting)
        cells = (
            f"`{setting.key}`",
            values(setting),
            default(setting),
            f"`{flag}`" if flag else "",
            setting.declared.help.replace("|", "\\|"),
        )
        lines.append("".join(f"| {cell} " if cell else "| " for cell in cells) + "|")
    return "\n".join(lines)


def filled(text: str) -> str:
    """A page with the tables between its markers replaced."""

    def with_table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{table(match[2])}\n<!-- end -->"

    marked = r"(<!-- settings: ?(\w*) -->)\n.*?<!-- end -->"
    return re.sub(marked, with_table, text, flags=re.DOTALL)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; end with exit code 1 on a difference.")
def main(check: bool) -> None:
    """Writes the tables between `<!-- settings: TABLE -->` and `<!-- end -->`."""
    text = PAGE.read_text()
    new = filled(text)
    if check and new != text:
        click.echo(
            f"{PAGE.name}: tables differ from the declarations; run: python "
            "scripts/settings_tables.py",
            err=True,
        )
        sys.exit(1)
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
