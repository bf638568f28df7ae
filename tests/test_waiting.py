"""Learning from a micro-batch that is on a device asks nothing of it: what the host has to know it knew before."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stepping import NAMES, method_named, prepared
from tiny_models import tiny_groups, tiny_policy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import selfdistill
from selfdistill.packing import pack
from selfdistill.reading import learn_from, room_for, start_readers
from selfdistill.samples import training_samples
from selfdistill.sampling.choosing import Choice
from selfdistill.sampling.replay import _asks
from selfdistill.types import Batch

OURS = str(Path(selfdistill.__file__).parent)
READS = (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.cpu)


class Dispatched(TorchDispatchMode):
    """Operations whose shape or answer depends on a device's numbers."""

    def __init__(self, asked: list[str]) -> None:
        super().__init__()
        self.asked = asked

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # transformers asks once a pass whether positions begin anew
        caller = next(frame.filename for frame in reversed(traceback.extract_stack()) if "/torch/" not in frame.filename and frame.filename != __file__)
        if _asks(func, args) and caller.startswith(OURS):
            self.asked.append(str(func))
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    """Methods that copy a tensor to the host."""

    def __init__(self, asked: list[str]) -> None:
        super().__init__()
        self.asked = asked

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READS:
            self.asked.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[list[str]]:
    asked: list[str] = []
    with Dispatched(asked), Called(asked):
        yield asked


def as_on_a_device(batch: Batch) -> Batch:
    """With what `to` keeps on the host."""
    packed = {role: replace(view, kept_ids=view.host_ids) for role, view in batch.views.items()}
    return replace(batch, kept=batch.host, student=replace(batch.student, kept_ids=batch.student.host_ids), views=packed)


@pytest.mark.parametrize("name", [name for name in NAMES if "(" not in name])
def test_no_method_waits_for_a_device_while_it_learns(name):
    policy = tiny_policy().train()
    method = method_named(name)
    readers = start_readers(method, policy)
    groups = prepared(method, tiny_groups(policy, n=4), policy, readers=readers)
    batches = pack(training_samples(groups, method, encode=policy.chat.encode), 10**6, room_for(policy, readers))
    assert batches
    for batch in map(as_on_a_device, batches):
        with watched() as asked:
            learn_from(policy, readers, method, batch).loss.backward()
        assert not asked


def test_the_watch_sees_what_waits():
    with watched() as asked:
        Choice(top_p=0.5)(torch.zeros(2, 300), torch.rand(2))
    assert any("_local_scalar_dense" in name for name in asked)
    with watched() as asked:
        torch.ones(2).tolist()
    assert asked == ["tolist"]
