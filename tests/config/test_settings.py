"""Configurations: values out of their type, choices or bounds are refused, also from Python."""

from __future__ import annotations

import math
from typing import Any

import pytest

from good_rt.config.settings import (
    BackendConfig,
    BankConfig,
    DetectorConfig,
    ExportConfig,
    GenerationConfig,
    GuidanceConfig,
    SamplerConfig,
    TrainConfig,
)
from good_rt.errors import GoodRtError


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (GuidanceConfig, {"step": "x"}, "step is 'x', but must be one of unit, raw"),
        (GuidanceConfig, {"mu_schedule": "x"}, "mu_schedule is 'x', but must be one of"),
        (BackendConfig, {"gradients": "foo"}, "gradients is 'foo', but must be one of auto"),
        (SamplerConfig, {"eta": 5.0}, "eta is 5.0, but must be at most 1"),
        (SamplerConfig, {"eta": math.nan}, "eta is nan"),
        (SamplerConfig, {"cfg": math.nan}, "cfg is nan"),
        (SamplerConfig, {"cfg_sigma_max": math.nan}, "cfg_sigma_max is nan"),
        (SamplerConfig, {"prompts": "hi"}, "prompts is 'hi'"),
        (BankConfig, {"temperature": -1.0}, "temperature is -1.0, but must be greater than 0"),
        (DetectorConfig, {"temperature": math.nan}, "temperature is nan"),
        (TrainConfig, {"interpolation": -3.0}, "interpolation is -3.0, but must be greater than"),
        (TrainConfig, {"averaging": math.nan}, "averaging is nan"),
        (TrainConfig, {"lr": math.nan}, "lr is nan"),
        (TrainConfig, {"steps": "5"}, "steps is '5', but must be of type int"),
        (TrainConfig, {"seed": 10**22}, "seed is 1"),
        (GenerationConfig, {"batch": 2.5}, "batch is 2.5"),
        (GenerationConfig, {"batch": "foo"}, "batch is 'foo'"),
        (GenerationConfig, {"kind": "imgg"}, "kind is 'imgg', but must be one of none, img"),
        (GenerationConfig, {"sampler": {"steps": 2}}, "sampler is .*, but must be a configur"),
        (GenerationConfig, {"strengths": (0.0,)}, "all strengths are 0, so nothing is guided"),
        (ExportConfig, {"batches": (0,)}, "batches is 0, but must be at least 1"),
        (ExportConfig, {"batches": ()}, "batches must name one or more"),
    ],
)
def test_values_without_a_meaning_are_refused(
    config: type[Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(GoodRtError, match=message):
        config(**values)
