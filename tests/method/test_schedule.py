"""Schedules against diffusers' schedulers, an independent implementation of the same
definitions."""

import numpy as np
import pytest
from diffusers import DDIMScheduler

from good_rt.errors import GoodRtError
from good_rt.method.schedule import (
    alpha_cumprod_of,
    ddim_sigmas,
    sigma_of,
    smoothing_widths,
    strengths,
    timesteps,
)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 25, 50, 1000])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_are_diffusers(spacing, steps, offset):
    if offset and (spacing != "leading" or steps == 1000):
        pytest.skip("only leading spacing has an offset, and it must stay inside the table")
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(
        timesteps(1000, steps, spacing, offset), scheduler.timesteps.numpy()
    )


def test_steps_out_of_range_are_named():
    with pytest.raises(GoodRtError, match="between 1 and 1000, not 0"):
        timesteps(1000, 0)


def test_sigma_and_alpha_are_inverse():
    alphas = np.linspace(0.001, 0.999, 50)
    np.testing.assert_allclose(alpha_cumprod_of(sigma_of(alphas)), alphas, rtol=1e-12)


def test_ddim_sigmas_fall_to_zero():
    alphas = DDIMScheduler().alphas_cumprod.double().numpy()
    sigmas = ddim_sigmas(alphas, 25)
    assert sigmas.shape == (26,)
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[-1] == 0


@pytest.mark.parametrize("trend", ["decrease", "increase", "constant"])
def test_strengths_have_the_given_mean_and_trend(trend):
    sigmas = ddim_sigmas(DDIMScheduler().alphas_cumprod.double().numpy(), 20)
    values = strengths(sigmas, 0.3, trend)
    assert values.mean() == pytest.approx(0.3)
    slope = {"decrease": -1, "increase": 1, "constant": 0}[trend]
    assert np.sign(round(values[-1] - values[0], 12)) == slope


def test_smoothing_narrows_as_noise_falls():
    sigmas = ddim_sigmas(DDIMScheduler().alphas_cumprod.double().numpy(), 20)
    assert (np.diff(smoothing_widths(sigmas, 0.1, "decrease")) < 0).all()
    assert (smoothing_widths(sigmas, 0.1, "constant") == 0.1).all()
    with pytest.raises(GoodRtError):
        smoothing_widths(sigmas, 0.1, "increase")
