"""The sampler against diffusers' DDIM, closed forms on Gaussians, and finite differences; and its
determinism."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from good_rt.config.settings import GuidanceConfig
from good_rt.errors import GoodRtError, NonFiniteError
from good_rt.method.denoiser import PREDICTIONS, DiscreteDenoiser
from good_rt.method.guidance import limited, smoothed, value_and_gradient
from good_rt.method.sampler import (
    GuidedModel,
    Noise,
    SampleBatch,
    sample,
    sample_seeds,
    sample_steps,
)
from good_rt.method.schedule import ddim_sigmas

SHAPE = (2, 8, 8)
OFF = GuidanceConfig(mu=0.0)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=4,
    )
    return model.eval().requires_grad_(False)


def network(unet):
    return lambda x, t, labels: unet(x, t, class_labels=labels).sample


def alphas_of(scheduler):
    return scheduler.alphas_cumprod.double().numpy()


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_unguided_equals_diffusers_ddim(unet, prediction, eta, spacing):
    scheduler = DDIMScheduler(
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing=spacing,
        set_alpha_to_one=spacing == "trailing",
    )
    scheduler.set_timesteps(20)
    seeds, labels = sample_seeds(3, range(4)), torch.tensor([0, 1, 2, 0])
    noise = Noise(seeds, 0)
    x = noise(torch.empty(4, *SHAPE))
    for t in scheduler.timesteps:
        output = unet(x, t, class_labels=labels).sample
        last = t == scheduler.timesteps[-1]
        drawn = (
            noise(x) if eta > 0 and not (last and spacing == "trailing") else torch.zeros_like(x)
        )
        x = scheduler.step(output, t, x, eta=eta, variance_noise=drawn).prev_sample
    final = float(scheduler.final_alpha_cumprod)
    alphas = alphas_of(scheduler)
    denoiser = DiscreteDenoiser(network(unet), alphas, prediction)
    sigmas = ddim_sigmas(alphas, 20, spacing, 0, final)
    if spacing == "leading":  # the last visited level is already the final one
        assert sigmas[-1] == sigmas[-2]
    ours = sample(
        GuidedModel(denoiser, lambda z: z), sigmas, OFF, SampleBatch(seeds, SHAPE, labels), eta
    )
    assert (ours - x).abs().max() <= 1e-5 * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("first", [0, 4, 9])
def test_starting_from_latents_equals_diffusers_image_to_image(unet, first):
    """Noised by diffusers' scheduler to the timestep of the first step, and stepped from there."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    seeds, labels = sample_seeds(5, range(3)), torch.tensor([0, 1, 2])
    start = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    noise = Noise(seeds, 0)
    left = scheduler.timesteps[first:]
    x = scheduler.add_noise(start, noise(start), left[0])
    for t in left:
        drawn = torch.zeros_like(x) if t == left[-1] else noise(x)
        output = unet(x, t, class_labels=labels).sample
        x = scheduler.step(output, t, x, eta=1.0, variance_noise=drawn).prev_sample
    alphas = alphas_of(scheduler)
    denoiser = DiscreteDenoiser(network(unet), alphas)
    batch = SampleBatch(seeds, SHAPE, labels, start=start, first_step=first)
    sigmas = ddim_sigmas(alphas, 10, "trailing")
    ours = sample(GuidedModel(denoiser, lambda z: z), sigmas, OFF, batch)
    assert (ours - x).abs().max() <= 1e-5 * max(1.0, float(x.abs().max()))


def test_classifier_free_guidance_extrapolates_from_the_null_class(unet):
    alphas = alphas_of(DDIMScheduler())
    y, labels = (
        torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2]),
    )
    plain = DiscreteDenoiser(network(unet), alphas)
    guided = DiscreteDenoiser(network(unet), alphas, null_class=3, cfg_scale=1.5)
    conditional, unconditional = plain(y, 1.0, labels), plain(y, 1.0, torch.full_like(labels, 3))
    torch.testing.assert_close(
        guided(y, 1.0, labels), unconditional + 1.5 * (conditional - unconditional)
    )
    limited = DiscreteDenoiser(
        network(unet), alphas, null_class=3, cfg_scale=1.5, cfg_sigma_max=2.0
    )
    torch.testing.assert_close(limited(y, 2.0, labels), guided(y, 2.0, labels))
    torch.testing.assert_close(limited(y, 2.1, labels), plain(y, 2.1, labels))
    with pytest.raises(GoodRtError, match="unconditional class"):
        DiscreteDenoiser(network(unet), alphas, cfg_scale=1.5)


