"""Where PyTorch's models run: the CPU, or an NVIDIA GPU.

NOT YET RUN ON A GPU: that nothing is mixed up between two devices is tested on a stand-in for one
(`tests/support/elsewhere.py`); `benchmarks/gpu_check.sh` runs the tests that need a GPU.
"""

from __future__ import annotations

import torch

from good_rt.errors import GoodRtError

CPU = torch.device("cpu")


def use_device(name: str) -> torch.device:
    """ "cpu", "cuda" or "cuda:1" as a device; a GPU becomes the current one.

    On it float32 is computed as float32, as the engines and detector.onnx do, and by kernels that give the same again.
    Raises GoodRtError when there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise GoodRtError(f"there is no device {name!r}; give cpu, cuda, or cuda:N for one of several GPUs")
    if device.type == "cpu":
        return CPU
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        seen = f"{count} GPU{'s'[: count != 1]}" if count else "no CUDA GPU"
        raise GoodRtError(
            f"device {name}: PyTorch {torch.__version__} sees {seen} here; leave --device out to run on the CPU, or "
            "install a PyTorch for this machine's CUDA"
        )
    torch.cuda.set_device(index)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", index)
