"""Writes the tables of README.md and docs/*.md from benchmarks/results.

python scripts/readme_tables.py          # write
python scripts/readme_tables.py --check  # compare only; exit code 1 where a table differs
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
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RESULTS = ROOT / "benchmarks" / "results"


def head(*columns: str) -> list[str]:
    """The two lines that a table begins with."""
    return [
        "|" + "".join(f" {column} |" if column else " |" for column in columns),
        "|" + "---|" * len(columns),
    ]


MODELS = {"before": "original", "control": "control", "trained": "trained"}
"""Classifiers of the demo's result by the names that tables show."""


def summary(result: dict[str, Any]) -> str:
    """FPR95 and AUROC of the unified score by OOD set and classifier, means over the seeds."""
    seeds = [seed["detection"]["Unified"] for seed in result["figures"]["seeds"].values()]

    def mean(model: str, ood_set: str, figure: str) -> float:
        return 100 * sum(seed[model][ood_set][figure] for seed in seeds) / len(seeds)

    lines = head("OOD set", *MODELS.values())
    for ood_set in seeds[0]["before"]:
        cells = (
            f"{mean(model, ood_set, 'fpr95'):.1f} / {mean(model, ood_set, 'auroc'):.1f}"
            for model in MODELS
        )
        lines.append(f"| {ood_set} | {' | '.join(cells)} |")
    version = result["versions"]["good-rt"]
    return "\n".join([*lines, "", f"Measured with good-rt {version}, {result['date']}."])


def demo(result: dict[str, Any]) -> str:
    """Near-OOD detection by training, over the seeds; then every figure that has a target."""
    seeds = result["figures"]["seeds"].values()

    def over_seeds(score: str, model: str, figure: str) -> str:
        return " ".join(
            f"{100 * seed['detection'][score][model]['near'][figure]:.1f}" for seed in seeds
        )

    lines = [
        f"Held-out classes as near-OOD; seeds {', '.join(result['figures']['seeds'])}, in %.",
        "",
        *head("score", "classifier", "FPR at 95 % ID recall", "AUROC"),
    ]
    for score in ("Energy", "k-NN", "Unified"):
        lines += [
            f"| {score} | {MODELS[model]} | {over_seeds(score, model, 'fpr95')} | "
            f"{over_seeds(score, model, 'auroc')} |"
            for model in ("before", "control", "trained")
        ]
    scores = next(iter(seeds))["detection"]
    sets = list(scores["Unified"]["before"])
    lines += [
        "", "Every OOD set: FPR at 95 % ID recall, mean over the seeds, in %.", "",
        *head("score", "classifier", *sets),
    ]  # fmt: skip
    for score, models in scores.items():
        for model in models:
            of_seeds = [seed["detection"][score][model] for seed in seeds]
            means = (
                sum(found[name]["fpr95"] for found in of_seeds) / len(of_seeds) for name in sets
            )
            cells = " | ".join(f"{100 * mean:.1f}" for mean in means)
            lines.append(f"| {score} | {MODELS[model]} | {cells} |")
    return "\n".join([*lines, "", bars(result)])