def test_timestep_is_exact_on_the_table_and_monotone_between():
    alphas = alphas_of(DDIMScheduler())
    denoiser = DiscreteDenoiser(lambda x, t: x, alphas)
    sigmas = np.sqrt((1 - alphas) / alphas)
    for t in (0, 1, 500, 999):
        assert denoiser.timestep(float(sigmas[t])) == pytest.approx(t, abs=1e-9)
    assert 500 < denoiser.timestep(float(np.sqrt(sigmas[500] * sigmas[501]))) < 501


def quadratic(images):
    return -0.5 * images.square().flatten(1).sum(1)


@pytest.mark.parametrize(
    "config",
    [
        GuidanceConfig(mu=0.2, n_iter=2),
        GuidanceConfig(rho=0.2, mu=0.1, n_recur=2, sigma=0.1, n_mc=3),
        GuidanceConfig(mu=0.2, band=(-40.0, -10.0)),
    ],
)
def test_an_image_does_not_depend_on_its_batch(unet, config):
    alphas = alphas_of(DDIMScheduler())
    denoiser = DiscreteDenoiser(network(unet), alphas, differentiable=network(unet))
    sigmas = ddim_sigmas(alphas, 6)
    seeds, labels = sample_seeds(0, range(5)), torch.tensor([0, 1, 2, 0, 1])
    run = lambda rows: sample(  # noqa: E731
        GuidedModel(denoiser, lambda z: z, quadratic),
        sigmas,
        config,
        SampleBatch([seeds[i] for i in rows], SHAPE, labels[rows]),
    )
    together = run([0, 1, 2, 3, 4])
    assert torch.equal(together, run([0, 1, 2, 3, 4]))  # bytes, for the same batch
    alone = torch.cat([run([i]) for i in (4, 2)])
    torch.testing.assert_close(together[[4, 2]], alone, rtol=1e-4, atol=1e-4)


class GaussianMixture:
    """The exact denoiser E[x0 | y] of a mixture of isotropic Gaussians in the plane; (N, 2, 1, 1)
    as an 'image'."""

    def __init__(self, means, std, weights):
        self.means, self.std, self.weights = (
            torch.tensor(v, dtype=torch.float64) for v in (means, std, weights)
        )

    def __call__(self, y, sigma, labels=None):
        flat = y.flatten(1)
        variance = self.std**2 + sigma**2
        log = self.weights.log() - (flat[:, None] - self.means).square().sum(2) / (2 * variance)
        posterior = self.means + (self.std**2 / variance) * (flat[:, None] - self.means)
        return (log.softmax(1)[..., None] * posterior).sum(1)[..., None, None]

    def vjp(self, y, sigma, labels=None):
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            x0 = self(y, sigma)
        return x0.detach(), lambda v: torch.autograd.grad(x0, y, v)[0]


def plane(mixture, guidance, config, count=400, steps=50, eta=0.0):
    sigmas = ddim_sigmas(alphas_of(DDIMScheduler()), steps)
    out = sample(
        GuidedModel(mixture, lambda z: z, guidance),
        sigmas,
        config,
        SampleBatch(sample_seeds(1, range(count)), (2, 1, 1), dtype=torch.float64),
        eta,
    )
    return out.flatten(1), sigmas


@pytest.mark.parametrize(("rho", "mu"), [(0.0, 0.05), (0.05, 0.0), (0.03, 0.02)])
def test_guidance_shifts_a_gaussian_by_the_closed_form(rho, mu):
    """For one Gaussian and linear ℓ every step is affine, so the shift of each sample is known
    exactly."""
    std, direction = 0.5, torch.tensor([1.0, -2.0], dtype=torch.float64)
    mixture = GaussianMixture([[1.0, 1.0]], std, [1.0])
    linear = lambda x: x.flatten(1) @ direction  # noqa: E731
    config = GuidanceConfig(rho=rho, mu=mu, step="raw")
    base, sigmas = plane(mixture, None, OFF)
    moved, _ = plane(mixture, linear, config)
    shift = torch.zeros(2, dtype=torch.float64)
    for sigma, following in itertools.pairwise(sigmas):
        jacobian = std**2 / (std**2 + sigma**2)
        carry = jacobian * (1 - following / sigma) + following / sigma
        shift = carry * shift + mu * direction + rho * (1 + sigma**2) * jacobian * direction
    torch.testing.assert_close(moved - base, shift.expand_as(base), rtol=1e-8, atol=1e-8)


