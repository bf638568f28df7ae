"""The loop and the step, straight down: sample, grade, annotate, teach, pack, score, objective, step."""

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfdistill.config import Settings
from selfdistill.data import ProblemStream
from selfdistill.method import Method
from selfdistill.metrics import rollout_metrics, token_metrics
from selfdistill.models import Policy
from selfdistill.optimizers import make_optimizer, make_schedule
from selfdistill.packing import pack
from selfdistill.reading import learn_from, policy_logp, room_for, score_groups, start_readers
from selfdistill.samples import training_samples
from selfdistill.sampling import Sampler
from selfdistill.sources import Request
from selfdistill.tasks import Task
from selfdistill.tools import Scored, Tools
from selfdistill.types import Batch, Group, Problem, TrainingSample

log = logging.getLogger(__name__)
APPLIED = ("grad_norm", "skipped_updates")
"""What is reported of an optimizer step."""
PHASES = ("sample", "grade", "annotate", "teach", "pack", "score", "objective", "step")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did: its metrics, the seconds of the eight phases, and the groups it learned from."""

    step: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    groups: list[Group]
    samples: list[TrainingSample]
    policy: Policy


class Trainer:
    """A run's state: the student, the weights that teach it, optimizer, schedule and the position in the data."""

    def __init__(
        self,
        *,
        policy: Policy,
        method: Method,
        problems: Sequence[Problem],
        sampler: Sampler,
        grade: Callable[[list[Group]], None],
        task: Task,
        settings: Settings,
    ) -> None:
        self.policy, self.method, self.sampler, self.grade, self.settings = policy, method, sampler, grade, settings
        self.readers = start_readers(method, policy, offload=settings.model.teacher_offload)
        self.stream = ProblemStream(problems, seed=settings.seed)
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, settings.optimizer)
        self.schedule = make_schedule(self.optimizer, settings.optimizer, updates=settings.steps * self.updates)
        self.steps_done = 0
        self.watch: Callable[[str], AbstractContextManager[Any]] = nullcontext
        self.clock = _Clock(self.watch)
        self.tools = self._tools(task)

    def __iter__(self) -> Iterator[StepResult]:
        """The steps that are left of the run."""
        while self.steps_done < self.settings.steps:
            yield self.step()

    def step(self) -> StepResult:
        """One batch of problems through the eight phases."""
        groups = self.rollouts()
        self.annotate(groups)
        return self.learn(groups)

    def rollouts(self) -> list[Group]:
        """The step's beginning: a batch of problems, sampled and graded."""
        self.clock = clock = _Clock(self.watch)
        with clock("sample"):
            problems, n = self.stream.draw(self.settings.prompts_per_step), self.settings.sampling.num_generations
            groups = self.method.source(Request(sampler=self.sampler, problems=problems, n=n, grade=self.grade, draw=self.stream.draw))
        with clock("grade"):
            self.grade([g for g in groups if any(r.reward is None for r in g.rollouts)])
        return groups

    def annotate(self, groups: list[Group]) -> None:
        """The method's feedback stages, in their order."""
        self.tools.metrics.clear()
        with self.clock("annotate"):
            for write in self.method.feedback:
                write(groups, self.tools)

    def learn(self, groups: list[Group]) -> StepResult:
        """The step's end: what the annotated groups teach, packed, scored and followed."""
        clock = self.clock
        with clock("teach"):
            n = self.settings.mini_batches
            parts = [training_samples(groups[i::n], self.method, encode=self.policy.chat.encode) for i in range(n)]
            samples = [sample for part in parts for sample in part]
        with clock("pack"):
            room, budget = room_for(self.policy, self.readers), self.settings.tokens_per_batch
            batches = [[b.to(self.policy.device) for b in pack(part, budget, room)] for part in parts]
        if not any(batches):
            log.warning("step %d: no rollout has anything to learn from (no teacher and no advantage); weights stay as they are", self.steps_done + 1)
        lr = float(self.schedule.get_last_lr()[0])
        updates = self._updates(batches, clock)
        self.steps_done += 1
        with clock("step"):
            self.sampler.sync(self.policy, self.steps_done)
        applied = {n: v for n, v in updates.items() if n in APPLIED}
        metrics: dict[str, float] = rollout_metrics(groups, samples) | token_metrics(updates) | applied | self.tools.metrics
        seconds = clock.seconds
        metrics |= {"lr": lr, "tokens_per_s": metrics["trained_tokens"] / sum(seconds.values())}
        return StepResult(step=self.steps_done, metrics=metrics, seconds=seconds, groups=groups, samples=samples, policy=self.policy)

    def _tools(self, task: Task) -> Tools:
        return Tools(
            sampler=self.sampler,
            policy=self.policy,
            readers=self.readers,
            grade=self.grade,
            task=task,
            score=self._score,
            problems=self.stream.problems,
            memory={},
            metrics={},
        )

    def _score(self, groups: list[Group]) -> list[Scored]:
        return score_groups(groups, policy=self.policy, readers=self.readers, method=self.method, budget=self.settings.tokens_per_batch)

    @property
    def updates(self) -> int:
        """Optimizer steps a step."""
        return self.settings.updates_per_step * self.settings.mini_batches

    def _updates(self, parts: list[list[Batch]], clock: "_Clock") -> dict[str, float]:
        """Optimizer steps on the same rollouts, one a part; all but the first clip against the log-probs that the step began with."""
        self.policy.train()
        with clock("score"):
            # the first part needs them from its second update on, and that pass of its own is one before any update
            for part in parts[1:]:
                part[:] = [replace(batch, proximal_logp=policy_logp(self.policy, self.method, batch)) for batch in part]
        totals: Counter[str] = Counter()
        for _ in range(self.settings.updates_per_step):
            for part in parts:
                totals.update(self._update(part, clock) if part else self._nothing())
        passes, steps = self.settings.updates_per_step, self.settings.updates_per_step * max(sum(map(bool, parts)), 1)
        # sums over tokens cover the parts together, the rest is one number an optimizer step
        return {name: value / (steps if name.startswith(("loss_", *APPLIED)) else passes) for name, value in totals.items()}

    def _update(self, batches: list[Batch], clock: "_Clock") -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with clock("score"):
                learned = learn_from(self.policy, self.readers, self.method, batch)
            with clock("objective"):
                learned.loss.backward()
            if batch.proximal_logp is None and self.settings.updates_per_step > 1:
                batches[i] = replace(batch, proximal_logp=learned.policy_logp)
            for name, value in learned.sums.items():
                sums[name] = sums.get(name, 0.0) + value
        with clock("step"):
            applied = self._apply()
        # one copy: each would wait for the device
        return dict(zip(sums, torch.stack([value.double() for value in sums.values()]).tolist(), strict=True)) | applied

    def _nothing(self) -> dict[str, float]:
        """An update without anything to learn: the schedule counts it, so that runs of equal length end at equal rates."""
        with warnings.catch_warnings():
            # torch warns of a schedule that goes on before its optimizer ever did
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        return {}

    def _apply(self) -> dict[str, float]:
        """One optimizer step, left out where the gradient is not finite; teachers follow."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.optimizer.max_grad_norm or float("inf")))
        finite = norm == norm and norm != float("inf")
        if finite:
            self.optimizer.step()
        else:
            log.warning("step %d: the gradient is not finite (norm %s); this update is left out", self.steps_done + 1, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        for reader in set(self.readers.values()) if finite else ():
            reader.update()
        return {"grad_norm": norm if finite else 0.0, "skipped_updates": float(not finite)}


class _Clock:
    """Seconds by phase. An accelerator's are of its own clock, so that phases own their work, and it is waited for when they are asked for."""

    def __init__(self, watch: Callable[[str], AbstractContextManager[Any]]) -> None:
        self.watch = watch
        self.marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with self.watch(phase):
            start = _now()
            yield
            self.marks.append((phase, start, _now()))

    @property
    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        for phase, start, end in self.marks:
            found[phase] += _between(start, end)
        return found


def _now() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000
