"""Writes the tutorial's pictures, in colour: drawings of two artists by their group, and
photographs.

    python scripts/emoji_data.py --out build/emoji

    id/CLASS/*.png              Google's drawings (Noto) of eight groups, a folder each
    near/*.png                  Google's drawings of two other groups, not trained on
    second-artist/CLASS/*.png   Twitter's drawings (Twemoji) of the same eight groups
    photos/*.png                crops of photographs

All come from packages: npm's `emoji-datasource-google` and `emoji-datasource-twitter` (`npm pack`,
whose lock is the version below; drawings: Apache-2.0 and CC-BY-4.0), and the photographs in PyPI's
`scikit-image` and `scikit-learn`.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

VERSION = "16.0.0"
ARTISTS = {"id": "google", "second-artist": "twitter"}
SIZE = 64
CROPS = 40
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china.jpg", "flower.jpg")

Entry = dict[str, Any]
PEOPLE = {
    "person",
    *(f"person-{what}" for what in ("role", "fantasy", "gesture", "activity", "sport", "resting")),
}
GROUPS: dict[str, Callable[[str, str], bool]] = {
    "animals": lambda group, part: part.startswith("animal-"),
    "faces": lambda group, part: part.startswith("face-") or part in {"cat-face", "monkey-face"},
    "flags": lambda group, part: part in {"country-flag", "subdivision-flag"},
    "food": lambda group, part: group == "Food & Drink",
    "objects": lambda group, part: group == "Objects",
    "people": lambda group, part: part in PEOPLE,
    "plants and sky": lambda group, part: part.startswith("plant-") or part == "sky & weather",
    "vehicles": lambda group, part: part.startswith("transport-"),
}
"""Class -> whether a drawing of Unicode's (group, subgroup) belongs to it."""
NEAR = {"Activities", "Symbols"}


def package_of(folder: Path, artist: str) -> Path:
    """The package of an artist's drawings, fetched once by npm, which checks its hash."""
    path = folder / f"emoji-datasource-{artist}-{VERSION}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"emoji-datasource-{artist}@{VERSION}"]
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise click.ClickException(
                f"`{' '.join(command)}` failed ({error}); put {path.name} into {folder}"
            ) from None
    return path


def drawings(package: Path, artist: str) -> Iterator[tuple[Entry, Image.Image]]:
    """Each emoji once, without skin tones, on white; the package's index beside each."""
    with tarfile.open(package) as tar:
        members = {member.name: member for member in tar if member.isfile()}

        def content(name: str) -> bytes:
            file = tar.extractfile(members[f"package/{name}"])
            assert file is not None  # only files were listed
            return file.read()

        for entry in json.loads(content("emoji.json")):
            if entry[f"has_img_{artist}"]:
                drawn = Image.open(
                    io.BytesIO(content(f"img/{artist}/{SIZE}/{entry['image']}"))
                ).convert("RGBA")
                white = Image.new("RGBA", drawn.size, "white")
                yield entry, Image.alpha_composite(white, drawn).convert("RGB").resize((SIZE, SIZE))


def group_of(entry: Entry) -> str | None:
    """The class of an emoji, "near", or neither."""
    found = [
        name for name, belongs in GROUPS.items() if belongs(entry["category"], entry["subcategory"])
    ]
    return found[0] if found else "near" if entry["category"] in NEAR else None


def crops(photo: str, size: int, count: int, rng: np.random.Generator) -> Iterator[Image.Image]:
    """Square crops of many sizes at random places of one of scikit-learn's (.jpg) or scikit-image's
    photographs."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    whole = Image.fromarray(
        load_sample_image(photo) if photo.endswith(".jpg") else getattr(skimage.data, photo)()
    )
    for _ in range(count):
        side = int(np.exp(rng.uniform(np.log(64), np.log(min(whole.size)))))
        left, top = (int(rng.integers(0, length - side + 1)) for length in whole.size)
        yield whole.crop((left, top, left + side, top + side)).resize(
            (size, size), Image.Resampling.LANCZOS
        )


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="build/emoji", show_default=True)
@click.option(
    "--packages",
    "cache",
    type=click.Path(path_type=Path),
    help="Folder of the .tgz files; default: OUT.",
)
def main(out: Path, cache: Path | None) -> None:
    """Writes the folders of the tutorial."""
    for folder, artist in ARTISTS.items():
        for entry, drawing in drawings(package_of(cache or out, artist), artist):
            group, name = group_of(entry), f"{entry['unified'].lower()}.png"
            if group in GROUPS:
                save(drawing, out / folder / str(group) / name)
            elif group == "near" and folder == "id":
                save(drawing, out / "near" / name)
    rng = np.random.default_rng(0)
    for photo in PHOTOS:
        for number, crop in enumerate(crops(photo, SIZE, CROPS, rng)):
            save(crop, out / "photos" / f"{Path(photo).stem}-{number:02}.png")
    counts = {
        path.name: sum(1 for _ in path.rglob("*.png"))
        for path in sorted(out.iterdir())
        if path.is_dir()
    }
    click.echo(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
