"""What the tests share: tiny models that are built here, real images out of the shipped sets, and
the command line.

The models are small and hardly trained, so no test may ask more of them than that they compute
something.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision_operators  # noqa: F401  (of .ci; before diffusers, which imports a torchvision that is there)

# isort: split
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from id_data import write_id_data

from good_rt.classifier import Classifier, ClassifierConfig, load_classifier, save_classifier
from good_rt.cli.main import main
from good_rt.config.settings import (
    BackendConfig,
    BankConfig,
    DetectorConfig,
    ExportConfig,
    GenerationConfig,
    GuidanceConfig,
    GuidanceKind,
    SamplerConfig,
)
from good_rt.data.generated_set import GeneratedSet
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.demo.network import SmallResNet
from good_rt.detector.module import DetectorModule
from good_rt.diffusion import load_diffusion
from good_rt.environment import CPU
from good_rt.export.detector import export_detector
from good_rt.export.export import export_models
from good_rt.export.graphs import FusedGuidance
from good_rt.models import Models
from good_rt.workflow.detector import detector_for
from good_rt.workflow.generate import fill
from good_rt.workflow.generator import Generator, generation_record, make_generator

PARTS = {"train": 400, "held_out": 240, "test": 160}

torch.set_num_threads(1)  # small tensors; and the same sums in every process


@pytest.fixture(scope="session")
def id_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ID data folder of real images."""
    return write_id_data(tmp_path_factory.mktemp("id"), PARTS)


