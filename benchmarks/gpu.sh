#!/usr/bin/env bash
# Everything that waits for an accelerator, in one call of under 9 minutes: what is right first, then what it costs.
#   benchmarks/gpu.sh          on an accelerator      benchmarks/gpu.sh --dry    the same at a CPU's size
# PYTHON: which python. OUT: where the JSON files and gpu.log go, benchmarks/out unless given; with --dry a new folder, and benchmarks/out stays as it is.
# A benchmark that fails or takes too long is said, and the rest go on.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
made=benchmarks/out
dry=${1:-}
[ -n "$dry" ] && OUT=${OUT:-$(mktemp -d)}
out=${OUT:-$made}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
# the call ends within so many seconds
LIMIT=525
failed=()
mkdir -p "$out" "$made"

# run NAME SECONDS ARGUMENTS...: one benchmark within its seconds and what is left of the call, its JSON copied to $out
run() {
  local name=$1 seconds=$2 left=$((LIMIT - SECONDS))
  shift 2
  [ -n "$dry" ] && seconds=600 left=600
  [ "$seconds" -gt "$left" ] && seconds=$left
  if [ ! -f "benchmarks/$name.py" ]; then echo "== $name: there is no benchmarks/$name.py"; failed+=("$name"); return; fi
  if [ "$seconds" -lt 5 ]; then echo "== $name: no time left"; failed+=("$name"); return; fi
  [ -n "$dry" ] && [ -f "$made/$name.json" ] && cp "$made/$name.json" "$mark.$name"
  echo "== $name $* (at most $seconds s, begun at $SECONDS s)"
  timeout --kill-after=5 "$seconds" "$python" "benchmarks/$name.py" "$@" || { echo "== $name ended with $?"; failed+=("$name"); }
  # what was written as it went counts, too
  if [ "$out" != "$made" ] && [ "$made/$name.json" -nt "$mark" ]; then cp "$made/$name.json" "$out/"; fi
  [ -f "$mark.$name" ] && mv "$mark.$name" "$made/$name.json"
  return 0
}

everything() {
  if [ -n "$dry" ]; then
    run parity 0
    run fused 0 --tokens 128 --hidden 64 --vocab 4096 --methods opsd
    run step 0 --models tiny --sides ours --repeats 1
    run rollouts 0 --models tiny --repeats 1
    run growth 0 --axes tokens group
    run methods 0 --repeats 1 --methods opsd hsd
    run compiled 0 --repeats 1
  else
    run parity 50 --device cuda --hidden 1024 --layers 8 --vocab 49152 --rollouts 32 --longest 512
    timeout 60 "$python" -m pytest -q tests/kernels/triton_parity.py -k end_to_end || failed+=(triton_parity)
    timeout 40 "$python" -m pytest -q tests/sampling/test_replay.py -k accelerator || failed+=(cuda_graphs)
    run fused 60 --device cuda --dtype bfloat16 --tokens 8192 --hidden 4096 --vocab 151936 --heads trained --methods opsd --ways floor torch triton --passes 5
    run step 150 --device cuda --dtype bfloat16 --models qwen3-0.6b --sides ours dynamic --repeats 1
    run rollouts 100 --device cuda --dtype bfloat16 --models qwen3-0.6b tiny --repeats 1
    run growth 50 --device cuda --axes tokens frozen teachers context group vocabulary
    run methods 30 --repeats 3 --methods opsd hsd sdpo sgsd
    # last: they take what is left
    run step 150 --device cuda --dtype bfloat16 --models qwen3-1.7b --sides ours dynamic --repeats 1
    run step 150 --method sdft --device cuda --dtype bfloat16 --models qwen3-0.6b --sides ours dynamic --repeats 1
    run compiled 60 --device cuda --dtype bfloat16 --models qwen3-0.6b --repeats 3
  fi
  echo "== $SECONDS s in all; not measured to the end: ${failed[*]:-none}"
  [ ${#failed[@]} -eq 0 ]
}

mark=$(mktemp)
trap 'rm -f "$mark"' EXIT
everything 2>&1 | tee "$out/gpu.log"
