"""The tables that commands print."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from good_rt.files import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from good_rt.data.splits import Splits
    from good_rt.diffusion.inspection import Inspection
    from good_rt.engines.tensorrt import PlanInfo
    from good_rt.evaluation.results import Evaluation
    from good_rt.export.manifest import Manifest


def print_inspection(inspection: Inspection) -> None:
    """Kind, parts, exported graphs, memory and problems of a diffusion model."""
    shapes = [
        shape and " x ".join(map(str, shape))
        for shape in (inspection.sample_shape, inspection.image_shape)
    ]
    facts = {
        "kind": inspection.kind,
        "pipeline": inspection.pipeline,
        "denoises": shapes[0],
        "images": shapes[1],
        "noise": inspection.process,
        "condition": inspection.condition or "none",
        "classifier-free guidance": "yes" if inspection.guidance_free else "no",
        "learned variance": "dropped" if inspection.learned_variance else None,
        "weights in memory": size_text(inspection.weights_bytes),
        "memory of a gradient, per image": None
        if inspection.activation_bytes is None
        else f"up to {size_text(inspection.activation_bytes)}",
    }
    print(inspection.folder)
    for name, fact in facts.items():
        if fact is not None:
            print(f"  {name}: {fact}")
    table = Table(title="parts")
    for column in ("part", "class", "stored as"):
        table.add_column(column)
    for column in ("weights", "on disk"):
        table.add_column(column, justify="right")
    for part in inspection.parts:
        table.add_row(
            part.name,
            part.class_name,
            ", ".join(part.stored),
            f"{part.parameters / 1e6:.1f} M",
            size_text(part.bytes),
        )
    Console().print(table)
    table = Table(title="exported graphs of the diffusion model, in float32")
    table.add_column("graph")
    table.add_column("inputs")
    table.add_column("weights", justify="right")
    for graph in inspection.graphs:
        table.add_row(graph.name, ", ".join(graph.inputs), size_text(graph.bytes))
    Console().print(table)
    for problem in inspection.problems:
        print(f"problem: {problem}")
    if inspection.runs:
        print("OK: this model can be exported and used for generation")


def size_text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_parity(manifest: Manifest) -> None:
    """The worst batch size of every output, on real and random inputs."""
    table = Table(title="engines compared with PyTorch: largest difference over all batch sizes")
    for column in ("graph", "output", "inputs", "batches"):
        table.add_column(column, overflow="fold")
    for column in ("absolute", "relative to RMS", "of tolerance"):
        table.add_column(column, justify="right")
    keys = dict.fromkeys((row.graph, row.output, row.inputs) for row in manifest.parity)
    for key in keys:
        rows = [row for row in manifest.parity if (row.graph, row.output, row.inputs) == key]
        worst = max(rows, key=lambda row: row.excess)
        batches = ", ".join(str(row.batch) for row in rows)
        table.add_row(
            *key,
            batches,
            f"{worst.max_absolute:.1e}",
            f"{worst.max_relative:.1e}",
            f"{worst.excess:.2%}",
        )
    Console().print(table)


def print_plans(plans: Mapping[str, tuple[PlanInfo, bool]]) -> None:
    """Profile, size and build time of each TensorRT plan; "unchanged" where it was kept."""
    infos = [info for info, _ in plans.values()]
    first = infos[0]
    architectures = ", ".join(first.architectures)
    title = f"{first.library} {first.library_version}, {first.precision}, for {architectures}"
    table = Table(title=f"TensorRT plans: {title}")
    for column in ("graph", "profile"):
        table.add_column(column)
    for column in ("layers", "MB", "build, s"):
        table.add_column(column, justify="right")
    for name, (info, built) in plans.items():
        profile = ", ".join(
            f"{size} {'/'.join(map(str, lengths))}" for size, lengths in info.profile.items()
        )
        seconds = f"{info.build_seconds:.1f}" if built else "unchanged"
        table.add_row(name, profile, str(info.layers), f"{info.plan_bytes / 1e6:.1f}", seconds)
    Console().print(table)


def _figures(evaluation: Evaluation, metric: str, title: str) -> Table:
    """One figure of all rows, the best of each set in bold; it fits 80 columns with the demo's
    sets."""
    from good_rt.evaluation.results import MEAN

    sets = [*evaluation.ood_sets, MEAN]
    best = {name: evaluation.best(metric, name) for name in sets}
    table = Table(title=title, padding=(0, 0))
    for column in ("classifier", "score"):
        table.add_column(column, no_wrap=True)
    for name in sets:
        table.add_column("mean" if name == MEAN else name, justify="right", no_wrap=True)
    scored = dict.fromkeys((row.model, row.score) for row in evaluation.rows)
    groups = [(m, of_peers) for m in evaluation.models for of_peers in (False, True)]
    for model, of_peers in groups:
        for owner, score in scored:
            if owner != model or (score in evaluation.peers) != of_peers:
                continue
            rows = {name: evaluation.row(model, score, name) for name in sets}
            texts = {
                name: f"{100 * getattr(row.metrics, metric):.1f}" for name, row in rows.items()
            }
            cells = [
                f"[bold]{text}[/bold]" if rows[name] == best[name] else text
                for name, text in texts.items()
            ]
            table.add_row(model, score, *cells)
        table.add_section()
    return table


def print_evaluation(evaluation: Evaluation) -> None:
    """AUROC and FPR95 of every score of every model on every OOD set, and the ID accuracy."""
    for metric, title in (
        ("auroc", "AUROC, %"),
        ("fpr95", "FPR95, %: the share of OOD images accepted at 95 % ID recall"),
    ):
        Console().print(_figures(evaluation, metric, title))
    accuracy = ", ".join(
        f"{model} {100 * share.rate:.2f} %" for model, share in evaluation.id_accuracy.items()
    )
    print(f"ID accuracy: {accuracy}")
    if evaluation.peers:
        print(
            f"{len(evaluation.peers)} scores of other papers ({', '.join(evaluation.peers)}) at "
            "published settings, none chosen on test images: `peers` in evaluation.json"
        )
    for model, reasons in evaluation.left_out.items():
        for name, reason in reasons.items():
            print(f"left out: {name} of {model}: {reason}")
    for refusal in evaluation.id_refusal:
        share = refusal.share
        print(
            f"ID images that the detector ({evaluation.shipped}) refuses at alpha {refusal.alpha}: "
            f"{share.rate:.4f} "
            f"({share.count} of {share.n}; 95 % interval {share.low:.4f} to {share.high:.4f})"
        )


def print_speed(speed: dict[str, Any]) -> None:
    """Images a second of every variant by batch size, its ratio to only PyTorch, and the parts of a
    step."""
    from good_rt.workflow.bench import ratio

    table = Table(
        title=f"images per second, {speed['steps']} steps (in parentheses: speed-up over only "
        "PyTorch, median over the rounds)"
    )
    table.add_column("variant")
    names = list(next(iter(speed["seconds"].values())))
    for batch in speed["seconds"]:
        table.add_column(f"batch {batch}", justify="right")
    for name in names:
        cells = []
        for batch, seconds in speed["seconds"].items():
            speed_up = ratio(seconds[names[-1]], seconds[name])
            rate = int(batch) / statistics.median(seconds[name])
            cells.append(f"{rate:.1f} ({speed_up:.2f})")
        table.add_row(name, *cells)
    Console().print(table)
    parts = Table(
        title="parts of a guided step in milliseconds, each timed separately after a pause, which "
        "is slower than within a step"
    )
    for column in ("gradients", "batch"):
        parts.add_column(column)
    for part in next(iter(next(iter(speed["parts"].values())).values())):
        parts.add_column(part, justify="right", overflow="fold")
    for batch, variants in speed["parts"].items():
        for name, times in variants.items():
            parts.add_row(name, batch, *(f"{1000 * seconds:.1f}" for seconds in times.values()))
    Console().print(parts)
    machine = speed["machine"]
    named = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    kernels = "" if machine["kernels"] else "; without CPU kernels (docs/troubleshooting.md)"
    Console().print(
        f"on {machine['device']} ({machine['cores']} cores allowed, {machine['threads']} PyTorch "
        "threads); "
        f"{named}{kernels}"
    )


def print_splits(splits: Splits) -> None:
    """The number of images of each class in each part."""
    counts = splits.counts()
    division = "with the parts of the data" if splits.given else "divided by content"
    table = Table(title=f"{splits.kind}, {division}")
    table.add_column("class")
    for part in counts:
        table.add_column(part, justify="right")
    for name in dict.fromkeys(name for by_class in counts.values() for name in by_class):
        table.add_row(
            Text(printable(name)), *(str(by_class.get(name, 0)) for by_class in counts.values())
        )
    table.add_section()
    table.add_row("all", *(str(sum(by_class.values())) for by_class in counts.values()))
    Console().print(table)
