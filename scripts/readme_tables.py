"""Writes the README's tables from benchmarks/results, so that they cannot drift; --check only compares.

python scripts/readme_tables.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def demo(result: dict[str, Any]) -> str:
    """Near-OOD detection by training, over the seeds; then everything that has a bar."""
    seeds = result["figures"]["seeds"].values()

    def over_seeds(score: str, model: str, figure: str) -> str:
        return " ".join(f"{100 * seed['near'][score][model][figure]:.1f}" for seed in seeds)

    lines = [
        f"Held-out classes as near-OOD; seeds {', '.join(result['figures']['seeds'])}, in %.",
        "",
        "| score | classifier | FPR at 95 % ID recall | AUROC |",
        "|---|---|---|---|",
    ]
    for score in ("Energy", "k-NN", "Unified"):
        lines += [
            f"| {score} | {model} | {over_seeds(score, model, 'fpr95')} | {over_seeds(score, model, 'auroc')} |"
            for model in ("before", "control", "trained")
        ]
    return "\n".join([*lines, "", bars(result)])


def bars(result: dict[str, Any]) -> str:
    """Every bar with its value, met or missed; bars of several seeds in one line, each seed's value in turn."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for bar in result["bars"]:
        grouped.setdefault(re.sub(r"^seed \d+[:,] ", "", bar["name"]), []).append(bar)
    lines = ["| figure | measured | bar | |", "|---|---|---|---|"]
    for name, found in grouped.items():
        values = " ".join(f"{bar['value']:.3g}" for bar in found)
        met = sum(bar["ok"] for bar in found)
        verdict = "met" if met == len(found) else "**missed**" if met == 0 else f"**missed** by {len(found) - met}"
        lines.append(f"| {name} | {values} | {found[0]['op']} {found[0]['bound']:g} | {verdict} |")
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    return "\n".join([*lines, "", f"`{result['command']}` on {result['cpu']}, {result['date']}: {versions}."])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"demo": demo}
"""Result file -> what the README says of it; any other result is shown as its bars."""


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; end with 1 where the README is not what it should be.")
def main(check: bool) -> None:
    """Fills the README's places between `<!-- results: NAME -->` and `<!-- end -->`."""
    text = README.read_text()

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        result = json.loads((RESULTS / f"{name}.json").read_text())
        return f"<!-- results: {name} -->\n{TABLES.get(name, bars)(result)}\n<!-- end -->"

    filled = re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)
    if not check:
        README.write_text(filled)
    elif filled != text:
        click.echo("README.md is not what benchmarks/results say; run: python scripts/readme_tables.py", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
