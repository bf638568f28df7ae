"""Recorded passes. Where there is no accelerator, a tape stands for CUDA's graphs: it runs the same operations on the same places in memory, and no Python."""

import gc
import weakref
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from tiny_models import reference_logp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from writing import FULL, PROMPTS, STOPS, policy_of, written

from selfdistill.models import Policy
from selfdistill.sampling import loop, replay, sharing
from selfdistill.sampling.cache import ROOM
from selfdistill.sampling.choosing import Choice


class Tape(TorchDispatchMode):
    """As a CUDA graph: recording leaves no number changed, and a run reads and writes where the recorded one did."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.before = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        writes = func._schema.is_mutable
        if writes:
            for tensor in tree_flatten((args, kwargs))[0]:
                if isinstance(tensor, torch.Tensor):
                    self.before.setdefault(tensor.untyped_storage().data_ptr(), (tensor, tensor.untyped_storage().clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out, writes))
        return out

    def undo(self) -> None:
        for tensor, storage in self.before.values():
            tensor.untyped_storage().copy_(storage)

    @torch.autocast("cpu", enabled=False)
    def run(self) -> None:
        for func, args, kwargs, out, writes in self.calls:
            again = func(*args, **kwargs)
            if not writes:
                for kept, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                        kept.copy_(new)


@pytest.fixture
def taped(monkeypatch) -> list[Tape]:
    """Passes are recorded on a CPU too; the tapes."""
    tapes = []

    def record(run: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        with tape:
            run()
        tape.undo()
        tapes.append(tape)
        return tape.run

    monkeypatch.setattr(replay, "record", record)
    monkeypatch.setattr(replay, "DEVICES", {"cpu"})
    # as on an accelerator
    monkeypatch.setattr(sharing, "ROWS", 10**9)
    return tapes


def plain(policy: Policy, *, limit: int = 24, **decoding) -> list[loop.Line]:
    torch.manual_seed(0)
    return loop.write(policy, PROMPTS, choice=Choice(**decoding), limit=limit, stops=STOPS, cuda_graphs=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FULL)
def test_recorded_passes_write_what_passes_write(family, attention, taped, caplog):
    policy = policy_of(family, attention)
    for decoding in ({}, {"temperature": 0.7, "top_p": 0.9, "top_k": 12}, {"temperature": 0.0}):
        recorded = written(policy, limit=40, **decoding)
        assert taped, caplog.text
        taped.clear()
        expected = plain(policy, limit=40, **decoding)
        assert not taped
        assert [line.ids for line in recorded] == [line.ids for line in expected]
        for a, b in zip(recorded, expected, strict=True):
            assert a.logp == pytest.approx(b.logp, abs=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_log_probs_are_those_of_a_full_pass_as_storage_grows_and_rows_leave(dtype, taped):
    policy = policy_of("qwen3")
    policy.autocast_dtype, policy.base.config.max_position_embeddings = dtype, 512
    prompts, forwards = [[5, 6, 7], [*range(30, 50)], [9] * 5, [12, 13]] * 3, []
    policy.base.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    torch.manual_seed(0)
    lines = loop.write(policy, prompts, choice=Choice(), limit=2 * ROOM + 20, stops=[1])
    forwards_while_written, steps = len(forwards), max(len(line.ids) for line in lines)
    assert steps > ROOM and min(len(line.ids) for line in lines) < 80, "storage grows, rows leave"
    assert len(taped) < 8 and forwards_while_written == 2 + 2 * len(taped), "the prompts, one plain pass to compare with; a recording takes the pass twice"
    for prompt, line in zip(prompts, lines, strict=True):
        near = pytest.approx(reference_logp(policy, prompt, line.ids), abs=0.2 if dtype else 2e-5)
        assert line.logp == near


def test_half_of_the_rows_leave_at_once(taped):
    policy, rows = policy_of("qwen3"), []
    policy.base.model.layers[0].register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    written(policy, prompts=PROMPTS * 6, limit=80)
    left = list(dict.fromkeys(rows[1:]))
    assert len(left) > 2 and all(2 * after <= before for before, after in pairwise(left))


def of_the_host(policy: Policy, ask: Callable[[torch.Tensor], object]) -> None:
    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        ask(inputs[0])

    policy.base.model.layers[1].register_forward_pre_hook(hook)


@pytest.mark.parametrize(
    "ask",
    [
        lambda states: float(states.sum()),
        lambda states: states[states > 0].sum(),
        lambda states: states.clone().__setitem__(states > 0, 0.0),
        lambda states: states.clone().__setitem__(states > 0, torch.zeros(1)),
        lambda states: states.nonzero(),
        lambda states: bool((states > 0).any()),
    ],
    ids=["number", "mask", "number by mask", "write by mask", "nonzero", "bool"],
)
def test_a_pass_that_asks_the_host_is_not_recorded(ask, taped, caplog):
    policy = policy_of("qwen3")
    of_the_host(policy, ask)
    lines = written(policy)
    assert not taped and [line.ids for line in lines] == [line.ids for line in plain(policy)]
    assert len(caplog.records) == 1 and "waits for numbers of the device" in caplog.text and "sampling.cuda_graphs" in caplog.text
    written(policy)
    assert len(caplog.records) == 1, "said once"


def test_a_pass_that_cannot_be_recorded_or_is_recorded_wrongly_is_run_as_it_is(taped, monkeypatch, caplog):
    def fails(run):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    taping, wrong = replay.record, []

    def elsewhere(run):
        taping(run)
        tape = taped.pop()
        # a recorded operation finds its input gone
        call = next(i for i, (func, *_) in enumerate(tape.calls) if func is torch.ops.aten.embedding.default)
        func, args, kwargs, out, writes = tape.calls[call]
        tape.calls[call] = (func, (torch.randn_like(args[0]), *args[1:]), kwargs, out, writes)
        wrong.append(tape)
        return tape.run

    for record, said in ((fails, "operation not permitted when stream is capturing;"), (elsewhere, "does not give what the pass gives")):
        monkeypatch.setattr(replay, "record", record)
        policy = policy_of("qwen3")
        for _ in range(2):
            lines = written(policy)
            assert [line.ids for line in lines] == [line.ids for line in plain(policy)] and said in caplog.text
            for prompt, line in zip(PROMPTS, lines, strict=True):
                assert line.logp == pytest.approx(reference_logp(policy, prompt, line.ids), abs=1e-5)
    assert len(wrong) == 1 and len(caplog.records) == 2, "a model is not tried again"


def test_a_pass_that_counts_on_the_host_is_not_believed(taped, caplog):
    """Recorded, its count stays; run beside the pass that was recorded, nothing shows."""
    policy = policy_of("qwen3")

    def hook(module, args, kwargs):
        return (args[0] * (1 + kwargs["past_key_values"].get_seq_length() % 7), *args[1:]), kwargs

    policy.base.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True)
    lines = written(policy)
    assert len(taped) == 1 and "does not give what a plain one gives" in caplog.text
    assert [line.ids for line in lines] == [line.ids for line in plain(policy)]


@pytest.mark.parametrize("ask", [None, lambda states: float(states.sum())], ids=["recorded", "refused"])
def test_nothing_is_held_when_rollouts_are_written(ask, taped, monkeypatch):
    policy, caches, made = policy_of("qwen3"), [], loop.RolloutCache
    if ask:
        of_the_host(policy, ask)
    monkeypatch.setattr(loop, "RolloutCache", lambda windows: caches.append(weakref.ref(cache := made(windows))) or cache)
    gc.collect()
    gc.disable()
    try:
        written(policy)
        taped.clear()
        assert len(caches) == 1 and caches[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_layers_with_windows_are_not_recorded(family, taped):
    written(policy_of(family))
    assert not taped


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_on_an_accelerator(dtype, autocast, monkeypatch):
    said, recorded, real = [], [], replay.record
    monkeypatch.setattr(loop, "refuse", lambda model, reason: said.append(reason))
    monkeypatch.setattr(replay, "record", lambda run: recorded.append(1) or real(run))
    policy = policy_of("qwen3")
    policy.base.to("cuda", torch.float32 if autocast else dtype)
    policy.autocast_dtype = dtype if autocast else None
    for decoding in ({}, {"top_p": 0.9, "top_k": 12}, {"temperature": 0.0}):
        lines = written(policy, prompts=PROMPTS * 8, limit=2 * ROOM, **decoding)
        assert recorded and not said
        for prompt, line in zip(PROMPTS * 8, lines, strict=True):
            with torch.no_grad(), policy.autocast():
                logp = reference_logp(policy, prompt, line.ids)
            assert line.logp == pytest.approx(logp, abs=0.3 if dtype == torch.bfloat16 else 1e-3)
