"""Which diffusion architectures work end to end with which kinds of classifier: a table, made by
running the tests.

    python benchmarks/models.py

Kinds whose library is missing are left out. `.ci/run` says how timm and torchvision are had beside
a CPU torch.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import click
from record import Bar, write_result

ROOT = Path(__file__).parents[1]
TESTS = "tests/classifier/test_combinations.py"
STEPS = ("generate", "train", "detector")
WORKS, FAILS = "works", "fails"
ARCHITECTURES, KINDS = 6, 5

Table = dict[str, dict[str, dict[str, str]]]
"""Architecture -> kind of classifier -> step -> `WORKS`, `FAILS`, or how it is refused."""


def read_report(path: Path) -> tuple[Table, int]:
    """The table, and how many tests failed, from pytest's JUnit file."""
    table: Table = {}
    failures = 0
    for case in ElementTree.parse(path).iter("testcase"):
        failures += case.find("failure") is not None or case.find("error") is not None
        found = {entry.attrib["name"]: entry.attrib["value"] for entry in case.iter("property")}
        if "architecture" in found:
            cell = {step: found.get(step, FAILS) for step in STEPS}
            table.setdefault(found["architecture"], {})[found["classifier"]] = cell
    return table, failures


@click.command()
def main() -> None:
    """Runs the tests, and writes benchmarks/results/models.json; ends with 1 when one fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            "pytest",
            "-m",
            "slow",
            TESTS,
            "--junitxml",
            str(report),
            "-o",
            "junit_family=xunit1",
        ]
        if (status := subprocess.run(command, cwd=ROOT).returncode) not in {0, 1}:
            raise click.ClickException(f"`{' '.join(command)}` ended with status {status}")
        table, failures = read_report(report)
    kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
    whole = {
        (name, kind)
        for name, row in table.items()
        for kind in row
        if set(row[kind].values()) == {WORKS}
    }
    everywhere = [kind for kind in kinds if all((name, kind) in whole for name in table)]
    wide = [name for name in table if sum((name, kind) in whole for kind in kinds) >= KINDS]
    bars = [
        Bar(
            f"architectures that run end to end with {KINDS} kinds of classifier",
            len(wide),
            ">=",
            ARCHITECTURES,
        ),
        Bar(
            "kinds of classifier that run end to end with every architecture",
            len(everywhere),
            ">=",
            KINDS,
        ),
        Bar("cells that fail", failures, "==", 0),
    ]
    write_result("models", {"table": table}, bars)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
