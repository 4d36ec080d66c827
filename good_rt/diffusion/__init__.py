"""Diffusion models from diffusers folders, each as one network, a noise process, a condition and a
decoder.

`load_diffusion` picks the adapter of the network's class; whatever the architecture, denoiser,
engines, guidance and sampler see the same few things. Another architecture is one file with a
`Family`, its entry in `load.FAMILIES`, and a test.
"""

from __future__ import annotations

from good_rt.diffusion.autoencoder import DecoderModule, EncoderModule
from good_rt.diffusion.base import DiffusionModel
from good_rt.diffusion.conditioning import Conditioning
from good_rt.diffusion.load import load_diffusion
from good_rt.diffusion.unet import UNetModule

__all__ = [
    "Conditioning",
    "DecoderModule",
    "DiffusionModel",
    "EncoderModule",
    "UNetModule",
    "load_diffusion",
]
