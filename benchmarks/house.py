"""How readable the source is, in counts: parameters, line lengths, names, files per folder.

    python benchmarks/house.py
    python benchmarks/house.py --before ../good-rt-0.1    # an older checkout, to compare with

Only the source is read, nothing is run. The counts of an older checkout are kept in the result, so
that they are needed once.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
from record import RESULTS, Bar, write_result

from good_rt.files import read_json

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from source_counts import functions, modules, repeated_names  # noqa: E402

MAX_PARAMETERS = 8
LINE_LENGTH = 100
README_WORDS = 900


def counts(root: Path) -> dict[str, Any]:
    """The figures of the checkout at ``root``."""
    every_function = list(functions(root))
    many = [f for f in every_function if f.parameters > MAX_PARAMETERS]
    lines = {path: path.read_text().splitlines() for path in modules(root)}
    code = [line for text in lines.values() for line in text if line.strip()]
    names = repeated_names(root)
    rooms = Counter(path.parent.relative_to(root).as_posix() for path in modules(root))
    return {
        "functions": len(every_function),
        f"functions_above_{MAX_PARAMETERS}_parameters": sum(not f.is_operator for f in many),
        f"operators_above_{MAX_PARAMETERS}_parameters": sum(f.is_operator for f in many),
        "max_parameters": max(f.parameters for f in every_function if not f.is_operator),
        "code_lines": len(code),
        f"share_of_lines_above_{LINE_LENGTH}": sum(len(line) > LINE_LENGTH for line in code)
        / len(code),
        "readme_words": len((root / "README.md").read_text().split()),
        "names_defined_more_than_once": len(names),
        "repeated_names": names,
        "cli_lines": sum(
            len(text) for path, text in lines.items() if path.is_relative_to(root / "cli")
        ),
        "files_per_room": dict(sorted(rooms.items())),
    }


def kept_before() -> dict[str, Any] | None:
    """The counts of the older checkout in the result that is there, if any."""
    path = RESULTS / "house.json"
    return read_json(path)["figures"].get("before") if path.exists() else None


@click.command()
@click.option(
    "--before",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="An older checkout to compare with.  [default: its counts in the last result]",
)
def main(before: Path | None) -> None:
    """Counts, prints, and writes benchmarks/results/house.json; ends with 1 on a missed target."""
    after = counts(ROOT)
    former = kept_before() if before is None else counts(before)
    for name, value in after.items():
        if isinstance(value, int | float):
            compared = "" if former is None else f" (before {former[name]:.4g})"
            print(f"{name.replace('_', ' ')}: {value:.4g}{compared}")
    print(f"files per room: {after['files_per_room']}")

    above = f"functions_above_{MAX_PARAMETERS}_parameters"
    long_lines = f"share_of_lines_above_{LINE_LENGTH}"
    bars = [
        Bar(f"functions with more than {MAX_PARAMETERS} parameters", after[above], "==", 0),
        Bar(f"share of lines above {LINE_LENGTH} characters", after[long_lines], "<=", 0.04),
        Bar("words of README", after["readme_words"], "<=", README_WORDS),
        Bar("names defined more than once", after["names_defined_more_than_once"], "==", 0),
    ]
    figures = {"after": after} if former is None else {"after": after, "before": former}
    write_result("house", figures, bars)
    sys.exit(0 if all(bar.ok for bar in bars) else 1)


if __name__ == "__main__":
    main()
