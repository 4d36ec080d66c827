"""An ID data folder of the demo's images, small enough for a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from good_rt.demo import assets


def write_id_data(folder: Path, parts: Mapping[str, int]) -> Path:
    """Writes the first images of each part, so many of each, as .npz files, and returns the
    folder."""
    for name, count in parts.items():
        data = assets.load_images(name).take(slice(0, count))
        np.savez_compressed(folder / f"{name}.npz", images=data.images, labels=data.labels)
    return folder
