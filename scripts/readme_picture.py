"""Draws docs/guided.png from a demo's folder: real images, unguided samples, and samples of the
same seeds guided.

python scripts/readme_picture.py good-rt-demo
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
import numpy as np

from good_rt.config.settings import GuidanceKind
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.image_files import contact_sheet
from good_rt.demo import assets

COLUMNS = 16


@click.command()
@click.argument("demo", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("docs/guided.png"), show_default=True
)
def main(demo: Path, out: Path) -> None:
    """A row each: one real image a class twice over, then the first samples of every kind."""
    real = assets.load_images("test")
    assert real.labels is not None
    chosen = [np.flatnonzero(real.labels == index % 8)[index // 8] for index in range(COLUMNS)]
    kinds = get_args(GuidanceKind)
    generated = [GeneratedSet(demo / "generated" / kind).images()[:COLUMNS] for kind in kinds]
    rows = [real.images[chosen], *generated]
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(np.concatenate(rows), COLUMNS, scale=2).save(out)


if __name__ == "__main__":
    main()
