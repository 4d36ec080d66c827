"""The demo's shipped images are what they are said to be: shapes, balance, disjoint parts, no image
twice, licences."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from good_rt.demo import assets
from good_rt.errors import GoodRtError

ROOT = Path(__file__).parents[2]
NAMES = (*assets.ID_SETS, *assets.OOD_TEST_SETS, assets.VALIDATION_SET)


def contents(name: str) -> list[bytes]:
    return [image.tobytes() for image in assets.load_images(name).images]


@pytest.mark.parametrize("name", NAMES)
def test_images_are_uint8_32x32_grey_and_show_something(name: str) -> None:
    data = assets.load_images(name)
    assert data.images.dtype == np.uint8
    assert data.images.shape[1:] == (32, 32, 1)
    # Fashion-MNIST has a few nearly black garments; they are its own and stay.
    assert data.images.std(axis=(1, 2, 3)).min() > (24 if data.labels is None else 0.5)


@pytest.mark.parametrize(
    ("name", "per_class"), [("train", 3_800), ("held_out", 600), ("test", 1_000)]
)
def test_id_parts_are_balanced(name: str, per_class: int) -> None:
    labels = assets.load_images(name).labels
    assert labels is not None
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [per_class] * len(assets.CLASSES)
    # Shuffled, so that any run of images holds every class.
    assert len(set(labels[:200])) == len(assets.CLASSES)


def test_near_ood_holds_the_two_held_out_classes_alone() -> None:
    labels = assets.load_images("near").labels
    assert labels is not None
    assert np.bincount(labels).tolist() == [0] * 8 + [1_000] * 2


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mnist", 2_000),
        ("emoji", 1_000),
        ("photos", 1_000),
        ("textures", 800),
        ("validation", 1_000),
    ],
)
def test_ood_sets_are_large_enough(name: str, count: int) -> None:
    data = assets.load_images(name)
    assert len(data) >= count
    assert data.labels is None


@pytest.mark.parametrize("name", NAMES)
def test_no_set_holds_an_image_twice(name: str) -> None:
    images = contents(name)
    assert len(set(images)) == len(images)


def test_no_image_is_in_two_sets() -> None:
    sets = {name: set(contents(name)) for name in NAMES}
    shared = {pair: len(sets[pair[0]] & sets[pair[1]]) for pair in combinations(NAMES, 2)}
    assert {pair: count for pair, count in shared.items() if count} == {}


def test_ood_drawings_and_photos_are_not_nearly_the_same() -> None:
    for name in ("emoji", "photos", "textures", "validation"):
        images = assets.load_images(name).images.reshape(-1, 1024).astype(np.float64)
        squares = (images**2).sum(1)
        distance = squares[:, None] + squares - 2 * images @ images.T
        np.fill_diagonal(distance, np.inf)
        assert np.sqrt(distance.min() / 1024) >= 9.9, name


def test_validation_is_not_nearly_the_same_as_a_test_image() -> None:
    validation = (
        assets.load_images(assets.VALIDATION_SET).images.reshape(-1, 1024).astype(np.float64)
    )
    for name in (*assets.OOD_TEST_SETS, "test"):
        other = assets.load_images(name).images.reshape(-1, 1024).astype(np.float64)
        distance = (validation**2).sum(1)[:, None] + (other**2).sum(1) - 2 * validation @ other.T
        assert np.sqrt(distance.min() / 1024) > 9.9, name


def test_the_data_is_small_and_complete() -> None:
    files = {path.name for path in assets.DATA.iterdir()}
    assert files == {f"{name}.npz" for name in NAMES} | {"LICENCES.md"}
    assert sum(path.stat().st_size for path in assets.DATA.iterdir()) <= 21_000_000


def test_every_set_and_its_true_count_stand_in_the_licences() -> None:
    text = (assets.DATA / "LICENCES.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", text, re.MULTILINE))
    assert listed == {name: f"{len(assets.load_images(name)):,}" for name in NAMES}


def test_an_unknown_set_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(
        GoodRtError, match=r"no demo set 'svhn'; take one of train, .*near.*validation"
    ):
        assets.load_images("svhn")
    with pytest.raises(GoodRtError):
        assets.load_images("../data/train")


def test_class_names_are_those_of_the_training_script() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "fashion_mnist.py"))
    assert tuple(script["NAMES"][label] for label in script["id_classes"]()) == assets.CLASSES


def test_reading_the_images_needs_no_torch() -> None:
    code = (
        "import sys; from good_rt.demo import assets; assets.load_images('mnist'); "
        "assert not {'torch', 'sklearn', 'diffusers', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_light_decoder_shows_what_the_models_own_decoder_shows() -> None:
    from good_rt.data.pixels import from_uint8
    from good_rt.diffusion import load_diffusion

    model = load_diffusion(assets.MODEL, gradient_decoder=assets.GRADIENT_DECODER)
    images = from_uint8(assets.load_images("test").images[:200])
    assert (
        model.encoder is not None and model.decoder is not None and model.light_decoder is not None
    )
    with torch.no_grad():
        latents = model.encoder(images)
        errors = [
            (decode(latents) - images).square().mean()
            for decode in (model.decoder, model.light_decoder)
        ]
    assert errors[0] < 0.006 and errors[1] < 0.011
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (model.decoder.vae.decoder, model.light_decoder.vae.decoder)
    ]
    assert sizes[1] < sizes[0] / 5