def test_guidance_moves_mass_to_the_favoured_mode_and_stays_on_the_modes():
    mixture = GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 0.3, [0.5, 0.5])
    towards_right = lambda x: x.flatten(1)[:, 0]  # noqa: E731
    base, _ = plane(mixture, None, OFF, eta=1.0)
    right, _ = plane(mixture, towards_right, GuidanceConfig(mu=0.0, rho=0.05, step="raw"), eta=1.0)
    left, _ = plane(
        mixture, lambda x: -towards_right(x), GuidanceConfig(mu=0.0, rho=0.05, step="raw"), eta=1.0
    )
    share = [(points[:, 0] > 0).double().mean().item() for points in (left, base, right)]
    assert abs(share[1] - 0.5) < 0.08
    assert share[0] < 0.25
    assert share[2] > 0.75
    assert (right[:, 0].abs() - 2).abs().mean() < 0.6  # still on the data, not between the modes


def test_gradient_through_decoder_and_unet_equals_finite_differences(unet):
    """∇_y ℓ̃(D(x̂0(y))), the two factors as the sampler computes them, in float64."""
    double = UNet2DModel.from_config(unet.config).double().eval().requires_grad_(False)
    double.load_state_dict(unet.state_dict())
    run = lambda x, t, labels: double(x, t, class_labels=labels).sample  # noqa: E731
    denoiser = DiscreteDenoiser(
        run, alphas_of(DDIMScheduler()), "v_prediction", 3, 1.5, differentiable=run
    )
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    decoder = lambda z: torch.tanh(torch.einsum("nchw,dc->ndhw", z, mix))  # noqa: E731
    noise = torch.randn(3, 2, *SHAPE, generator=generator, dtype=torch.float64)
    y, labels, sigma = (
        torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64),
        torch.tensor([0, 2]),
        0.7,
    )

    def value(y):
        return smoothed(quadratic, decoder(denoiser(y, sigma, labels)), 0.1, noise)

    x0, pull_back = denoiser.vjp(y, sigma, labels)
    assert torch.equal(x0, denoiser(y, sigma, labels))
    _, at_x0 = value_and_gradient(quadratic, decoder, x0, 0.1, lambda images: noise)
    gradient = pull_back(at_x0)
    for seed in range(5):
        direction = torch.randn(
            y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        h = 1e-5
        numeric = (value(y + h * direction) - value(y - h * direction)) / (2 * h)
        torch.testing.assert_close(
            (gradient * direction).flatten(1).sum(1), numeric, rtol=1e-5, atol=1e-7
        )


def test_smoothing_of_a_quadratic_is_its_closed_form():
    """log E exp(−½a‖x+σδ‖²) = −½ d log(1+aσ²) − ½ a‖x‖²/(1+aσ²)."""
    a, width, d = 0.8, 0.5, 3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, d, 1, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, 4, d, 1, 1, generator=generator, dtype=torch.float64)
    found = smoothed(lambda v: -0.5 * a * v.flatten(1).square().sum(1), x, width, noise)
    spread = 1 + a * width**2
    exact = -0.5 * d * np.log(spread) - 0.5 * a * x.flatten(1).square().sum(1) / spread
    torch.testing.assert_close(found, exact, rtol=0, atol=5e-3)


def test_clipping_bounds_each_sample_alone():
    gradient = torch.tensor([3.0, 0.3]).view(2, 1, 1, 1).expand(2, 1, 2, 2).clone()
    value = torch.zeros(2)
    clipped = limited(gradient, value, GuidanceConfig(mu=1, step="raw", clip=1.0), 0)
    assert clipped[0].norm() == pytest.approx(1.0)
    assert torch.equal(clipped[1], gradient[1])
    unit = limited(gradient, value, GuidanceConfig(mu=1), 0)
    torch.testing.assert_close(unit.square().mean(dim=(1, 2, 3)), torch.ones(2))
    assert torch.equal(
        limited(torch.zeros(1, 1, 2, 2), torch.zeros(1), GuidanceConfig(mu=1), 0),
        torch.zeros(1, 1, 2, 2),
    )


