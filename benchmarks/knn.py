"""What the search for neighbours costs in a guided step where the bank is large.

python benchmarks/knn.py --engines build/engines
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from record import Bar, write_result
from sampler import CONFIG, SETTINGS, STEPS, demo, latents_of, open_case

from good_rt.method.bank import FeatureBank
from good_rt.workflow.bench import side_by_side
from good_rt.workflow.generator import Generator


def measure(generator: Generator, repeats: int, batch: int = 8) -> dict[str, Any]:
    """The search in a bank of 100,000 x 512 as guidance makes it, beside the exact one and a guided
    step with PyTorch's gradients.

    The bank's rows lie around 1,000 centres, as features do around classes, or just anywhere, where
    clusters help least; ``excess`` is how much farther than the true one the k-th neighbour found
    is, as a share: mean and largest.
    """
    size, k = (100_000, 512), CONFIG.bank.k
    draw = torch.Generator().manual_seed(0)
    anywhere, centres = (
        torch.randn(*size, generator=draw),
        torch.randn(1000, size[1], generator=draw),
    )
    around = centres[torch.arange(size[0]) % len(centres)] + anywhere
    found: dict[str, Any] = {}
    works: dict[str, Callable[[], object]] = {}
    for name, rows in (("around centres", around), ("anywhere", anywhere)):
        bank = FeatureBank(torch.nn.functional.normalize(rows, dim=1))
        queries = rows[:batch] + torch.randn(batch, size[1], generator=draw)
        queries = torch.nn.functional.normalize(queries, dim=1)
        excess = bank.distance(queries, k, approximate=True) / bank.distance(queries, k) - 1
        found[name] = {"excess": [float(excess.mean()), float(excess.max())]}
        works[name] = partial(bank.distance, queries, k, approximate=True)
        works[f"{name}, exact"] = partial(bank.distance, queries, k)
    works["sampling"] = partial(latents_of, generator, SETTINGS["mu"], list(range(batch)))
    seconds = {
        name: float(np.median(values)) for name, values in side_by_side(works, repeats).items()
    }
    step = seconds.pop("sampling") / STEPS
    return {**found, "seconds": seconds, "step_seconds": step, "batch": batch}


@click.command()
@click.option(
    "--engines", type=click.Path(path_type=Path), default=Path("build/engines"), show_default=True
)
@click.option("--repeats", default=9, show_default=True)
def main(engines: Path, repeats: int) -> None:
    """Measures, and writes results/knn.json."""
    figures = measure(open_case(demo(engines), "torch gradients"), repeats)
    bars = []
    for name in ("around centres", "anywhere"):
        share = figures["seconds"][name] / figures["step_seconds"]
        bars += [
            Bar(f"k-NN in 100,000 x 512 {name}, share of a guided step", share, "<=", 0.05),
            Bar(
                f"k-NN in 100,000 x 512 {name}, mean excess of the distance found",
                figures[name]["excess"][0],
                "<=",
                0.05,
            ),
        ]
    write_result("knn", figures, bars)


if __name__ == "__main__":
    main()
