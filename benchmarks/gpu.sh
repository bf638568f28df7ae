#!/usr/bin/env bash
# Everything that waits for an accelerator, in one call of under 9 minutes: parity first, then what a step and its scoring cost.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
$python benchmarks/parity.py --device cuda --hidden 1024 --layers 8 --vocab 49152 --rollouts 32 --longest 512
$python benchmarks/scoring_memory.py --device cuda
$python benchmarks/rollouts.py --device cuda
$python benchmarks/step.py --device cuda --dtype bfloat16
