"""A pytest plugin that lets a torchvision built for another torch be imported, as peers need it
beside a CPU torch.

At import it asks for two operators that its own compiled part would bring; declared here, they are
never called.
"""

from __future__ import annotations

import importlib.util

import torch

_library: list[torch.library.Library] = []  # operators live as long as their library


def declare() -> None:
    """Declares what is missing; does nothing where torchvision is absent or whole."""
    if _library or importlib.util.find_spec("torchvision") is None:
        return
    try:
        torch.ops.torchvision.nms  # noqa: B018 (looking it up is the question)
    except AttributeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.append(library)


declare()
