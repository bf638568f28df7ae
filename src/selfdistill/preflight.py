"""Proof before step 1 that student and teacher read the same tokens: both prompts shown, and the loss zero where it must be.

Flows in: a policy, a method, a few real problems. Flows out: a Preview a problem, or one sentence that stops the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nlargest

import torch

from selfdistill.checkpoint import random_state, restore_random_state
from selfdistill.contexts import answered
from selfdistill.divergences import ForwardKL
from selfdistill.lockstep import exchange
from selfdistill.method import Method
from selfdistill.models import Policy
from selfdistill.packing import cut, pack
from selfdistill.reading import Readers, read, room_for
from selfdistill.samples import training_samples
from selfdistill.sources import told
from selfdistill.targets import TeacherDistribution
from selfdistill.teachers import Live
from selfdistill.trainer import Trainer
from selfdistill.types import Group, Problem, Rollout, Teaching, TokenSignals, View, Weights

LONGEST = 16
"""Problems whose windows are made room for before a run; which is longest in tokens is known only once they are rendered."""
JOIN = 8
"""Tokens shown on either side of where a prompt joins the completion."""


@dataclass(frozen=True)
class _OwnPrompt:
    """A context that shows the teacher exactly what the student saw."""

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return [Teaching(views={"teacher": View(messages=(), weights="student", prompt_ids=tuple(rollout.prompt_ids))})]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One rendered prompt of a view."""

    role: str
    weights: Weights
    text: str
    ids: tuple[int, ...]
    header: tuple[str, ...]
    """The last tokens before the completion."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What student and teachers read around one rollout, and the tokens the completion begins with."""

    problem: Problem
    student: Prompt
    teachers: tuple[Prompt, ...]
    completion: tuple[str, ...]


def preview(policy: Policy, method: Method, groups: Sequence[Group]) -> list[Preview]:
    """One preview per taught rollout, the first of each group."""
    shown = []
    for group in groups:
        samples = training_samples([group], method, encode=policy.chat.encode)
        sample = next((s for s in samples if s.views), samples[0] if samples else None)
        if sample is not None:
            rollout = sample.rollout
            student = _prompt(policy, "student", "student", tuple(rollout.prompt_ids))
            teachers = tuple(_prompt(policy, role, view.weights, view.prompt_ids or ()) for role, view in sorted(sample.views.items()))
            shown.append(Preview(problem=group.problem, student=student, teachers=teachers, completion=_tokens(policy, rollout.completion_ids[:JOIN])))
    return shown


def _prompt(policy: Policy, role: str, weights: Weights, ids: tuple[int, ...]) -> Prompt:
    return Prompt(role=role, weights=weights, text=str(policy.tokenizer.decode(list(ids))), ids=ids, header=_tokens(policy, ids[-JOIN:]))


