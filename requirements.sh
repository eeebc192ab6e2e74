#!/bin/sh
# Install what the suite needs into the current Python environment.
# The suite itself: torch, torchvision, numpy, tqdm, and filelock, which torch requires (older ones
# forget who holds a lock). For --data_path=digits: scikit-learn. For plots: matplotlib. For
# --export: onnx, onnxscript, onnxruntime, safetensors. For --tensorboard: tensorboard. For the
# tests: pytest, pytest-xdist, hypothesis, ruff.
set -eu
python=$(command -v python || command -v python3) || {
    echo "requirements.sh: there is no python here" >&2
    exit 1
}
if "$python" -m pip --version > /dev/null 2>&1; then
    set -- "$python" -m pip install
elif command -v uv > /dev/null; then
    set -- uv pip install --python "$python"
elif "$python" -m ensurepip > /dev/null 2>&1; then
    set -- "$python" -m pip install
else
    echo "requirements.sh: $python has neither pip nor ensurepip, and there is no uv" >&2
    exit 1
fi
if ! "$python" -c 'import sys, sysconfig, pathlib
sys.exit(sys.prefix == sys.base_prefix and pathlib.Path(
    sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists())'; then
    echo "requirements.sh: $python belongs to the system; first: python3 -m venv env && . env/bin/activate" >&2
    exit 1
fi
"$@" \
    "torch>=2.6" "torchvision>=0.21" "numpy>=1.26" "tqdm>=4.60" "filelock>=4" \
    "scikit-learn>=1.3" "matplotlib>=3.8" \
    "onnx>=1.17" "onnxscript>=0.2" "onnxruntime>=1.20" "safetensors>=0.4" "tensorboard>=2.15" \
    "pytest>=7.4" "pytest-xdist>=3.3" "hypothesis>=6.100" "ruff==0.17.*"
