#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: the tests that need one, then plans, parity and times of every graph, to
# benchmarks/results/gpu.json (and to $OUT where that is set). No machine without a GPU gets past the first check.
#
#     pip install -e '.[toolkit,tensorrt-rtx,dev]'     # or `tensorrt` on a data-centre GPU
#     pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu
#     benchmarks/gpu_check.sh
set -euo pipefail
cd "$(dirname "$0")/.."

if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no CUDA GPU that PyTorch sees: nothing was checked" >&2
    exit 2
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || echo "nvidia-smi: missing"

status=0
pytest -m gpu -o addopts=--import-mode=importlib || status=1
python benchmarks/gpu_check.py "$@" || status=1
exit "$status"
