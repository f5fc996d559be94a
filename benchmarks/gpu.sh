#!/bin/sh
# What one GPU can show within ten minutes: parity of ZeRO 0 to 3 with a plain loop on the CPU, images/s, tokens/s, MFU.
#   benchmarks/gpu.sh          writes benchmarks/results/gpu.json
#   benchmarks/gpu.sh --dry    the same path with tiny sizes, on whatever there is
set -eu
cd "$(dirname "$0")/.."
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec timeout 600 "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