def bars(result: dict[str, Any]) -> str:
    """Every target with its figure, met or missed; figures of several seeds share a row."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for bar in result["bars"]:
        grouped.setdefault(re.sub(r"^seed \d+[:,] ", "", bar["name"]), []).append(bar)
    lines = head("figure", "measured", "target", "") if grouped else []
    for name, found in grouped.items():
        values = " ".join(f"{bar['value']:.3g}" for bar in found)
        met = sum(bar["ok"] for bar in found)
        verdict = (
            "met"
            if met == len(found)
            else "**missed**"
            if met == 0
            else f"**missed** by {len(found) - met}"
        )
        lines.append(f"| {name} | {values} | {found[0]['op']} {found[0]['bound']:g} | {verdict} |")
    return "\n".join([*lines, "", made_by(result)])


def made_by(result: dict[str, Any]) -> str:
    """The version of good-rt, the command, the machine, the day and the other versions."""
    versions = dict(result["versions"])
    measured = versions.pop("good-rt")
    others = ", ".join(f"{package} {version}" for package, version in versions.items())
    cores, _, name = result["cpu"].partition(" x ")
    return (
        f"Measured with good-rt {measured} by `{result['command']}` on {cores} cores ({name}), "
        f"{result['date']}: {others}."
    )


ARCHITECTURES = {
    "ddpm": "DDPM",
    "ldm": "LDM",
    "dit": "DiT",
    "sd1": "SD 1",
    "sd2": "SD 2",
    "sdxl": "SD XL",
    "sd3": "SD 3",
    "flux": "Flux",
}
CLASSIFIERS = {
    "folder": "good-rt's folder",
    "timm": "`timm:NAME`",
    "torchvision": "`torchvision:NAME`",
    "transformers": "`transformers:DIR`",
    "module": "`MODULE:ATTR`",
    "exported": "`.pt2` file",
    "torchscript": "TorchScript file",
    "onnx": "ONNX file",
    "opaque onnx": "ONNX file, not converted",
}
STEPS = {"generate": "guidance", "train": "training", "detector": "detector"}


def models(result: dict[str, Any]) -> str:
    """Architectures by kinds of classifier, and why a step is refused; then the targets."""
    table = result["figures"]["table"]
    kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
    reasons: dict[str, None] = {}
    lines = head("classifier", *(ARCHITECTURES[name] for name in table))
    for kind in kinds:
        cells = []
        for row in table.values():
            refused = {step: said for step, said in row.get(kind, {}).items() if said != "works"}
            missing = "end to end" if kind in row else "not run"
            cells.append(", ".join(f"no {STEPS[step]}" for step in refused) or missing)
            reasons |= {
                f"- {CLASSIFIERS[kind]}, {STEPS[step]}: {said}.": None
                for step, said in refused.items()
            }
        lines.append(f"| {CLASSIFIERS[kind]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *reasons, "", bars(result)])


def tutorial(result: dict[str, Any]) -> str:
    """Every score by OOD set, before and after training."""
    rows = result["figures"]["rows"]
    sets = list(dict.fromkeys(row["set"] for row in rows if row["set"] != "mean over sets"))
    found = {(row["score"], row["model"], row["set"]): row for row in rows}
    lines = head("score", "classifier", *sets)
    for score, model in dict.fromkeys((row["score"], row["model"]) for row in rows):
        figures = (found[score, model, name] for name in sets)
        cells = (f"{100 * row['fpr95']:.1f} / {100 * row['auroc']:.1f}" for row in figures)
        lines.append(f"| {score} | {model} | {' | '.join(cells)} |")
    shares = {
        f"ID accuracy {name}": share for name, share in result["figures"]["id_accuracy"].items()
    }
    shares |= {
        f"ID images refused at α = {alpha}": share
        for alpha, share in result["figures"]["id_refusal"].items()
    }
    said = "; ".join(f"{name}: {100 * share:.1f} %" for name, share in shares.items())
    return "\n".join([*lines, "", f"FPR at 95 % ID recall / AUROC, in %. {said}."])


def sampler(result: dict[str, Any]) -> str:
    """A row for each setting and batch size, a column for each figure that has a target."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for bar in result["bars"]:
        subject, _, figure = bar["name"].rpartition(": ")
        rows.setdefault(subject, {})[figure] = bar
    single = rows.pop("", {})
    tables: dict[tuple[str, ...], list[str]] = {}
    for subject, found in rows.items():
        columns = next((key for key in tables if set(found) <= set(key)), tuple(found))
        if columns not in tables:
            heads = [f"{figure} ({_bound(rows, figure)})" for figure in columns]
            tables[columns] = head("", *heads)
        cells = (_cell(found.get(figure)) for figure in columns)
        tables[columns].append(f"| {subject} | {' | '.join(cells)} |")
    shown = ["\n".join(lines) for lines in tables.values()]
    shown.insert(1, _same_images(result["figures"]))
    processes = result["figures"].get("processes", {})
    if processes:
        peaks = ", ".join(f"{name} {found['peak_gib']:.2f}" for name, found in processes.items())
        shown.append(
            f"Peak memory of a whole process that samples 32 images guided by mu, in GiB: {peaks}."
        )
    rest = bars({**result, "bars": list(single.values())}).lstrip("\n")
    return "\n\n".join(["Figures that miss their target are **bold**.", *shown, rest])


