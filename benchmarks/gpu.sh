#!/usr/bin/env bash
# Everything that waits for an accelerator, in one call of under 9 minutes: what is right first, then what it costs, what matters most before the rest.
#   benchmarks/gpu.sh          on an accelerator      benchmarks/gpu.sh --dry    the same at a CPU's size
# PYTHON: which python. OUT: where results and gpu.log go, benchmarks/out/gpu unless given, with --dry a new folder; what lies in benchmarks/out stays as it is.
# A benchmark that fails or takes too long is said, what it had measured stays, and the rest go on.
set -uo pipefail
cd "$(dirname "$0")/.."
dry=${1:-}
if [ $# -gt 1 ] || [ "${dry:---dry}" != --dry ]; then echo "gpu.sh: '$*' is not --dry, the only argument it takes" >&2; exit 2; fi
python=${PYTHON:-.venv/bin/python}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
missing=$("$python" - "$dry" <<'END'
import sys
from importlib.util import find_spec

needed = "torch transformers tokenizers safetensors huggingface_hub peft pydantic jaxtyping rich numpy scipy matplotlib filelock".split()
# what TRL imports, then the tests and the kernels
needed += "accelerate datasets pandas pyarrow".split() + ([] if sys.argv[1] else "pytest beartype triton".split())
missing = [name for name in needed if not find_spec(name)]
if not missing and not sys.argv[1]:
    import torch

    missing += [] if torch.cuda.is_available() else ["an accelerator that its torch sees"]
print(", ".join(missing))
END
) || { echo "gpu.sh: PYTHON=$python does not run; name one that does" >&2; exit 2; }
if [ -n "$missing" ]; then echo "gpu.sh: PYTHON=$python lacks $missing; nothing was measured" >&2; exit 2; fi
if [ -n "$dry" ]; then out=${OUT:-$(mktemp -d)}; else out=${OUT:-benchmarks/out/gpu}; fi
mkdir -p "$out" && export SELFDISTILL_BENCHMARKS_OUT=$out || exit 2
# the call ends within so many seconds
if [ -n "$dry" ]; then LIMIT=3600; else LIMIT=525; fi
failed=()

# within NAME SECONDS COMMAND...: a command within its seconds and what is left of the call
within() {
  local name=$1 seconds=$2 left=$((LIMIT - SECONDS))
  shift 2
  [ "$seconds" -gt "$left" ] && seconds=$left
  if [ "$seconds" -lt 5 ]; then echo "== $name: no time left"; failed+=("$name"); return; fi
  echo "== $name: $* (at most $seconds s, begun at $SECONDS s)"
  timeout --kill-after=5 "$seconds" "$@" || { echo "== $name ended with $?"; failed+=("$name"); }
}

# run NAME SECONDS ARGUMENTS...: a benchmark
run() { within "$1" "$2" "$python" "benchmarks/$1.py" "${@:3}"; }

# run_step and run_fused SECONDS ARGUMENTS...: at an accelerator's sizes
run_step() { run step "$1" --device cuda --dtype bfloat16 --sides ours dynamic --repeats 1 "${@:2}"; }
run_fused() { run fused "$1" --device cuda --dtype bfloat16 --tokens 8192 --hidden 4096 --vocab 151936 --heads trained --passes 5 "${@:2}"; }

everything() {
  if [ -n "$dry" ]; then
    run parity 600
    run fused 600 --tokens 128 --hidden 64 --vocab 4096 --heads trained --methods gkd --ways floor torch trl liger
    run step 600 --models tiny --sides ours --repeats 1
    run rollouts 600 --models tiny --repeats 1
    run growth 600 --axes tokens group
    run methods 600 --repeats 1 --methods opsd hsd --own
    run compiled 600 --repeats 1
  else
    run parity 50 --device cuda --hidden 1024 --layers 8 --vocab 49152 --rollouts 32 --longest 512
    within triton_parity 40 "$python" -m pytest -q tests/kernels/triton_parity.py -k end_to_end
    within cuda_graphs 30 "$python" -m pytest -q tests/sampling/test_replay.py -k accelerator
    run_fused 60 --methods opsd --ways floor torch triton plain
    run_fused 75 --methods gkd --ways floor triton trl liger
    run_step 160 --models qwen3-0.6b
    # from here on with what is left
    run_step 160 --models qwen3-1.7b
    run rollouts 90 --device cuda --dtype bfloat16 --models qwen3-0.6b tiny --repeats 1
    run_step 120 --method sdft --models qwen3-0.6b
    run growth 60 --device cuda --axes tokens frozen teachers context group vocabulary
    run methods 30 --repeats 3 --methods opsd hsd sdpo sgsd --own
    run compiled 60 --device cuda --dtype bfloat16 --models qwen3-0.6b --repeats 3
  fi
  echo "== $SECONDS s in all, results in $out; not measured to the end: ${failed[*]:-none}"
  [ ${#failed[@]} -eq 0 ]
}

everything 2>&1 | tee "$out/gpu.log"
