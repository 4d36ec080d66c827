"""What every classifier must do that guidance, training, bank and detector rely on.

A classifier is what `good_rt.classifier.load_classifier` returns; the author of a source or a
plug-in runs `classifier_checks` on one of its classifiers.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from good_rt.classifier import Classifier, load_classifier, save_classifier, saved_spec
from good_rt.errors import GoodRtError
from good_rt.testing.contract import ContractCheck, ContractError, require_refusal, require_that

TOLERANCE = 1e-3
"""Of float32 outputs, relative to the largest of them: batches are summed in other orders."""
DIFFERENCE_STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Steps of finite differences, of which the best counts: kinks and curvature need small ones,
networks that round to single precision somewhere large ones."""
DIFFERENCE_TOLERANCE, SINGLE_DIFFERENCE_TOLERANCE = 0.02, 0.2
"""Of finite differences, relative to the gradient's norm; the second where the network computes in
single precision only."""


class ClassifierCase:
    """A classifier to check, made when the first check runs, and images for it.

    Args:
        make: Returns the classifier, read anew each time.
        images: At least 3 images (N, C, H, W) in [-1, 1] of the classifier's size; by default 5
            smooth random ones.
    """

    def __init__(self, make: Callable[[], Classifier], images: Tensor | None = None) -> None:
        self.make = make
        self._images = images

    @cached_property
    def classifier(self) -> Classifier:
        classifier = self.make()
        require_that(
            isinstance(classifier, Classifier),
            f"make() returned a {type(classifier).__name__}, not a good_rt.classifier.Classifier",
        )
        return classifier

    @cached_property
    def images(self) -> Tensor:
        config = self.classifier.config
        if self._images is not None:
            return self._images.to(self.classifier.device)
        return random_images(5, config.channels, config.image_size).to(self.classifier.device)

    def outputs(self, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits and features of the case's images, or of others, without gradients."""
        with torch.no_grad():
            logits, features = self.classifier((self.images if images is None else images).clone())
        return logits, features


def classifier_checks(
    make: Callable[[], Classifier], images: Tensor | None = None
) -> list[ContractCheck]:
    """The contract of a classifier, one check a rule, for `parametrize_with_checks`.

    Args:
        make: Returns the classifier, read anew each time: ``lambda: load_classifier("acme:x")``.
            It is called when the first check runs.
        images: At least 3 images (N, C, H, W) in [-1, 1] of the classifier's size; by default 5
            smooth random ones.
    """
    case = ClassifierCase(make, images)
    return [ContractCheck(check.__name__, partial(check, case)) for check in CLASSIFIER_CHECKS]


def random_images(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    """Smooth random images (N, C, size, size) in [-1, 1], the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 2.4 - 1.2
    smooth = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
    grain = torch.randn(count, channels, size, size, generator=generator)
    return (smooth + 0.05 * grain).clamp(-1, 1)


def check_classifier_logits(case: ClassifierCase) -> None:
    """Logits are finite float32, one row an image and one column a class."""
    logits, _ = case.outputs()
    expected = (len(case.images), len(case.classifier.config.classes))
    require_that(
        logits.shape == expected, f"logits have shape {tuple(logits.shape)}, not {expected}"
    )
    require_that(logits.dtype == torch.float32, f"logits are {logits.dtype}, not torch.float32")
    require_that(logits.isfinite().all(), "logits of images in [-1, 1] are not finite")


def check_classifier_features(case: ClassifierCase) -> None:
    """Features are finite float32 vectors, one an image, none of norm 0."""
    _, features = case.outputs()
    count = len(case.images)
    require_that(
        features.ndim == 2 and len(features) == count,
        f"features have shape {tuple(features.shape)}, not ({count}, D)",
    )
    require_that(
        features.dtype == torch.float32, f"features are {features.dtype}, not torch.float32"
    )
    require_that(features.isfinite().all(), "features of images in [-1, 1] are not finite")
    norms = features.norm(dim=1)
    require_that((norms > 0).all(), f"a feature of an image is 0; norms are {norms.tolist()}")


def check_classifier_classes(case: ClassifierCase) -> None:
    """Classes have names, and no two the same."""
    classes = case.classifier.config.classes
    require_that(classes and all(classes), f"a class has no name: {classes}")
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    require_that(not repeated, f"several classes are called {', '.join(repeated)}")


def check_classifier_evaluation_mode(case: ClassifierCase) -> None:
    """Every module is in evaluation mode and no weight asks for a gradient."""
    training = [name or "itself" for name, m in case.classifier.named_modules() if m.training]
    require_that(not training, f"modules are in training mode: {', '.join(training[:5])}")
    asking = [name for name, p in case.classifier.named_parameters() if p.requires_grad]
    require_that(not asking, f"weights require gradients: {', '.join(asking[:5])}")


def check_classifier_repeated_calls(case: ClassifierCase) -> None:
    """The same images give the same logits and features again."""
    for name, first, second in zip(NAMES, case.outputs(), case.outputs(), strict=True):
        _require_close(second, first, f"{name} of a second call with the same images", 1e-6)


def check_classifier_batch_independence(case: ClassifierCase) -> None:
    """An image's logits and features are the same alone, in a pair and among all."""
    together = case.outputs()
    for size in (1, 2):
        parts = [case.outputs(part) for part in case.images.split(size)]
        for column, name in enumerate(NAMES):
            joined = torch.cat([part[column] for part in parts])
            _require_close(joined, together[column], f"{name} in batches of {size}")


def check_classifier_tells_images_apart(case: ClassifierCase) -> None:
    """Different images have different logits and features."""
    for name, values in zip(NAMES, case.outputs(), strict=True):
        spread = float((values - values[:1]).abs().max())
        require_that(spread > 1e-6, f"{name} are the same for all images")


def check_classifier_pixel_range(case: ClassifierCase) -> None:
    """Images are taken from [-1, 1]: mean and std are of [0, 1], black and white become their
    ends."""
    config, classifier = case.classifier.config, case.classifier
    mean, std = config.mean, config.std
    if mean is not None and std is not None:
        require_that(
            all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std),
            f"mean {mean} and std {std} are not of pixels in [0, 1]; divide those of 0..255 by 255",
        )
    for pixel in (-1.0, 1.0):
        prepared = classifier.prepare(torch.full_like(case.images[:1], pixel))
        expected: Tensor | float = pixel
        if mean is not None and std is not None:
            means, stds = (prepared.new_tensor(value).view(1, -1, 1, 1) for value in (mean, std))
            expected = ((pixel + 1) / 2 - means) / stds
        difference = float((prepared - expected).abs().max())
        require_that(
            difference < 0.01,
            f"pixels of {pixel} reach the network {difference:.3g} away from what mean and std say",
        )


def check_classifier_values_beyond_range(case: ClassifierCase) -> None:
    """Images a little beyond [-1, 1], as diffusion models make them, give finite outputs."""
    for name, values in zip(NAMES, case.outputs(1.5 * case.images), strict=True):
        require_that(values.isfinite().all(), f"{name} of images in [-1.5, 1.5] are not finite")


def check_classifier_gradient_reaches_image(case: ClassifierCase) -> None:
    """Logits and features have a finite gradient that is not 0 for any image; a classifier without
    a gradient says so with GoodRtError."""
    leaf = case.images.clone().requires_grad_(True)
    if not case.classifier.differentiable:
        require_refusal(lambda: case.classifier(leaf), "the gradient of a classifier without one")
        return
    for name, values in zip(NAMES, case.classifier(leaf), strict=True):
        require_that(values.requires_grad, f"{name} have no gradient in the images")
        weights = torch.linspace(-1, 1, values.shape[1], device=values.device)
        (gradient,) = torch.autograd.grad((values * weights).sum(), leaf, retain_graph=True)
        norms = gradient.flatten(1).norm(dim=1)
        require_that(norms.isfinite().all(), f"the gradient of {name} is not finite")
        require_that((norms > 0).all(), f"the gradient of {name} is 0 for an image")


def check_classifier_gradient_of_own_sample(case: ClassifierCase) -> None:
    """An image's outputs have no gradient in the batch's other images."""
    if not case.classifier.differentiable:
        return
    leaf = case.images.clone().requires_grad_(True)
    for name, values in zip(NAMES, _scalars(*case.classifier(leaf)), strict=True):
        (gradient,) = torch.autograd.grad(values[0], leaf, retain_graph=True)
        others = float(gradient[1:].abs().max())
        require_that(
            others <= 1e-6 * float(gradient[0].abs().max()),
            f"the first image's {name} have a gradient of {others:.3g} in other images",
        )


def check_classifier_gradient_finite_difference(case: ClassifierCase) -> None:
    """The gradient agrees with finite differences along random directions, in double precision
    where the network can compute in it."""
    if not case.classifier.differentiable:
        return
    images = 0.9 * case.images[:2].double()
    function, tolerance = _in_double(case.classifier, images), DIFFERENCE_TOLERANCE
    if function is None:
        function, tolerance = case.classifier, SINGLE_DIFFERENCE_TOLERANCE
        images = images.float()

    def values(moved: Tensor) -> Tensor:
        return torch.stack(_scalars(*function(moved))).double()

    leaf = images.clone().requires_grad_(True)
    totals = values(leaf).sum(dim=1)
    gradients = torch.stack(
        [torch.autograd.grad(total, leaf, retain_graph=True)[0] for total in totals]
    )
    norms = gradients.flatten(2).norm(dim=2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(images.shape, generator=generator).to(images)
        slopes = (gradients * direction).flatten(2).sum(dim=2)
        with torch.no_grad():
            differences = [
                (values(images + step * direction) - values(images - step * direction)) / (2 * step)
                for step in DIFFERENCE_STEPS
            ]
        errors = torch.stack([(difference - slopes).abs() for difference in differences])
        smallest = (errors.amin(dim=0) / norms).amax(dim=1)
        for name, error in zip(NAMES, smallest.tolist(), strict=True):
            require_that(
                error < tolerance,
                f"the gradient of {name} differs from finite differences by {error:.3g} of its "
                f"norm; at most {tolerance} is allowed",
            )


def check_classifier_images_unchanged(case: ClassifierCase) -> None:
    """The images that it is given keep their values."""
    images = case.images.clone()
    with torch.no_grad():
        case.classifier(images)
    require_that(torch.equal(images, case.images), "the classifier writes into its images")


def check_classifier_weights_unchanged(case: ClassifierCase) -> None:
    """A call leaves weights and buffers, such as batch norm's statistics, as they are."""
    before = {name: t.clone() for name, t in case.classifier.state_dict().items()}
    case.outputs()
    for name, tensor in case.classifier.state_dict().items():
        require_that(torch.equal(tensor, before[name]), f"a call changes {name}")


def check_classifier_nan_propagates(case: ClassifierCase) -> None:
    """A NaN in an image's pixels makes its logits and features not finite, and no other image's."""
    images = case.images.clone()
    images[0] = torch.nan
    for name, values in zip(NAMES, case.outputs(images), strict=True):
        require_that(not values[0].isfinite().all(), f"{name} of an image of NaN are finite")
        require_that(
            values[1:].isfinite().all(), f"a NaN in one image makes another's {name} not finite"
        )


def check_classifier_refuses_wrong_images(case: ClassifierCase) -> None:
    """Images of other channels, size, rank or dtype are refused with GoodRtError."""
    images = case.images
    wrong = {
        "images of another number of channels": images.repeat(1, 2, 1, 1),
        "images that are not square": images[..., :-1],
        "one image without a batch axis": images[0],
        "uint8 images": (127.5 * (images + 1)).to(torch.uint8),
    }
    for what, value in wrong.items():
        require_refusal(partial(case.classifier, value), what)


def check_classifier_takes_other_sizes(case: ClassifierCase) -> None:
    """`for_images` makes a classifier with a resize take another size, with as many outputs; one
    without refuses."""
    config = case.classifier.config
    size = config.image_size + 8
    if config.resize is None:
        require_refusal(
            lambda: case.classifier.for_images(config.channels, size),
            "another size without a resize",
        )
        return
    images = random_images(2, config.channels, size).to(case.classifier.device)
    with torch.no_grad():
        outputs = case.classifier.for_images(config.channels, size)(images)
    for name, values, usual in zip(NAMES, outputs, case.outputs(), strict=True):
        require_that(
            values.shape == (2, usual.shape[1]),
            f"{name} of images of {size} pixels have shape {tuple(values.shape)}",
        )


def check_classifier_trainable_weights(case: ClassifierCase) -> None:
    """A classifier that says it is trainable has weights, and a loss has gradients in them."""
    if not case.classifier.trainable:
        return
    classifier = copy.deepcopy(case.classifier).requires_grad_(True)
    parameters = list(classifier.parameters())
    require_that(parameters, "a trainable classifier has no weights; set network.trainable = False")
    logits, _ = classifier(case.images.clone())
    loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    require_that(loss.requires_grad, "the loss has no gradient in the weights")
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    largest = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    require_that(0 < largest < float("inf"), f"the loss's gradient in the weights is {largest}")


def check_classifier_loads_alike(case: ClassifierCase) -> None:
    """Read a second time it has the same fingerprint, by which files know it, and outputs."""
    again = case.make()
    fingerprint = case.classifier.fingerprint
    require_that(fingerprint, "the classifier has no fingerprint")
    require_that(again.fingerprint == fingerprint, "read a second time, its fingerprint is another")
    with torch.no_grad():
        outputs = again(case.images.clone())
    for name, second, first in zip(NAMES, outputs, case.outputs(), strict=True):
        _require_close(second, first, f"{name} after reading it a second time", 1e-6)


def check_classifier_saved_and_loaded(case: ClassifierCase) -> None:
    """Saved as a folder and opened again it has the same classes, logits and features."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "classifier"
        try:
            save_classifier(case.classifier, folder)
            again = load_classifier(saved_spec(case.classifier, folder)).to(case.classifier.device)
        except GoodRtError as error:
            raise ContractError(f"its folder cannot be opened: {error}") from error
    require_that(
        again.config.classes == case.classifier.config.classes, "its folder has other classes"
    )
    with torch.no_grad():
        outputs = again(case.images.clone())
    for output, second, first in zip(NAMES, outputs, case.outputs(), strict=True):
        _require_close(second, first, f"{output} of its folder", 1e-5)


NAMES = ("logits", "features")
CLASSIFIER_CHECKS: tuple[Callable[[ClassifierCase], None], ...] = (
    check_classifier_logits,
    check_classifier_features,
    check_classifier_classes,
    check_classifier_evaluation_mode,
    check_classifier_repeated_calls,
    check_classifier_batch_independence,
    check_classifier_tells_images_apart,
    check_classifier_pixel_range,
    check_classifier_values_beyond_range,
    check_classifier_gradient_reaches_image,
    check_classifier_gradient_of_own_sample,
    check_classifier_gradient_finite_difference,
    check_classifier_images_unchanged,
    check_classifier_weights_unchanged,
    check_classifier_nan_propagates,
    check_classifier_refuses_wrong_images,
    check_classifier_takes_other_sizes,
    check_classifier_trainable_weights,
    check_classifier_loads_alike,
    check_classifier_saved_and_loaded,
)


def _scalars(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """The log-partition (N,) of the logits, and a fixed sum (N,) of the features."""
    weights = torch.linspace(-1, 1, features.shape[1], device=features.device).to(features)
    return torch.logsumexp(logits, dim=1), (features * weights).sum(dim=1)


def _in_double(classifier: Classifier, images: Tensor) -> Classifier | None:
    """A copy that computes in double precision; None where the network cannot."""
    double = copy.deepcopy(classifier).double()
    try:
        with torch.no_grad():
            double(images)
    except (RuntimeError, TypeError):
        return None
    return double


def _require_close(
    values: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE
) -> None:
    require_that(
        values.shape == expected.shape,
        f"{what} have shape {tuple(values.shape)}, not {tuple(expected.shape)}",
    )
    difference = float((values - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    require_that(difference <= tolerance, f"{what} differ by {difference:.3g} of the largest value")