def _same_images(figures: dict[str, Any]) -> str:
    """How many of the images are the loop's: engines', and PyTorch's in the same sampler."""
    models = {
        "Stable Diffusion's architecture, " if "stable_diffusion" in case else "": found
        for case, found in figures.items()
        if case.endswith(("samplers", "light_decoder", "stable_diffusion"))
    }
    sizes = list(
        dict.fromkeys(
            size for model in models.values() for batches in model.values() for size in batches
        )
    )
    lines = head(
        "images within 0.001 of the loop's, in %: engines (PyTorch)",
        *(f"batch {size}" for size in sizes),
    )
    for title, model in models.items():
        for setting, batches in model.items():
            shares = (batches[size]["same_images"] if size in batches else None for size in sizes)
            cells = (
                f"{100 * found['engines']:.0f} ({100 * found['eager']:.0f})" if found else ""
                for found in shares
            )
            lines.append(f"| {title}{setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compiled(result: dict[str, Any]) -> str:
    """How many times as fast as the TFG loop each variant of the sampler is."""
    columns = {
        "engines": "engines",
        "torch gradients": "engines, torch gradients",
        "eager": "eager",
        "compile": "torch.compile",
    }
    lines = head("times the TFG loop", *columns.values())
    for setting, batches in result["figures"]["samplers"].items():
        for batch, found in batches.items():
            cells = (f"{found['times_tfg'][name]:.2f}" for name in columns)
            lines.append(f"| {setting}, batch {batch} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made_by(result)])


def plans(result: dict[str, Any]) -> str:
    """Every graph's plan for all architectures, and the largest relative error of an output in half
    precision."""
    figures = result["figures"]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in figures["plans"]:
        if len(row["architectures"]) > 1:
            rows.setdefault(row["graph"], {})[row["precision"]] = row
    lines = head("graph", "layers", "seconds", "MB", "MB, fp16", "error, fp16", "error, bf16")
    for graph, found in rows.items():
        fp32, fp16 = found["fp32"], found["fp16"]
        errors = (
            max(error["rms"] for error in figures["rounding"][graph][half].values())
            for half in ("fp16", "bf16")
        )
        lines.append(
            f"| {graph} | {fp32['layers']} | {fp32['build_seconds']:.1f} | "
            f"{fp32['plan_bytes'] / 1e6:.1f} "
            f"| {fp16['plan_bytes'] / 1e6:.1f} | {' | '.join(f'{error:.1e}' for error in errors)} |"
        )
    return "\n".join([*lines, "", made_by(result)])


def _bound(rows: dict[str, dict[str, dict[str, Any]]], figure: str) -> str:
    """The bounds of a figure over all rows."""
    found = dict.fromkeys(
        f"{row[figure]['op']} {row[figure]['bound']:g}" for row in rows.values() if figure in row
    )
    return " or ".join(found)


def _cell(bar: dict[str, Any] | None) -> str:
    """A bar's value."""
    if bar is None:
        return ""
    return f"{bar['value']:.3g}" if bar["ok"] else f"**{bar['value']:.3g}**"


COMMANDS = {
    "inspect": "`good-rt inspect`",
    "export": "`good-rt export`, every graph with its gradient, and parity at batch 1",
    "step, torch": "one image in one guided step (ρ and μ), in PyTorch",
    "step, engines": "the same on engines end to end, including loading and the check of hashes",
}


def scale(result: dict[str, Any]) -> str:
    """Time and peak memory of each command; then the targets."""
    lines = head("", "cores", "seconds", "peak memory, GiB")
    for name, row in result["figures"]["commands"].items():
        lines.append(
            f"| {COMMANDS[name]} | {row['cores']} | {row['seconds']:.0f} | {row['peak_gib']:.1f} |"
        )
    return "\n".join([*lines, "", bars(result)])


def learning_rate(result: dict[str, Any]) -> str:
    """What each learning rate was judged by, and what came of it on the test sets: means over the
    seeds, in %."""
    columns = {
        "held-out accuracy": ("trained", "held_out_accuracy"),
        "FPR on validation": ("trained", "validation_fpr95"),
        "test accuracy": ("trained", "test_accuracy"),
        "near FPR": ("trained", "test_near_fpr95"),
        "near FPR, control": ("control", "test_near_fpr95"),
    }
    lines = head("learning rate", *columns)
    for rate, seeds in result["figures"]["rates"].items():
        means = (
            sum(seed[model][name] for seed in seeds.values()) / len(seeds)
            for model, name in columns.values()
        )
        lines.append(f"| {rate} | {' | '.join(f'{100 * mean:.1f}' for mean in means)} |")
    return "\n".join([*lines, "", made_by(result)])


def batches(result: dict[str, Any]) -> str:
    """How many images are the same in batches of each size as in one batch, by setting in turn, in
    %."""
    names = {
        "engines": "engines",
        "engines, one thread": "engines opened where one core is allowed, against two",
        "torch gradients": "engines, PyTorch's gradients",
        "eager": "PyTorch",
        "tfg": "the loop",
    }
    figures = result["figures"]
    sizes = list(figures["samplers"]["engines, one thread"]["mu"])
    lines = head(
        ", ".join(figures["samplers"]["engines"]), *(f"batches of {size}" for size in sizes)
    )
    for name, title in names.items():
        settings = figures["samplers"][name].values()
        cells = (
            ", ".join(f"{100 * rows[size]['identical']:.0f}" for rows in settings if size in rows)
            for size in sizes
        )
        lines.append(f"| {title} | {' | '.join(cells)} |")
    apart = ", ".join(f"{difference:.1e}" for difference in figures["in_double"].values())
    lines += [
        "",
        f"In double precision, the sampler's {figures['images']} images differ from the loop's by "
        f"at most {apart}.",
    ]
    return "\n".join([*lines, "", made_by(result)])


def unified_score(result: dict[str, Any]) -> str:
    """FPR95 of each discrepancy by itself, of the score before 0.3.0, of the one with the lowest
    FPR95 on the validation sets, and of the one that the rule chooses."""
    figures = result["figures"]
    ranked, chosen = figures["validation_fpr95"], figures["chosen"]
    near, *others = figures["test_sets"]
    notes = {
        "gate of energy + knn_distance": "the default before 0.3.0",
        next(iter(ranked)): "lowest on the validation sets",
        chosen: "chosen",
    }
    shown = [key for key in ranked if "+" not in key or key in notes]

    def mean(key: str, model: str, sets: list[str]) -> str:
        values = [run[name]["fpr95"] for run in figures["scores"][key][model] for name in sets]
        return f"{100 * sum(values) / len(values):.1f}"

    columns = [f"{sets}, {title}" for sets in ("near", "others") for title in MODELS.values()]
    lines = head("score", "validation", *columns)
    for key in shown:
        title = key if "+" in key else key.removeprefix("sum of ")
        note = f" ({notes[key]})" if key in notes else ""
        cells = [mean(key, model, sets) for sets in ([near], others) for model in MODELS]
        lines.append(f"| {title}{note} | {100 * ranked[key]:.1f} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made_by(result)])


def cpu_kernels(result: dict[str, Any]) -> str:
    """How many times as fast a guided step is with each part as without it."""
    gains = result["figures"]["gains"]
    places = list(dict.fromkeys(place for means in gains.values() for place in means))
    places = [*(place for place in places if place != "everywhere"), "everywhere"]
    lines = head("part", *places)
    for part, means in gains.items():
        cells = (f"{means[place]:.2f}" if place in means else "not used" for place in places)
        lines.append(f"| {part} | {' | '.join(cells)} |")
    threads = result["figures"]["threads"]
    others = f"The demo's case was measured in the same way; both use {threads} threads."
    return "\n".join([*lines, "", f"{made_by(result)} {others}"])


def refusals(result: dict[str, Any]) -> str:
    """Refused shares of ID test images over the splits, against chance; then the targets."""
    lines = head(
        "divided", "α", "expected", "mean", "smallest to largest", "95 % interval", "splits in it"
    )
    for way, figures in result["figures"]["ways"].items():
        for alpha, row in figures["alphas"].items():
            low, high = row["interval"]
            cells = (
                f"{100 * row['expected']:.2f}",
                f"{100 * row['mean']:.2f}",
                f"{100 * row['smallest']:.2f} to {100 * row['largest']:.2f}",
                f"{100 * low:.2f} to {100 * high:.2f}",
                f"{100 * row['inside']:.1f} %",
            )
            lines.append(f"| {way} | {alpha} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", bars(result)])


def detector_overhead(result: dict[str, Any]) -> str:
    """Latency of each classifier and its detector, by threads and batch; then the targets."""
    lines = head("classifier", "threads", "batch", "classifier, ms", "detector, ms", "overhead")
    for name, case in result["figures"]["cases"].items():
        for threads, batches in case["latency"].items():
            for batch, row in batches.items():
                cells = (
                    f"{row['classifier_ms']:.2f}",
                    f"{row['detector_ms']:.2f}",
                    f"{100 * row['overhead']:.1f} %",
                )
                lines.append(f"| {name} | {threads} | {batch} | {' | '.join(cells)} |")
    files = {"classifier": "classifier", "detector": "detector", "former": "with 0.2.0's score"}
    lines += ["", *head("file, MB", *files.values())]
    for name, case in result["figures"]["cases"].items():
        sizes = (case["bytes"].get(file) for file in files)
        cells = ("" if size is None else f"{size / 1e6:.2f}" for size in sizes)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", bars(result)])


def quality_peers(result: dict[str, Any]) -> str:
    """FPR95 of every score of the original classifiers."""
    of_splits = {key: rows for key, rows in result["figures"]["peers"].items() if rows}
    columns = [f"{of}, {key}" for key in of_splits for of in ("near", "far")]
    lines = head("score", *columns)
    first = next(iter(of_splits.values()))
    for name in sorted(first, key=lambda name: first[name]["near_fpr95"]):
        cells = [
            f"{100 * rows[name][figure]:.1f}"
            for rows in of_splits.values()
            for figure in ("near_fpr95", "far_fpr95")
        ]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made_by(result)])


