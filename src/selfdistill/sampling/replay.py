"""Passes that an accelerator runs by itself: one token a row starts hundreds of small kernels, which a host hands over more slowly than they run.

A pass is recorded as a CUDA graph, at the places in memory where it reads and leaves its tensors, and run again for as long as those stay.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

log = logging.getLogger(__name__)
DEVICES = {"cuda"}
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
AGREEING = 0.5
"""Share of the numbers that a recorded pass must leave as the pass did: kernels may round otherwise, and a token may fall on the other side."""


class Replay:
    """`run` once, recorded; each call runs it again.

    run: reads and writes tensors that stay where they are, and `state` among them last, so that one that is broken off leaves it as it was.
    What is recorded is run beside the pass itself before it is believed. Where that fails, or the host has a say in the pass, calls are plain
    runs and `refused` says why.
    """

    def __init__(self, run: Callable[[], None], state: Sequence[Tensor]) -> None:
        before = [t.clone() for t in state]
        try:
            with _HostHasNoSay():
                run()
            after = [t.clone() for t in state]
            self._again = record(run)
            _put(state, before)
            self._again()
            if not all(map(_agree, state, after)):
                raise RuntimeError("what was recorded does not give what the pass gives")
            _put(state, after)
            self.refused: str | None = None
        except RuntimeError as error:
            self._again, self.refused = run, str(error).splitlines()[0]
            _put(state, before)
            run()

    def __call__(self) -> None:
        self._again()


def record(run: Callable[[], None]) -> Callable[[], object]:
    """A pass as a CUDA graph, which it is not run for. Raises RuntimeError where CUDA cannot record it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


@cache
def tell(reason: str) -> None:
    """Once a reason."""
    log.warning("rollouts are written without CUDA graphs: %s; sampling.cuda_graphs = false does not try", reason)


class _HostHasNoSay(TorchDispatchMode):
    """Raises RuntimeError where a pass waits for the device's numbers, or brings some from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if WAITS & set(func.tags) and not _picks_by_number(func, args):
            raise RuntimeError(f"the model's pass waits for numbers of the device, in {func}")
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and any(isinstance(x, Tensor) and x.dim() and x.device.type != made.device.type for x in args):
            raise RuntimeError(f"the model's pass moves numbers between host and device, in {func}")
        return made


def _picks_by_number(func: Any, args: Any) -> bool:
    """`x[index]` says that its shape depends on numbers, but that is so of true and false only."""
    return func is torch.ops.aten.index.Tensor and all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in args[1])


def _put(state: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
    for tensor, kept in zip(state, numbers, strict=True):
        tensor.copy_(kept)


def _agree(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isclose(one, other, rtol=0.1, atol=0.1, equal_nan=True).float().mean() >= AGREEING)
