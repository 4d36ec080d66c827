"""Where the demo's shipped files lie, and how its images are read: the ID parts, the OOD test sets,
the validation set.

scripts/make_demo_data.py writes the images, assets/data/LICENCES.md says whose they are;
it only needs NumPy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from good_rt.errors import GoodRtError
from good_rt.files import DEMO_IMAGES

if TYPE_CHECKING:
    from good_rt.data.labelled import LabelledImages

ASSETS = Path(__file__).parent / "assets"
DATA = DEMO_IMAGES
MODELS = ASSETS / "models"
MODEL = MODELS / "diffusion"
"""A diffusers folder: unet/, vae/, scheduler/."""
GRADIENT_DECODER = MODELS / "gradient_decoder"
"""An AutoencoderTiny for the latents of ``MODEL``, for `load_diffusion`'s ``gradient_decoder``."""
JOB = Path(__file__).parent / "job.toml"
"""The demo's job file."""
CLASSIFIER = MODELS / "classifier"

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker")
"""The names of the ID labels 0 to 7. Fashion-MNIST's 8 (bag) and 9 (ankle boot) are the OOD test
set ``near``."""

ID_SETS = ("train", "held_out", "test")
OOD_TEST_SETS = ("near", "mnist", "emoji", "photos", "textures")
"""For the final evaluation only."""
TEST_SETS = {name: DATA / f"{name}.npz" for name in OOD_TEST_SETS}
"""Their paths by name."""
VALIDATION_SET = "validation"
"""OOD drawings from another source than every test set, for choices of hyper-parameters."""


def load_images(name: str) -> LabelledImages:
    """One of the shipped sets: images uint8 (N, 32, 32, 1) in [0, 255], labels int64 (N,) for
    Fashion-MNIST, else None.

    Raises GoodRtError for another name, or when the file is missing or damaged.
    """
    known = (*ID_SETS, *OOD_TEST_SETS, VALIDATION_SET)
    if name not in known:
        raise GoodRtError(f"there is no demo set {name!r}; take one of {', '.join(known)}")
    from good_rt.data.labelled import load_npz  # numpy, which help and errors do without

    return load_npz(DATA / f"{name}.npz")