def _tokens(policy: Policy, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(policy.tokenizer.convert_ids_to_tokens(list(ids)))


def prove_alignment(*trainers: Trainer) -> list[dict[str, float]]:
    """`check_alignment` on real rollouts of the first problems, which must also fit the micro-batch budget; the random state is as before it."""
    for trainer in trainers:
        check_windows(trainer)
    state = random_state()
    n = min(2, trainers[0].settings.sampling.num_generations)
    found = []
    for trainer, groups in zip(trainers, first_rollouts(*trainers, problems=2, n=n), strict=True):
        found.append(check_alignment(trainer.policy, trainer.method, groups))
        samples = training_samples(groups, trainer.method, encode=trainer.policy.chat.encode)
        cut(samples, trainer.settings.tokens_per_batch, room_for(trainer.policy, trainer.readers))
    restore_random_state(state)
    return found


def check_windows(trainer: Trainer) -> None:
    """Raises ValueError where windows behind a whole completion do not fit the model's positions: on the longest problems, under student and teachers.

    Room is needed at the very end of a rollout, which a run may first probe hours after it began.
    """
    window = max((getattr(stage, "room", 0) for stage in trainer.method.feedback), default=0)
    limit = trainer.policy.max_length
    if not window or limit is None:
        return
    problems = nlargest(LONGEST, trainer.stream.problems, key=lambda p: len(str(p.prompt)) + len(p.solution))
    groups = [Group(problem=p, rollouts=[trainer.sampler.write(p, "")]) for p in problems if trainer.sampler.has_room(p)]
    for stage in trainer.method.feedback:
        if getattr(stage, "lends", False):
            stage(groups, trainer.tools)
    rows = [(r, trainer.method.context(r, g)) for g in groups for r in g.rollouts]
    views = [view for _, teachings in rows for teaching in teachings for view in teaching.views.values()]
    prompts = [r.prompt_ids for r, _ in rows] + [view.prompt_ids or trainer.policy.chat.encode(view.messages, view.thinking) for view in views]
    longest, completion = max(map(len, prompts), default=0), trainer.settings.sampling.max_completion_length
    if longest + completion + window > limit:
        raise ValueError(
            f"windows of {window} tokens behind a prompt of {longest} and a completion of {completion} are above the model's {limit} positions; "
            f"lower sampling.max_completion_length, or method.window of topd"
        )


def first_rollouts(*trainers: Trainer, problems: int, n: int) -> list[list[Group]]:
    """Each trainer's graded and annotated completions of the first problems, told as its method's source tells them; no problem is drawn for it."""
    written = []
    for trainer in trainers:
        first, tell = told(trainer.method.source, trainer.stream.problems[:problems])
        groups = tell(trainer.sampler, first, n)
        trainer.grade(groups)
        written.append(groups)
    exchange(written)
    for trainer, groups in zip(trainers, written, strict=True):
        trainer.annotate(groups)
    return written


def check_alignment(policy: Policy, method: Method, groups: Sequence[Group]) -> dict[str, float]:
    """Largest measured deviations; ValueError with one sentence where a run must not start.

    (1) every teacher prompt ends in the student's assistant header, up to the declared think block; (2) the student's prompt is
    what its template renders; (3) with the student's own weights and prompt the divergence is zero; (4) the engine's
    log-probs are the trainer's.
    """
    for shown in preview(policy, method, groups):
        _check_headers(policy, shown)
    for group in groups:
        _check_student_prompt(policy, group)
    divergence = _own_divergence(policy, method, groups)
    if divergence > 1e-4:
        raise ValueError(f'with its own weights and prompt the student is {divergence:.2e} nats from itself, above 1e-4; set model.layout = "rows"')
    gap = _engine_gap(policy, groups)
    limit = 1e-3 if policy.dtype == torch.float32 else 0.1
    if gap > limit:
        raise ValueError(
            f"sampler and trainer disagree on the sampled tokens by {gap:.2e} nats on average, above {limit:g}; "
            f'check sampling.temperature, or set model.attention = "eager"'
        )
    return {"own_divergence": divergence, "engine_gap": gap}


def _check_headers(policy: Policy, shown: Preview) -> None:
    for teacher in shown.teachers:
        student_header, teacher_header = (policy.chat.header(ids) for ids in (shown.student.ids, teacher.ids))
        if student_header != teacher_header:
            raise ValueError(
                f"the {teacher.role} prompt joins the completion with {policy.tokenizer.decode(teacher_header)!r}, the student's with "
                f"{policy.tokenizer.decode(student_header)!r}; only the empty think block may differ: check the chat template and sampling.thinking"
            )


def _check_student_prompt(policy: Policy, group: Group) -> None:
    for rollout in (turn for last in group.rollouts for turn in (*last.earlier, last)):
        messages = answered(rollout, group.problem)
        if rollout.prompt_ids not in [policy.chat.encode(messages, thinking) for thinking in (None, True, False)]:
            raise ValueError(
                f"problem {group.problem.id or group.problem.prompt!r}: the sampled prompt is not what the chat template renders for training; "
                f"rollouts and training must come from the same tokenizer"
            )


def _own_divergence(policy: Policy, method: Method, groups: Sequence[Group]) -> float:
    """Largest divergence of the student from itself over all tokens, in nats.

    Labels are left out: windows would lie among the student's rows and not among the teacher's, and bf16 rounds rows of another shape otherwise.
    """
    own = replace(method, context=_OwnPrompt(), feedback=(), target=TeacherDistribution(), divergence=ForwardKL(), distill_coef=1.0)
    same = replace(own, reference_coef=0.0, policy_coef=0.0, label_coef=0.0)
    return max((float(s.divergence.abs().max()) for s in _signals(policy, same, groups)), default=0.0)


def _engine_gap(policy: Policy, groups: Sequence[Group]) -> float:
    same = Method(context=_OwnPrompt())
    gaps = [(s.policy_logp - s.batch.behavior_logp).abs() for s in _signals(policy, same, groups)]
    # a stage may have left no token of these rollouts trained
    return float(torch.cat(gaps).mean()) if gaps else 0.0


def _signals(policy: Policy, method: Method, groups: Sequence[Group]) -> list[TokenSignals]:
    readers: Readers = {"student": Live().start(policy)}
    with Live().start(policy).reading():
        batches = pack(training_samples(groups, method, encode=policy.chat.encode), 2**62)
        return [read(policy, readers, method, batch.to(policy.device)) for batch in batches]
