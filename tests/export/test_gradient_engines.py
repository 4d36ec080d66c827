"""Engines that compute gradients: parity with autograd, in one graph and in two, and the images
they guide to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from good_rt.config.settings import (
    ExportConfig,
    FeatureDiscrepancyName,
    GenerationConfig,
    GuidanceConfig,
    SamplerConfig,
)
from good_rt.data.id_data import IdData
from good_rt.data.pixels import from_uint8
from good_rt.demo import assets
from good_rt.export.export import export_models
from good_rt.export.graphs import FusedGuidance
from good_rt.export.manifest import Manifest, load_engines
from good_rt.models import Models
from good_rt.workflow.generator import Generator, make_generator

pytestmark = pytest.mark.slow

LEVELS = 2
"""Largest difference of two runtimes' images, of 255."""


def test_every_gradient_is_autograds(gradient_engines_dir: Path) -> None:
    rows = [row for row in Manifest.read(gradient_engines_dir).parity if row.output == "gradient"]
    assert {row.graph for row in rows} == {
        "network_vjp", "network_vjp in two", "decoder_vjp", "decoder_vjp in two", "guidance_vjp"
    }  # fmt: skip
    assert {row.batch for row in rows} == {1, 2, 5, 16}
    assert max(row.max_relative for row in rows) <= 1e-4


@pytest.mark.parametrize(
    "guidance",
    [
        GuidanceConfig(mu=0.3),
        GuidanceConfig(mu=0.0, rho=0.2),
        GuidanceConfig(mu=0.2, rho=0.1, n_iter=2),
        GuidanceConfig(mu=0.4, sigma=0.1, n_mc=2),
    ],
)
def test_engines_guide_to_the_images_of_pytorch(
    gradient_engines_dir: Path,
    models: Models,
    id_dir: Path,
    generator: Generator,
    make_config: Callable[..., GenerationConfig],
    guidance: GuidanceConfig,
) -> None:
    config = replace(make_config(), guidance=guidance)
    engines = load_engines(gradient_engines_dir)
    fast = make_generator(models, IdData(id_dir), config, engines)
    # the very features that the fused graph was exported with
    fast = replace(fast, feature=generator.feature, scales=generator.scales)
    assert fast.fused is not None
    indices = [0, 1, 2]
    images, expected = (one.images(config, indices).astype(int) for one in (fast, generator))
    unguided = generator.images(config, indices, guided=False)
    assert np.abs(images - expected).max() <= LEVELS < np.abs(expected - unguided).max()
    # and without the fused graph, autograd goes through the decoder's two halves
    halves = replace(fast, fused=None)
    assert np.abs(halves.images(config, indices).astype(int) - expected).max() <= LEVELS


@pytest.mark.parametrize(
    "guidance",
    [GuidanceConfig(mu=0.3), GuidanceConfig(mu=0.0, rho=0.3), GuidanceConfig(mu=0.2, rho=0.1)],
)
def test_engines_give_the_same_bytes_in_any_batch_and_on_any_number_of_threads(
    gradient_engines_dir: Path,
    models: Models,
    id_dir: Path,
    make_config: Callable[..., GenerationConfig],
    guidance: GuidanceConfig,
) -> None:
    config, count = replace(make_config(), guidance=guidance, sampler=SamplerConfig(4)), 9
    whole = None
    for threads in (1, 2, 3):
        engines = load_engines(gradient_engines_dir, threads=threads)
        generator = make_generator(models, IdData(id_dir), config, engines)
        for size in (count, 1, 2, 4):
            batches = [
                list(range(first, min(first + size, count))) for first in range(0, count, size)
            ]
            images = np.concatenate([generator.images(config, indices) for indices in batches])
            whole = images if whole is None else whole
            np.testing.assert_array_equal(images, whole)


def test_a_pair_is_differentiable_in_its_first_input(
    gradient_engines_dir: Path, models: Models
) -> None:
    from good_rt.engines.autograd import VjpPair

    engines, decoder = load_engines(gradient_engines_dir), models.diffusion.decoder
    assert decoder is not None
    pair = VjpPair(engines["decoder_forward"], engines["decoder_backward"])
    latents = torch.randn(
        3, *models.diffusion.sample_shape, generator=torch.Generator().manual_seed(0)
    )
    gradients = []
    for run in (pair.function, decoder):
        x = latents.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(run(x).square().sum(), x)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("feature", ["mahalanobis", "relative_mahalanobis"])
def test_engines_guide_by_every_feature_discrepancy(
    feature: FeatureDiscrepancyName,
    models: Models,
    id_dir: Path,
    make_config: Callable[..., GenerationConfig],
    tmp_path: Path,
) -> None:
    config = replace(make_config(kind="feat"), guidance=GuidanceConfig(mu=0.3))
    config = replace(config, bank=replace(config.bank, feature=feature))
    plain = make_generator(models, IdData(id_dir), config)
    manifest, _ = export_models(
        models,
        tmp_path / "engines",
        ExportConfig(batches=(1, 3)),
        images=from_uint8(assets.load_images("held_out").images[:8]),
        fused=FusedGuidance(plain.feature),
    )
    assert all(row.ok for row in manifest.parity)
    fast = make_generator(models, IdData(id_dir), config, load_engines(tmp_path / "engines"))
    assert fast.fused is not None
    images, expected = (one.images(config, [0, 1, 2]).astype(int) for one in (fast, plain))
    unguided = plain.images(config, [0, 1, 2], guided=False)
    assert np.abs(images - expected).max() <= LEVELS < np.abs(expected - unguided).max()
