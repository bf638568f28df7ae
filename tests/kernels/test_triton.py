"""Triton's scoring is the torch one: triton_parity.py in a process of its own, in Triton's interpreter where there is no accelerator."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton has no wheel for this platform")
def test_triton_agrees_with_score_piece_and_autograd():
    """An interpreter chosen in this process would change every other kernel compiled in it."""
    parity = Path(__file__).with_name("triton_parity.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(parity)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
