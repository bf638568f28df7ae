"""Triton's scoring is the torch one: triton_parity.py in a process of its own, in Triton's interpreter where there is no accelerator."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: it has wheels for Linux on x86-64 alone")


def test_triton_agrees_with_score_piece_and_autograd():
    """An interpreter chosen in this process would change every other kernel compiled in it."""
    parity = Path(__file__).with_name("triton_parity.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(parity)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTEST_ADDOPTS": "-p no:xdist"})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


POINTERS = {"row_of": "*i64", "first_pair": "*i64", "first_entry": "*i64", "entry_at": "*i64"}
POINTERS |= dict.fromkeys(("lse_of", "found", "of_rows", "of_pairs", "to_lse", "to_policy_lse", "to_reference", "to_divergence", "to_entry"), "*fp32")
POINTERS |= dict.fromkeys(("a", "b", "c", "student", "initial"), "*bf16")
CONSTANTS = {"SCALE": 1.0, "CAP": 30.0, "RATE": 0.9, "POLICY_RATE": 1.0, "POLICY": True, "INITIAL": True, "TILE": 2048}
CONSTANTS |= {"STRETCH": 1.0, "BOUND": 10.0, "BETA": 0.5, "LOG_BETA": -0.69, "LOG_REST": -0.69}

KINDS = [{"KIND": 2, "DIVERGENCE": 3, "CLIP": 0.05}, {"KIND": 1, "DIVERGENCE": 1, "CLIP": None}, {"KIND": 2, "BOUND": None, "DIVERGENCE": 2, "CLIP": None}]


@pytest.mark.parametrize("program", ["normalise", "compare", "differentiate"])
@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_every_program_compiles_for_an_accelerator(program, kinds, tmp_path, monkeypatch):
    """The interpreter takes more of Python than the compiler does, which needs no accelerator itself."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from selfdistill.kernels import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_kernels, program)
    constants = {name: value for name, value in (CONSTANTS | kinds).items() if name in function.arg_names}
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in function.arg_names}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 8})
    assert "ld.global" in compiled.asm["ptx"] and compiled.asm["cubin"]