def test_the_band_stops_samples_that_have_gone_far_enough():
    gradient, config = torch.ones(3, 1, 2, 2), GuidanceConfig(mu=1, band=(0.0, 2.0))
    out = limited(gradient, torch.tensor([-1.0, 1.0, 5.0]), config, 0)
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([1.0, 0.5, 0.0]))


def test_a_value_that_is_not_finite_names_step_and_sample(unet):
    alphas = alphas_of(DDIMScheduler())
    sigmas, seeds = ddim_sigmas(alphas, 5), sample_seeds(0, range(3))

    def explodes(images):
        scale = (
            torch.tensor([1.0, torch.inf, 1.0]) if float(images.abs().max()) < 3 else torch.ones(3)
        )
        return quadratic(images) * scale

    denoiser = DiscreteDenoiser(network(unet), alphas)
    with pytest.raises(NonFiniteError, match=r"step \d+.*sample.* 1"):
        sample(
            GuidedModel(denoiser, lambda z: z.clamp(-2, 2), explodes),
            sigmas,
            GuidanceConfig(mu=0.1),
            SampleBatch(seeds, SHAPE, torch.zeros(3).long()),
        )
    broken = DiscreteDenoiser(
        lambda x, t, labels: x * torch.tensor([1.0, 1.0, torch.nan])[:, None, None, None], alphas
    )
    with pytest.raises(NonFiniteError, match=r"step 0.*sample.* 2"):
        sample(
            GuidedModel(broken, lambda z: z),
            sigmas,
            OFF,
            SampleBatch(seeds, SHAPE, torch.zeros(3).long()),
        )


def test_variance_guidance_without_a_gradient_says_what_to_do(unet):
    alphas = alphas_of(DDIMScheduler())
    denoiser = DiscreteDenoiser(network(unet), alphas)
    with pytest.raises(GoodRtError, match="rho"):
        sample(
            GuidedModel(denoiser, lambda z: z, quadratic),
            ddim_sigmas(alphas, 4),
            GuidanceConfig(mu=0.0, rho=0.1),
            SampleBatch([1], SHAPE, torch.zeros(1).long()),
        )


def test_steps_are_yielded_for_pictures_and_progress(unet):
    alphas = alphas_of(DDIMScheduler())
    denoiser = DiscreteDenoiser(network(unet), alphas)
    steps = list(
        sample_steps(
            GuidedModel(denoiser, lambda z: z, quadratic),
            ddim_sigmas(alphas, 4),
            GuidanceConfig(mu=0.1),
            SampleBatch([1, 2], SHAPE, torch.zeros(2).long()),
        )
    )
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert all(step.value is not None and step.value.shape == (2,) for step in steps)


@pytest.mark.parametrize(
    "wrong", [{"rho": -1.0}, {"mu": float("nan")}, {"n_mc": 0}, {"clip": 0.0}, {"band": (1.0, 1.0)}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(GoodRtError, match=next(iter(wrong))):
        GuidanceConfig(**wrong)


def test_only_the_steps_of_the_span_are_guided(unet):
    alphas = alphas_of(DDIMScheduler())
    sigmas, seeds = ddim_sigmas(alphas, 10), sample_seeds(0, range(2))
    denoiser = DiscreteDenoiser(network(unet), alphas)

    def guided_at(config):
        def brightness(images):
            return images.mean(dim=(1, 2, 3))

        steps = sample_steps(
            GuidedModel(denoiser, lambda z: z, brightness),
            sigmas,
            config,
            SampleBatch(seeds, SHAPE, torch.zeros(2).long()),
        )
        return [step.index for step in steps if step.value is not None]

    assert guided_at(GuidanceConfig(mu=0.1)) == list(range(10))
    assert guided_at(GuidanceConfig(mu=0.1, span=(0.2, 0.8))) == [2, 3, 4, 5, 6, 7]
    assert guided_at(GuidanceConfig(mu=0.1, span=(0.3, 1.0), every=3)) == [3, 6, 9]
    assert guided_at(GuidanceConfig(mu=0.0)) == []
    with pytest.raises(GoodRtError, match="span"):
        GuidanceConfig(mu=0.0, span=(0.8, 0.2))