def quality_trainings(result: dict[str, Any]) -> str:
    """FPR95 and AUROC of the unified score after every training, then the targets."""
    lines = []
    for key, rows in result["figures"]["trainings"].items():
        if not rows:
            continue
        lines += [
            f"**{key[0].upper()}{key[1:]}**", "",
            *head("training", "runs", "near FPR95", "far FPR95", "near AUROC", "far AUROC",
                  "ID accuracy"),
        ]  # fmt: skip
        for name in sorted(rows, key=lambda name, rows=rows: rows[name]["near_fpr95"]):
            row = rows[name]
            figures = ("near_fpr95", "far_fpr95", "near_auroc", "far_auroc", "accuracy")
            cells = " | ".join(f"{100 * row[figure]:.1f}" for figure in figures)
            lines.append(f"| {name} | {row['runs']} | {cells} |")
        lines.append("")
    return "\n".join([*lines, bars(result)])


def kinds(result: dict[str, Any]) -> str:
    """How far from ID and how varied the images of each setting are."""
    lines = head(
        "guidance", "energy", "k-NN distance", "relative Mahalanobis", "spread of features",
        "pixels from unguided", "pixels from image level",
    )  # fmt: skip
    for name, row in result["figures"]["sets"].items():
        levels = (row[one] for one in ("energy", "knn_distance", "relative_mahalanobis", "spread"))
        pixels = [row.get(f"pixels_from_{other}") for other in ("unguided", "image")]
        cells = [f"{value:.2f}" for value in levels]
        cells += [f"{value:.0f}" if value else "" for value in pixels]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made_by(result)])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "summary": summary,
    "demo": demo,
    "learning_rate": learning_rate,
    "models": models,
    "tutorial": tutorial,
    "scale": scale,
    "sampler": sampler,
    "light_decoder": sampler,
    "compile": compiled,
    "plans": plans,
    "batches": batches,
    "cpu_kernels": cpu_kernels,
    "unified_score": unified_score,
    "refusals": refusals,
    "detector_overhead": detector_overhead,
    "kinds": kinds,
    "quality_peers": quality_peers,
    "quality_trainings": quality_trainings,
}
"""Table -> how it is written; any other result file is shown as its targets."""
RESULT_OF = {"summary": "demo", "quality_peers": "quality", "quality_trainings": "quality"}
"""Result file of the tables that are not named after theirs."""


def fill(match: re.Match[str]) -> str:
    """A table's markers with the table between them."""
    name = match.group(1)
    result = json.loads((RESULTS / f"{RESULT_OF.get(name, name)}.json").read_text())
    return f"<!-- results: {name} -->\n{TABLES.get(name, bars)(result)}\n<!-- end -->"


@click.command()
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; end with exit code 1 where a table differs.",
)
def main(check: bool) -> None:
    """Writes the tables between `<!-- results: NAME -->` and `<!-- end -->`."""
    drifted = []
    for path in DOCUMENTS:
        text = path.read_text()
        filled = re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)
        if filled != text:
            drifted.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(filled)
    if check and drifted:
        click.echo(
            f"{', '.join(drifted)}: tables differ from benchmarks/results; run: python "
            "scripts/readme_tables.py",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
