"""The fine-tuning: one step by hand, resumed runs bit for bit, and every way it says no."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, logsumexp

from good_rt.classifier import Classifier, load_classifier, predict
from good_rt.config.settings import ObjectiveName, TrainConfig
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.errors import GoodRtError, NonFiniteError
from good_rt.method.objective import OBJECTIVES
from good_rt.method.objective.mahalanobis import FIT_EVERY
from good_rt.method.objective.separation import MonotoneHead
from good_rt.method.training import TrainStep, finetune
from good_rt.method.training_data import TrainingImages, balanced_rows, drawn_batch

ANY_ACCURACY = 1.0
SMALL = TrainConfig(
    steps=6,
    id_batch=16,
    ood_batch=8,
    evaluate_every=2,
    max_accuracy_drop=ANY_ACCURACY,
    averaging=0.0,
    interpolation=1.0,
)


def plain(value: float, count: int = 3) -> torch.Tensor:
    """Images of one grey: flips and shifts do not change them, so a batch is known whatever the
    random choices."""
    return torch.full((count, 1, 32, 32), value)


@pytest.fixture
def data() -> TrainingImages:
    """Real ID images against textures."""
    train, val = assets.load_images("train"), assets.load_images("held_out")
    assert train.labels is not None and val.labels is not None
    ood = from_uint8(assets.load_images("validation").images[:60])
    return TrainingImages(
        from_uint8(train.images[:200]),
        torch.from_numpy(train.labels[:200]),
        from_uint8(val.images[:80]),
        torch.from_numpy(val.labels[:80]),
        decoded=from_uint8(train.images[:50] // 2),
        ood=ood[:40],
        val_ood=ood[40:],
    )


def middle(classifier: Classifier, *images: torch.Tensor) -> float:
    """The mean over the sets of their mean −energy: where the head starts."""
    return float(
        np.mean(
            [
                logsumexp(predict(classifier, part)[0].double().numpy(), axis=1).mean()
                for part in images
            ]
        )
    )


def by_hand(
    classifier: Classifier, batch: torch.Tensor, labels: list[int], val_images: torch.Tensor
) -> tuple[float, float]:
    """CE and BCE of one batch, the ID images first, in float64 numpy from the logits on."""
    model = copy.deepcopy(classifier).train()
    with torch.no_grad():
        logits = model(batch)[0].double().numpy()
    n = len(labels)
    ce = np.mean(logsumexp(logits[:n], axis=1) - logits[np.arange(n), labels])
    p = expit(logsumexp(logits, axis=1) - middle(classifier, val_images))
    return float(ce), float(np.mean(-np.log(np.concatenate([p[:n], 1 - p[n:]]))))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_losses_of_one_step_by_hand(classifier: Classifier, share: float) -> None:
    data = TrainingImages(
        plain(0.5),
        torch.tensor([4, 4, 4]),
        plain(0.5),
        torch.tensor([4, 4, 4]),
        decoded=plain(-0.25),
        ood=plain(0.9),
    )
    config = replace(SMALL, steps=1, decoded_share=share, seed=5)
    step = finetune(classifier, data, config).history[0]
    decoded = round(16 * share)
    batch = torch.cat([plain(-0.25, decoded), plain(0.5, 16 - decoded), plain(0.9, 8)])
    ce, bce = by_hand(classifier, batch, [4] * 16, data.val_images)
    assert (step.ce, step.regulariser) == (
        pytest.approx(ce, rel=5e-4),
        pytest.approx(bce, rel=5e-4),
    )


def test_interpolation_goes_part_of_the_way(classifier: Classifier, data: TrainingImages) -> None:
    config = replace(SMALL, steps=2)
    whole = finetune(classifier, data, config).classifier.state_dict()
    half = finetune(classifier, data, replace(config, interpolation=0.5)).classifier.state_dict()
    for name, start in classifier.state_dict().items():
        if start.is_floating_point():
            torch.testing.assert_close(half[name], (start + whole[name]) / 2, msg=name)


def test_bfloat16_trains_nearly_as_float32(classifier: Classifier, data: TrainingImages) -> None:
    configs = (replace(SMALL, steps=1, bfloat16=flag) for flag in (False, True))
    exact, rounded = (finetune(classifier, data, config).history[0] for config in configs)
    assert rounded.ce == pytest.approx(exact.ce, rel=0.03) and rounded.ce != exact.ce


def test_reconstructions_keep_their_own_labels(classifier: Classifier) -> None:
    """Reconstructions are of the first ID images; here of one alone, which has another label than
    the rest."""
    data = TrainingImages(
        plain(0.5, 9),
        torch.tensor([2] + [4] * 8),
        plain(0.5),
        torch.tensor([4] * 3),
        decoded=plain(-0.25, 1),
    )
    step = finetune(classifier, data, replace(SMALL, steps=1, decoded_share=1.0)).history[0]
    assert step.regulariser is None
    assert step.ce == pytest.approx(
        by_hand(classifier, plain(-0.25, 16), [2] * 16, data.val_images)[0], rel=1e-4
    )


@pytest.mark.parametrize(
    ("share", "reconstructed", "sampled"), [(0.5, 4, 4), (1.0, 8, 8), (0.0, 0, 0)]
)
def test_unguided_samples_share_the_decoded_part(
    classifier: Classifier, share: float, reconstructed: int, sampled: int
) -> None:
    """Each source keeps its own label: reconstructions 2, samples 6, the other ID images 4."""
    data = TrainingImages(
        plain(0.5, 9),
        torch.tensor([2] + [4] * 8),
        plain(0.5),
        torch.tensor([4] * 3),
        decoded=plain(-0.25, 1),
        ood=plain(0.9),
        unguided=plain(-0.75, 2),
        unguided_labels=torch.tensor([6, 6]),
    )
    config = replace(SMALL, steps=1, decoded_share=share, seed=3)
    drawn = torch.randint(
        9, (16,), generator=torch.Generator().manual_seed(config.seed * 1_000_003)
    )
    rest = data.labels[drawn[reconstructed + sampled :]].tolist()
    batch = torch.cat(
        [plain(-0.25, reconstructed), plain(-0.75, sampled), plain(0.5, len(rest)), plain(0.9, 8)]
    )
    labels = [2] * reconstructed + [6] * sampled + rest
    step = finetune(classifier, data, config).history[0]
    ce, bce = by_hand(classifier, batch, labels, data.val_images)
    assert (step.ce, step.regulariser) == (
        pytest.approx(ce, rel=5e-4),
        pytest.approx(bce, rel=5e-4),
    )


def test_unguided_samples_alone_are_the_decoded_part(classifier: Classifier) -> None:
    data = TrainingImages(
        plain(0.5), torch.tensor([4] * 3), plain(0.5), torch.tensor([4] * 3), unguided=plain(-0.75),
        unguided_labels=torch.tensor([6] * 3),
    )  # fmt: skip
    step = finetune(classifier, data, replace(SMALL, steps=1, decoded_share=0.5)).history[0]
    batch = torch.cat([plain(-0.75, 8), plain(0.5, 8)])
    assert step.ce == pytest.approx(
        by_hand(classifier, batch, [6] * 8 + [4] * 8, data.val_images)[0], rel=5e-4
    )


def test_the_first_step_is_adamws(classifier: Classifier) -> None:
    """p ← p(1 − lr·wd) − lr·g/(|g| + ε) at step 1, at a thirtieth of the peak rate, with g of CE +
    w·BCE."""
    data = TrainingImages(
        plain(0.5), torch.tensor([4] * 3), plain(0.5), torch.tensor([4] * 3), ood=plain(0.9)
    )
    config = replace(SMALL, steps=1, weight=0.7, lr=3e-2, weight_decay=0.1)
    trained = finetune(classifier, data, config).classifier
    head, model = (
        MonotoneHead(middle(classifier, data.val_images)),
        copy.deepcopy(classifier)
        .requires_grad_(True)
        .train()
        .to(memory_format=torch.channels_last),
    )
    batch = torch.cat([plain(0.5, 16), plain(0.9, 8)])
    logits, _ = model(batch.contiguous(memory_format=torch.channels_last))
    energy_logits = head(torch.logsumexp(logits, 1))
    bce = -(F.logsigmoid(energy_logits[:16]).sum() + F.logsigmoid(-energy_logits[16:]).sum()) / 24
    (F.cross_entropy(logits[:16], torch.tensor([4] * 16)) + 0.7 * bce).backward()
    rate, checked = 3e-2 / 30, 0
    for (name, after), before in zip(trained.named_parameters(), model.parameters(), strict=True):
        assert before.grad is not None
        clear = before.grad.abs() > 1e-4  # else rounding decides the sign
        expected = before * (1 - rate * 0.1) - rate * before.grad / (before.grad.abs() + 1e-8)
        torch.testing.assert_close(
            after[clear], expected.detach()[clear], rtol=1e-4, atol=1e-5, msg=name
        )
        checked += int(clear.sum())
    assert checked > 1000


def test_validation_by_hand(classifier: Classifier, data: TrainingImages) -> None:
    """Without a step that changes anything (rate 0), held-out loss and accuracy are the
    classifier's own."""
    assert data.val_ood is not None
    result = finetune(classifier, data, replace(SMALL, steps=1, lr=0.0, head_lr=0.0, weight=0.5))
    head = MonotoneHead(middle(classifier, data.val_images, data.val_ood))
    state = result.classifier  # batch norm has moved its statistics
    logits, ood = (
        predict(state, data.val_images)[0].double(),
        predict(state, data.val_ood)[0].double(),
    )
    log_odds = [head.double()(torch.logsumexp(x, 1)).detach().numpy() for x in (logits, ood)]
    ce = float(
        np.mean(
            logsumexp(logits.numpy(), axis=1)
            - logits.numpy()[np.arange(80), data.val_labels.numpy()]
        )
    )
    bce = -0.5 * (np.log(expit(log_odds[0])).mean() + np.log(expit(-log_odds[1])).mean())
    assert result.history[-1].val_loss == pytest.approx(ce + 0.5 * bce, rel=1e-4)
    assert result.accuracy == pytest.approx(
        float((logits.argmax(1) == data.val_labels).double().mean())
    )


