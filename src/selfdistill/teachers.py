"""Whose weights read a view. A TeacherWeights part says who "teacher" is; `start` makes the reader that a run keeps and checkpoints."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from selfdistill.identity import weights_hash

if TYPE_CHECKING:
    from selfdistill.models import Policy


@runtime_checkable
class Reader(Protocol):
    """Weights that read views without gradient, and their state between steps."""

    def reading(self) -> Any:
        """Context manager giving the Policy to read with."""

    def update(self) -> None:
        """Follows the student after an optimizer step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class TeacherWeights(Protocol):
    def start(self, policy: "Policy", *, offload: bool = False) -> Reader:
        """The reader of a run that begins with these weights; `offload` keeps a copy on the CPU between passes."""
        ...


@dataclass(frozen=True)
class Live:
    """The student itself, in evaluation mode and without gradient."""

    def start(self, policy: "Policy", *, offload: bool = False) -> Reader:
        return _LiveReader(policy)


@dataclass(frozen=True)
class Frozen:
    """The weights at the start of the run: adapters switched off where the run began without any, else a copy."""

    def start(self, policy: "Policy", *, offload: bool = False) -> Reader:
        return _AdaptersOffReader(policy) if policy.fresh_adapter else _follower(policy, rate=0.0, offload=offload)


@dataclass(frozen=True)
class EMA:
    """phi <- (1 - rate) phi + rate theta after every step, kept in fp32 (SDPO rate 0.05, SDFT 0.01).

    With LoRA both factors are averaged from the student's initial adapter; the product of averages is not the average of products.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"EMA(rate={self.rate}): rate is the student's share a step and lies in (0, 1]; Frozen() never moves, Live() is the student")

    def start(self, policy: "Policy", *, offload: bool = False) -> Reader:
        return _follower(policy, rate=self.rate, offload=offload)


@dataclass(frozen=True)
class External:
    """Another checkpoint: a folder or hub id with the student's vocabulary. Raises ValueError where the vocabularies differ."""

    path: str = ""

    def start(self, policy: "Policy", *, offload: bool = False) -> Reader:
        from selfdistill.loading import load_policy

        if not self.path:
            raise ValueError('this method needs a teacher model: set method.teacher = "External(path)" to a folder or hub id')
        teacher = load_policy(self.path, dtype=str(policy.dtype).removeprefix("torch."), device=str(policy.device), setting="method.teacher", trained=False)
        if teacher.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise ValueError(f"the teacher {self.path!r} has another vocabulary than the student; a teacher must score the student's own tokens")
        return _CopyReader(student=policy, teacher=teacher, rate=0.0, offload=offload)


def _follower(policy: "Policy", *, rate: float, offload: bool) -> Reader:
    if policy.lora:
        return _AdapterReader(policy, rate=rate)
    return _CopyReader(student=policy, teacher=_frozen_copy(policy), rate=rate, offload=offload)


def _frozen_copy(policy: "Policy") -> "Policy":
    twin = copy.deepcopy(policy)
    twin.requires_grad_(False)
    return twin.eval()


@contextmanager
def evaluating(policy: "Policy") -> Iterator["Policy"]:
    """Evaluation mode without gradient, then the mode it was in."""
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            yield policy
    finally:
        policy.train(was_training)


class _LiveReader:
    """The student reads itself."""

    def __init__(self, policy: "Policy") -> None:
        self.policy = policy

    def reading(self) -> Any:
        return evaluating(self.policy)

    def update(self) -> None:
        """Nothing to follow."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class _AdaptersOffReader(_LiveReader):
    """The base under a LoRA student whose adapter began at zero."""

    @contextmanager
    def reading(self) -> Iterator["Policy"]:
        with self.policy.adapters_off(), evaluating(self.policy) as policy:
            yield policy


class _AdapterReader(_LiveReader):
    """A second LoRA adapter in fp32: frozen at the student's first one (rate 0) or following it."""

    def __init__(self, policy: "Policy", *, rate: float) -> None:
        super().__init__(policy)
        self.rate, self.name = rate, "average" if rate else "start"
        policy.add_adapter(self.name)

    @contextmanager
    def reading(self) -> Iterator["Policy"]:
        with self.policy.use_adapter(self.name), evaluating(self.policy) as policy:
            yield policy

    def update(self) -> None:
        if self.rate:
            student = self.policy.adapter_parameters("default")
            _follow(self.policy.adapter_parameters(self.name), student, self.rate)

    def state_dict(self) -> dict[str, Any]:
        return {name: p.detach().cpu() for name, p in self.policy.adapter_parameters(self.name).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _copy_into(self.policy.adapter_parameters(self.name), state)


class _CopyReader:
    """A second model: frozen or external (rate 0) or an fp32 average that follows the student."""

    def __init__(self, *, student: "Policy", teacher: "Policy", rate: float, offload: bool) -> None:
        self.student, self.teacher, self.rate, self.offload = student, teacher, rate, offload
        self.hash = weights_hash(teacher) if rate == 0 else ""
        if offload:
            teacher.to("cpu")
        # rounding a small rate away in bf16 would stop the average, so it is kept apart in fp32
        self.average = {n: p.detach().float() for n, p in teacher.named_parameters()} if rate else {}

    @contextmanager
    def reading(self) -> Iterator["Policy"]:
        with evaluating(self.teacher.to(self.student.device) if self.offload else self.teacher) as teacher, self._offloaded():
            yield teacher

    @contextmanager
    def _offloaded(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self.offload:
                self.teacher.to("cpu")

    def update(self) -> None:
        if self.rate:
            _follow(self.average, dict(self.student.named_parameters()), self.rate)
            _copy_into(dict(self.teacher.named_parameters()), self.average)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average} if self.rate else {"hash": self.hash}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError where the frozen weights are not those the run began with."""
        if self.rate:
            _copy_into(self.average, state["average"])
            _copy_into(dict(self.teacher.named_parameters()), self.average)
        elif state["hash"] != self.hash:
            raise ValueError(
                f"the teacher's weights have hash {self.hash[:12]}, but the run began with {state['hash'][:12]}; "
                f"point model.path (or the External teacher) at the folder the run was started from"
            )


@torch.no_grad()
def _follow(average: Mapping[str, torch.Tensor], student: Mapping[str, torch.Tensor], rate: float) -> None:
    for name, value in average.items():
        value.lerp_(student[name].to(device=value.device, dtype=value.dtype), rate)


@torch.no_grad()
def _copy_into(targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(sources[name])