@pytest.fixture(scope="session")
def classifier_dir(tmp_path_factory: pytest.TempPathFactory, id_dir: Path) -> Path:
    """A classifier folder: width 8, trained for a few seconds on the ID images."""
    torch.manual_seed(0)
    network = SmallResNet(width=8)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    data = assets.load_images("train").take(slice(0, PARTS["train"]))
    images, labels = from_uint8(data.images), torch.from_numpy(data.labels)
    for step in range(40):
        rows = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(network(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("classifier")
    config = ClassifierConfig(
        "small_resnet", assets.CLASSES, channels=1, image_size=32, arguments={"width": 8}
    )
    save_classifier(Classifier(network.eval(), config), folder)
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional latent diffusion model with random weights: a diffusers folder."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("latent")
    UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=9,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.8,
    ).save_pretrained(folder / "vae")
    DDIMScheduler(clip_sample=False, timestep_spacing="trailing").save_pretrained(
        folder / "scheduler"
    )
    return folder


@pytest.fixture(scope="session")
def pixel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional pixel diffusion model with random weights: no vae/."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("pixel")
    UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    ).save_pretrained(folder / "unet")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture, built once. Not to be changed."""
    from architectures import build

    return cache(lambda name: build(name, tmp_path_factory.mktemp("architectures") / name))


@pytest.fixture(scope="session")
def classifier(classifier_dir: Path) -> Classifier:
    return load_classifier(classifier_dir)


@pytest.fixture(scope="session")
def models(model_dir: Path, classifier: Classifier) -> Models:
    """The latent model and the classifier, on the CPU."""
    return Models(load_diffusion(model_dir), classifier, CPU)


def tiny_config(
    count: int = 20,
    kind: GuidanceKind = "both",
    batch: int = 10,
    steps: int = 3,
    mu: float = 0.3,
    **settings: Any,
) -> GenerationConfig:
    return GenerationConfig(
        count,
        kind,
        GuidanceConfig(mu=mu),
        bank=BankConfig(k=3),
        sampler=SamplerConfig(steps),
        batch=batch,
        backend=BackendConfig("torch"),
        twins=settings.pop("twins", True),
        **settings,
    )


@pytest.fixture(scope="session")
def make_config() -> Callable[..., GenerationConfig]:
    """What a tiny model generates in a second: count, kind, batch, steps, mu, settings."""
    return tiny_config


@pytest.fixture(scope="session")
def generator(models: Models, id_dir: Path) -> Generator:
    """The latent model on PyTorch, with 3 steps."""
    return make_generator(models, IdData(id_dir), tiny_config())


@pytest.fixture(scope="session")
def fill_set(models: Models, generator: Generator) -> Callable[..., GeneratedSet]:
    """Generates a configuration into a folder."""

    def fill_set(
        config: GenerationConfig, folder: Path, generator: Generator = generator, **options: Any
    ) -> GeneratedSet:
        record = generation_record(models, config, generator.gradients)
        return fill(generator, config, folder, record, **options)

    return fill_set


@pytest.fixture(scope="session")
def generated_dirs(
    tmp_path_factory: pytest.TempPathFactory, fill_set: Callable[..., GeneratedSet]
) -> list[Path]:
    """Two generated sets of 20 images, by image-level and by feature-level guidance. Not to be
    changed."""
    folder = tmp_path_factory.mktemp("generated")
    kinds: tuple[GuidanceKind, ...] = ("img", "feat")
    for kind in kinds:
        fill_set(tiny_config(kind=kind), folder / kind)
    return [folder / kind for kind in kinds]


@pytest.fixture(scope="session")
def detector_module(
    classifier: Classifier, id_dir: Path, generated_dirs: list[Path]
) -> DetectorModule:
    config = DetectorConfig(
        ("energy", "knn_distance", "mahalanobis"), combination="gate", k=3, alpha=0.1
    )
    return detector_for(classifier, IdData(id_dir), generated_dirs, config)


@pytest.fixture(scope="session")
def detector_path(
    tmp_path_factory: pytest.TempPathFactory, detector_module: DetectorModule
) -> Path:
    """A detector.onnx: grey 32x32, α = 0.1, 120 calibration images. Not to be changed."""
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    images = (from_uint8(assets.load_images("test").images[:64]) + 1) / 2
    export_detector(detector_module, path, images, training="nothing")
    return path


@pytest.fixture(scope="session")
def engines_dir(tmp_path_factory: pytest.TempPathFactory, models: Models, id_dir: Path) -> Path:
    """The exported engines of the latent model and the classifier. Not to be changed."""
    folder = tmp_path_factory.mktemp("export") / "engines"
    export_models(models, folder, ExportConfig(vjp=False), images=real_images(id_dir, 8))
    return folder


@pytest.fixture(scope="session")
def gradient_engines_dir(
    tmp_path_factory: pytest.TempPathFactory, models: Models, generator: Generator
) -> Path:
    """The same with every graph that computes a gradient; takes a minute. Not to be changed."""
    folder = tmp_path_factory.mktemp("gradients") / "engines"
    images = from_uint8(assets.load_images("held_out").images[:8])
    fused = FusedGuidance(generator.feature)
    export_models(models, folder, ExportConfig(), images=images, fused=fused)
    return folder


def real_images(id_dir: Path, count: int) -> torch.Tensor:
    with np.load(id_dir / "held_out.npz") as file:
        return from_uint8(
            file["images"][:count, ..., None]
            if file["images"].ndim == 3
            else file["images"][:count]
        )


@pytest.fixture(scope="session")
def mutated() -> Callable[[onnx.ModelProto, int], onnx.ModelProto]:
    """Damages a graph in a way that depends on a seed."""
    return mutated_graph


def mutated_graph(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model with a few parts of its graph changed, so that protobuf can read it and little else
    holds."""
    chance, found = random.Random(seed), onnx.ModelProto()
    found.CopyFrom(model)
    nodes, weights = found.graph.node, found.graph.initializer
    names = [name for node in nodes for name in node.input]
    for _ in range(chance.randint(1, 3)):
        node, weight = chance.choice(nodes), chance.choice(weights)
        match chance.randrange(6):
            case 0:
                node.op_type = chance.choice(
                    [other.op_type for other in nodes] + ["Det", "Loop", "Resize", "Einsum"]
                )
            case 1 if node.attribute:
                attribute = chance.choice(node.attribute)
                attribute.i = chance.choice([0, -1, 2**31, -(2**63)])
                attribute.ints[:] = [chance.choice([0, -1, 7, 2**62]) for _ in attribute.ints]
            case 2 if weight.dims:
                weight.dims[chance.randrange(len(weight.dims))] = chance.choice([0, -1, 3, 2**40])
            case 3:
                weight.raw_data = weight.raw_data[: chance.randrange(len(weight.raw_data) + 1)]
            case 4:
                node.input[chance.randrange(len(node.input))] = chance.choice(
                    [*names, "", "nowhere"]
                )
            case _:
                weight.data_type = chance.randrange(24)
    return found


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def failed(self) -> str:
        """The one line of an error that the user can fix; anything else is a failed test."""
        assert self.code == 2, self
        line = self.err.rstrip("\n").splitlines()[-1]
        assert line.startswith("error: "), self.err
        assert self.err.count("error: ") == 1 and "Traceback" not in self.err, self.err
        return line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`good-rt ARGUMENTS…` in this process: the console script's own function."""
    monkeypatch.setenv("COLUMNS", "400")  # so that tables wrap nothing

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["good-rt", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