def same(one: Classifier, other: Classifier) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    classifier: Classifier, data: TrainingImages, tmp_path: Path, stop: int
) -> None:
    def interrupt(step: TrainStep) -> None:
        if step.step == stop:
            raise KeyboardInterrupt

    config = replace(SMALL, averaging=0.5)
    whole = finetune(classifier, data, config)
    with pytest.raises(KeyboardInterrupt):
        finetune(classifier, data, config, tmp_path / "run", on_step=interrupt)
    resumed: list[int] = []
    result = finetune(
        classifier, data, config, tmp_path / "run", on_step=lambda step: resumed.append(step.step)
    )
    assert resumed == list(range(stop // 2 * 2 + 1, 7))
    assert result.history == whole.history
    assert (result.kept_step, result.accuracy, result.accuracy_before) == (
        whole.kept_step, whole.accuracy, whole.accuracy_before
    )  # fmt: skip
    assert same(result.classifier, whole.classifier)
    # and a finished one is not trained again
    finished = finetune(
        classifier, data, config, tmp_path / "run", on_step=lambda step: resumed.append(-1)
    )
    assert same(finished.classifier, whole.classifier) and -1 not in resumed
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "logistic"])
def test_every_objective_resumes_bit_for_bit(
    classifier: Classifier, data: TrainingImages, tmp_path: Path, objective: ObjectiveName
) -> None:
    """Interrupted after the fit of a Mahalanobis distance that is older than the checkpoint, and
    before the next."""

    def interrupt(step: TrainStep) -> None:
        if step.step == FIT_EVERY + 5:
            raise KeyboardInterrupt

    config = TrainConfig(
        steps=2 * FIT_EVERY + 2, id_batch=8, ood_batch=4, evaluate_every=3, objective=objective,
        max_accuracy_drop=ANY_ACCURACY, balanced=True,
    )  # fmt: skip
    whole = finetune(classifier, data, config)
    with pytest.raises(KeyboardInterrupt):
        finetune(classifier, data, config, tmp_path, on_step=interrupt)
    resumed: list[int] = []
    result = finetune(
        classifier, data, config, tmp_path, on_step=lambda step: resumed.append(step.step)
    )
    assert resumed[0] == FIT_EVERY + 5
    assert result.history == whole.history and result.augmentation == whole.augmentation
    assert same(result.classifier, whole.classifier)
    assert all(step.regulariser is not None for step in whole.history)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from good_rt.classifier import load_classifier
