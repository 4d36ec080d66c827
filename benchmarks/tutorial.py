"""The tutorial's figures and picture, from the folder that its job made.

    python benchmarks/tutorial.py emoji build/emoji/splits.json

Writes benchmarks/results/tutorial.json and docs/emoji.png.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from record import RESULTS, write_result

from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData
from good_rt.data.image_files import contact_sheet
from good_rt.evaluation.results import Evaluation
from good_rt.files import read_json

PICTURE = RESULTS.parents[1] / "docs" / "emoji.png"
COLUMNS = 12
KINDS = ("img", "feat", "both")


@click.command()
@click.argument("job", type=click.Path(path_type=Path, exists=True))
@click.argument("splits", type=click.Path(path_type=Path, exists=True))
def main(job: Path, splits: Path) -> None:
    """Reads JOB/evaluation/evaluation.json, wherever it lies below JOB."""
    evaluation = Evaluation.from_json(read_json(next(job.rglob("evaluation.json"))))
    rows = [
        {"model": row.model, "score": row.score, "set": row.ood_set, "fpr95": row.metrics.fpr95,
         "auroc": row.metrics.auroc}
        for row in evaluation.rows
    ]  # fmt: skip
    refusal = {str(one.alpha): one.share.rate for one in evaluation.id_refusal}
    accuracy = {model: share.rate for model, share in evaluation.id_accuracy.items()}
    write_result("tutorial", {"rows": rows, "id_accuracy": accuracy, "id_refusal": refusal}, [])
    data = IdData(splits)
    assert data.source.classes is not None  # a folder a class
    real = data.part("test", data.source.classes, 3, 64, COLUMNS).images
    generated = [GeneratedSet(job / "generated" / kind).images()[:COLUMNS] for kind in KINDS]
    contact_sheet(np.concatenate([real, *generated]), COLUMNS, scale=1).save(PICTURE)


if __name__ == "__main__":
    main()
