"""The step `split`: in-distribution images divided into parts by their content, as splits.json.

Every other step takes the file in place of the images. No torch is imported.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from good_rt.config.settings import SplitConfig
from good_rt.data.sources.open import open_source
from good_rt.data.splits import Splits, make_splits, recorded_splits
from good_rt.errors import GoodRtError
from good_rt.files import DEMO_IMAGES, demo_path
from good_rt.progress import SILENT, Progress


def split(
    images: Path | str,
    out: Path | str,
    config: SplitConfig = SplitConfig(),
    progress: Progress = SILENT,
    *,
    check: bool = True,
) -> Splits:
    """Divides a source of images and records it as the file ``out``.

    Images that ``out`` already names keep their part as long as shares and seed are the same. A
    source that comes with a splits.json keeps that.

    Args:
        images: Any source of images; "demo" names the demo's.
        out: The splits.json to write.
        config: Shares of the parts, seed, and whether bad images are left out.
        progress: Hears of every image.
        check: Decode every image, so that bad ones are named now.

    Returns:
        The parts, as ``out`` records them.

    Raises:
        GoodRtError: an image is bad, or stands in two parts or classes.
    """
    images, out = demo_path(images, DEMO_IMAGES), Path(out)
    recorded = recorded_splits(images)
    if recorded is not None:
        if replace(config, skip_bad=False) not in (
            SplitConfig(),
            replace(recorded.config, skip_bad=False),
        ):
            raise GoodRtError(
                f"{images} records a division already, which other shares or another seed do not "
                f"change; give {recorded.source} to divide it again"
            )
        recorded.check_listing(open_source(recorded.source))
        splits = recorded
    else:
        source = open_source(images)
        before = Splits.read(out) if out.exists() else None
        if before is not None and replace(before.config, skip_bad=config.skip_bad) != config:
            before = None
        with progress.task("reading the images", len(source.entries)) as advance:
            splits = make_splits(source, config, check=check, before=before, on_item=advance)
    splits.write(out)
    return splits