from good_rt.config.settings import TrainConfig
from good_rt.method.training import finetune
from good_rt.method.training_data import TrainingImages, balanced_rows, drawn_batch
torch.set_num_threads(1)
folder = Path(sys.argv[1])
data = TrainingImages(**torch.load(folder / "data.pt"))
def kill(step):
    if step.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
config = TrainConfig(**torch.load(folder / "config.pt"))
finetune(load_classifier(sys.argv[2]), data, config, folder / "run", on_step=kill)
"""


def test_a_killed_training_resumes_bit_for_bit(
    classifier_dir: Path, data: TrainingImages, tmp_path: Path
) -> None:
    config = replace(SMALL, objective="mahalanobis", evaluate_every=2)
    torch.save(vars(data), tmp_path / "data.pt")
    torch.save(asdict(config), tmp_path / "config.pt")
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(classifier_dir)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    classifier = load_classifier(classifier_dir)
    resumed: list[int] = []
    result = finetune(
        classifier, data, config, tmp_path / "run", lambda step: resumed.append(step.step)
    )
    assert resumed == [5, 6]
    assert same(result.classifier, finetune(classifier, data, config).classifier)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_control_has_no_regulariser(
    classifier: Classifier, data: TrainingImages, objective: ObjectiveName
) -> None:
    """All controls are the same, whatever the objective."""
    config = replace(SMALL, steps=1)
    control = finetune(classifier, data.control, replace(config, objective=objective))
    assert control.history[0].regulariser is None
    assert same(control.classifier, finetune(classifier, data.control, config).classifier)


def test_the_weight_multiplies_the_regulariser(
    classifier: Classifier, data: TrainingImages
) -> None:
    """Without a step that changes anything, the held-out loss is CE + w·R."""
    still = replace(SMALL, steps=1, lr=0.0, head_lr=0.0, objective="uniform")
    losses = [
        finetune(classifier, data, replace(still, weight=weight)).history[0].val_loss
        for weight in (0.0, 0.5, 1.0, None)
    ]
    none, half, whole, default = (loss or 0.0 for loss in losses)
    assert half - none == pytest.approx((whole - none) / 2) and default == half > none


def test_balanced_batches_have_all_classes_equally_often() -> None:
    """Among ID images, reconstructions and unguided samples alike; classes that do not occur stay
    away."""
    labels = torch.tensor([0] * 60 + [1] * 30 + [3] * 9 + [4])

    def images(source: int, known: torch.Tensor) -> torch.Tensor:
        return (100.0 * source + known)[:, None, None, None].expand(-1, 1, 2, 2)

    unguided = torch.tensor([0] * 7 + [2])
    data = TrainingImages(
        images(0, labels), labels, images(0, labels), labels, decoded=images(1, labels[:95]),
        unguided=images(2, unguided), unguided_labels=unguided, ood=images(3, labels),
    )  # fmt: skip
    config = TrainConfig(id_batch=4000, ood_batch=10, balanced=True, decoded_share=0.5)
    batch, drawn = drawn_batch(data, config, torch.Generator().manual_seed(0))
    values = batch[:, 0, 0, 0]
    assert batch.shape == (4010, 1, 2, 2) and bool((values[4000:] >= 300).all())
    parts = {1: slice(0, 1000), 2: slice(1000, 2000), 0: slice(2000, 4000)}
    classes = {0: [0, 1, 3, 4], 1: [0, 1, 3], 2: [0, 2]}
    for source, part in parts.items():
        assert torch.equal(values[part], 100.0 * source + drawn[part])
        found, counts = drawn[part].unique(return_counts=True)
        assert found.tolist() == classes[source]
        expected = len(drawn[part]) / len(found)
        assert ((counts - expected).abs() < 4 * expected**0.5).all()
    rows = balanced_rows(labels, 5000, torch.Generator().manual_seed(1))
    assert set(rows.tolist()) == set(range(100))  # every image of a class is drawn


def test_unbalanced_batches_have_the_classes_of_the_images() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    data = TrainingImages(torch.zeros(100, 1, 2, 2), labels, torch.zeros(1, 1, 2, 2), labels[:1])
    _, drawn = drawn_batch(data, TrainConfig(id_batch=4000), torch.Generator().manual_seed(0))
    assert 300 < int(drawn.sum()) < 500


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(
    classifier: Classifier, data: TrainingImages, tmp_path: Path
) -> None:
    config = replace(SMALL, steps=2)
    finetune(classifier, data, config, tmp_path)
    other = copy.deepcopy(classifier)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    assert data.ood is not None
    for changed, names in (
        (lambda: finetune(classifier, data, replace(config, lr=0.1, seed=3), tmp_path), "lr, seed"),
        (
            lambda: finetune(classifier, replace(data, ood=data.ood.flip(3)), config, tmp_path),
            "images",
        ),
        (lambda: finetune(classifier, replace(data, ood=None), config, tmp_path), "images"),
        (lambda: finetune(other, data, config, tmp_path), "classifier"),
    ):
        with pytest.raises(GoodRtError, match=rf"is of another training \(different: {names}\)"):
            changed()
    path = tmp_path / "checkpoint.safetensors"
    for content in (b"", path.read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(GoodRtError, match=r"checkpoint\.safetensors is damaged"):
            finetune(classifier, data, config, tmp_path)


def test_it_fails_when_accuracy_falls(classifier: Classifier, data: TrainingImages) -> None:
    wrong = replace(data, labels=(data.labels + 1) % 8)
    config = TrainConfig(steps=40, id_batch=32, ood_batch=16, lr=1.0, evaluate_every=20)
    with pytest.raises(
        GoodRtError,
        match=r"held-out ID accuracy fell from 0\.\d+ by more than 0\.005 in every state",
    ):
        finetune(classifier, wrong, config)


def test_what_is_kept_is_the_moving_average(classifier: Classifier, data: TrainingImages) -> None:
    states = [
        finetune(classifier, data, replace(SMALL, steps=n, lr=0.0)).classifier.state_dict()
        for n in (1, 2)
    ]
    kept = finetune(
        classifier, data, replace(SMALL, steps=2, lr=0.0, averaging=0.1)
    ).classifier.state_dict()
    name = next(
        name for name in kept if name.endswith("running_mean")
    )  # all that a rate of 0 changes
    first = classifier.state_dict()[name] * 0.1 + states[0][name] * 0.9
    torch.testing.assert_close(kept[name], first * 0.1 + states[1][name] * 0.9)


def test_the_last_state_that_kept_the_accuracy_is_taken(
    classifier: Classifier, data: TrainingImages
) -> None:
    result = finetune(classifier, data, replace(SMALL, lr=2e-2))
    assert [step.step for step in result.history if step.val_accuracy is not None] == [2, 4, 6]
    assert result.kept_step == 6
    # of wrong labels it learns, while the rate warms up, first nothing and then what is wrong
    long = replace(
        SMALL, steps=40, lr=1e-2, evaluate_every=1, max_accuracy_drop=0.005, interpolation=1.0
    )
    spoilt = finetune(classifier, replace(data, labels=(data.labels + 1) % 8), long)
    held = [
        s.step for s in spoilt.history if spoilt.accuracy_before - (s.val_accuracy or 0) <= 0.005
    ]
    assert 0 < spoilt.kept_step < 40 and spoilt.kept_step >= max(held)


def test_the_given_classifier_is_left_alone(classifier: Classifier, data: TrainingImages) -> None:
    before = copy.deepcopy(classifier)
    trained = finetune(classifier, data, SMALL).classifier
    assert same(classifier, before) and not same(trained, before)
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())


def test_a_loss_that_is_not_finite_names_its_step(
    classifier: Classifier, data: TrainingImages
) -> None:
    broken = replace(data, images=data.images * torch.nan, decoded=None)
    with pytest.raises(NonFiniteError, match="not finite at step 0"):
        finetune(classifier, broken, SMALL)
    with pytest.raises(NonFiniteError, match="not finite at step 1; lower") as caught:
        finetune(classifier, data, replace(SMALL, lr=1e38))
    assert caught.value.step == 1
