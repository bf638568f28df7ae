"""Passes that an accelerator runs by itself: one token a row starts hundreds of small kernels, which a host hands over more slowly than they run.

A pass is recorded as a CUDA graph, at the places in memory where it reads and leaves its tensors, and run again for as long as those stay.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

log = logging.getLogger(__name__)
DEVICES = {"cuda"}
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
AGREEING = 0.5
"""Share of the tokens that a recorded pass must choose as the pass did: kernels may round otherwise, and a token may fall on the other side."""
NEAR = {torch.float32: 0.01}
FAR = 0.1
"""How far log-probs of the same tokens may lie apart, in nats on average, by what products run in; FAR in types of fewer digits."""
_refused: WeakSet[nn.Module] = WeakSet()


class Replay:
    """`run` once, recorded; each call runs it again.

    run: reads and writes tensors that stay where they are, `state` among them: token, log-prob, and counts that are exact.
    What is recorded is run beside the pass itself before it is believed. Raises Refused where that fails or the host has a say in the pass.
    """

    def __init__(self, run: Callable[[], None], state: Sequence[Tensor], *, near: float) -> None:
        before = [t.clone() for t in state]
        try:
            with _host_has_no_say(state[0].device):
                run()
            after = [t.clone() for t in state]
            self._again = record(run)
            _put(state, before)
            self._again()
            if not agree(state, after, near=near):
                raise RuntimeError("what was recorded does not give what the pass gives")
            _put(state, after)
        except RuntimeError as error:
            raise Refused(str(error).splitlines()[0]) from None

    def __call__(self) -> None:
        self._again()


class Refused(Exception):
    """A pass that is not recorded, and why."""


def record(run: Callable[[], None]) -> Callable[[], object]:
    """A pass as a CUDA graph, which it is not run for. Raises RuntimeError where CUDA cannot record it."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    finally:
        # a recording that fails stays on its own
        torch.cuda.set_stream(stream)
    return graph.replay


def records(model: nn.Module, device: torch.device) -> bool:
    """Whether passes are tried: on an accelerator, but for a model that was refused before."""
    return device.type in DEVICES and model not in _refused


def refuse(model: nn.Module, reason: str) -> None:
    """Says so once for a model, which is not tried again."""
    if model not in _refused:
        log.warning("rollouts are written without CUDA graphs: %s; sampling.cuda_graphs = false does not try", reason)
    _refused.add(model)


def agree(one: Sequence[Tensor], other: Sequence[Tensor], *, near: float) -> bool:
    """Whether two passes left the same tokens, log-probs and counts, as far as rounding lets them."""
    (token, logp, *counts), (token_2, logp_2, *counts_2) = one, other
    same = token == token_2
    off = (logp - logp_2)[same & ~(logp.isnan() & logp_2.isnan())].abs()
    close = not len(off) or float(off.mean()) <= near
    return close and float(same.float().mean()) >= AGREEING and all(map(torch.equal, counts, counts_2))


@contextmanager
def _host_has_no_say(device: torch.device) -> Iterator[None]:
    """RuntimeError where a pass waits for the device's numbers, or brings some from the host."""
    mode = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else None
    try:
        if mode is not None:
            torch.cuda.set_sync_debug_mode("error")
        with _Watch():
            yield
    finally:
        if mode is not None:
            torch.cuda.set_sync_debug_mode(mode)


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _asks(func, args):
            raise RuntimeError(f"the model's pass waits for numbers of the device, in {func}")
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and any(isinstance(x, Tensor) and x.dim() and x.device.type != made.device.type for x in args):
            raise RuntimeError(f"the model's pass moves numbers between host and device, in {func}")
        return made


def _asks(func: Any, args: Any) -> bool:
    """`x[index]` says that its shape depends on numbers, and `x[index] = y` does not: true and false are what it depends on in both."""
    packet = getattr(func, "overloadpacket", func)
    if packet in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return not WAITS.isdisjoint(getattr(func, "tags", ()))


def _put(state: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
    for tensor, kept in zip(state, numbers, strict=True):
        tensor.copy_(kept)
