"""Failures as they really happen: a user's become one sentence, ours keep their traceback."""

import errno
import shutil
import subprocess
import sys

import numpy
import pytest
import torch

from selfdistill.errors import sentence


def raised(act):
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


def test_too_little_memory_names_the_knobs():
    for error in (
        raised(lambda: torch.empty(2**60, dtype=torch.uint8)),
        raised(lambda: numpy.empty(2**60, dtype="uint8")),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ):
        assert sentence(error) == "out of memory: lower eval.batch_size, sampling.batch_size or tokens_per_batch"


FULL = """
import sys, torch, safetensors.torch
from selfdistill.errors import sentence
acts = {
    "text": lambda: open("full/a", "w").write("x" * 10**6),
    "torch": lambda: torch.save(torch.zeros(10**6), "full/b"),
    "safetensors": lambda: safetensors.torch.save_file({"w": torch.zeros(10**6)}, "full/c"),
}
try:
    acts[sys.argv[1]]()
except Exception as error:
    print(type(error).__name__, "|", sentence(error))
"""


@pytest.mark.parametrize("writer", ["text", "torch", "safetensors"])
def test_a_full_disk_is_known_from_every_writer(writer, tmp_path):
    mount = "mkdir full && mount -t tmpfs -o size=100k none full"
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, f"{mount} && umount full && rmdir full"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("needs a disk of its own, through unshare and tmpfs")
    (tmp_path / "act.py").write_text(FULL)
    act = f"{mount} && {sys.executable} act.py {writer}"
    said = subprocess.run([*namespace, act], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "| the disk is full; free some space or choose another --output_dir" in said


def test_files_are_named_and_bugs_are_not_hidden(tmp_path):
    assert sentence(raised((tmp_path / "absent.toml").read_text)) == f"No such file or directory: {tmp_path / 'absent.toml'}"
    assert sentence(OSError(errno.ENOSPC, "No space left on device", "x")).startswith("the disk is full")
    assert sentence(ValueError("steps = 0\n  must be above 0")) == "steps = 0 must be above 0"
    for bug in (raised(lambda: {}["x"]), raised(lambda: None.x), RuntimeError("shape mismatch"), AssertionError()):
        assert sentence(bug) is None
