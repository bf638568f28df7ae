"""A whole step without an optimizer, and hand-made token signals: what comparisons of losses and gradients are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from selfdistill.heads import Head
from selfdistill.judges import StepJudge
from selfdistill.loss import objective
from selfdistill.method import Method
from selfdistill.method_names import build_method
from selfdistill.methods import CONTROLS, METHODS, WRAPPERS
from selfdistill.models import Policy
from selfdistill.packing import pack
from selfdistill.reading import Readers, read, score_groups, start_readers
from selfdistill.samples import training_samples
from selfdistill.sampling import Sampler
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.scoring import Reading, score
from selfdistill.sources import Request
from selfdistill.steps import ClosedBy
from selfdistill.teachers import External, Frozen
from selfdistill.tools import Tools
from selfdistill.tutoring import AsWritten
from selfdistill.types import Batch, Group, Packed, Problem, Rollout, TokenSignals, TrainingSample, View

CONTROLLED = ["null_context(opsd)", "shuffled_peers(hsd)", "constant_weight(pw_opsd)", "no_clip(opsd)", "other_direction(hsd)", "other_weights(opsd)"]
NAMES = [f.__name__ for f in METHODS] + CONTROLLED
NAMES += [f"{w.__name__}({inner})" for w in WRAPPERS if w not in CONTROLS for inner in ("hsd", "opsd", "purified_opsd")]


SKILLS = str(Path(__file__).parent / "fixtures" / "skills.json")
# a random model's judgements hold no score, so rollouts of theirs would be left out of the loss
JUDGED = {"exprl": {"judge": StepJudge()}, "exprl_process": {"judge": StepJudge(), "steps": ClosedBy(" ")}}
# nor does it write skills, and its feedback names nothing
GIVEN = JUDGED | {"sgsd": {"bank": SKILLS}, "opcod": {"anchor": AsWritten()}}


@dataclass(frozen=True)
class Spoken:
    """What a checker says of a word."""

    text: str
    wrong: bool


class Words:
    """A task whose steps are words: those with an even number hold."""

    def problems(self, split):
        return []

    def verify(self, problem, completion):
        return float(completion.endswith(problem.answer))

    def critique(self, problem, completion):
        held = list(takewhile(_holds, completion.split()))
        return completion if held == completion.split() else " ".join([*held, problem.answer])

    def judge(self, problem, completion):
        return [Spoken(word, not _holds(word)) for word in completion.split()]


class Bare:
    """A task that verifies and says nothing more."""

    def problems(self, split):
        return []

    def verify(self, problem, completion):
        return None


def breaking(name: str) -> Bare:
    """A task whose `name` raises."""

    def speak(self, problem, completion):
        raise KeyError("gold")

    return type("Breaks", (Bare,), {name: speak})()


def _holds(word: str) -> bool:
    return int(word[1:]) % 2 == 0


def method_named(name: str) -> Method:
    """A method that needs no second checkpoint, and no writer that makes sense."""
    method = build_method(name, GIVEN.get(name, {}), max_completion_length=16)
    return replace(method, teacher=Frozen()) if isinstance(method.teacher, External) else method


def prepared(method: Method, groups: list[Group], policy: Policy, *, readers: Readers | None = None) -> list[Group]:
    """Groups after the method's feedback stages."""
    tools = tools_of(policy, method, readers=readers)
    # a model that is its own peer: what matters here is what a stage leaves behind
    tools = replace(tools, peer=tools)
    for group in groups:
        group.peer = group
    for write in method.feedback:
        write(groups, tools)
    return groups


def tools_of(policy: Policy, method: Method, *, problems: Sequence[Problem] = (), readers: Readers | None = None) -> Tools:
    """What a run would hand the method's feedback stages; every rollout it grades is right."""
    readers = readers or start_readers(method, policy)
    return Tools(
        sampler=TransformersSampler(policy=policy, max_completion_length=16),
        policy=policy,
        readers=readers,
        grade=_all_right,
        task=Words(),
        score=lambda groups: score_groups(groups, policy=policy, readers=readers, method=method, budget=10**6),
        problems=problems,
        memory={},
        metrics={},
    )


def _all_right(groups: list[Group]) -> None:
    for rollout in (r for g in groups for r in g.rollouts):
        rollout.reward = 1.0


def request_for(sampler: Sampler, problems: Sequence[Problem], n: int) -> Request:
    """What a step would ask of a source; nothing is graded and there are no further problems."""
    return Request(sampler=sampler, problems=problems, n=n, grade=lambda groups: None, draw=lambda count: [])


def perturb(policy: Policy, *, size: float = 0.03, seed: int = 1) -> None:
    """Moves every weight a little, as training would: teachers kept from before now differ from the student."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))


def gradient_of(policy: Policy) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in policy.parameters()])


def step(method: Method, policy: Policy, groups: list[Group], *, budget: int = 10**6, chunk: int | None = None, readers=None):
    """(loss, gradient, signals) of a whole step."""
    policy.zero_grad()
    total, signals = 0.0, []
    readers = readers or start_readers(method, policy)
    for batch in pack(training_samples(groups, method, encode=policy.chat.encode), budget):
        found = read(policy, readers, method, batch, chunk=chunk)
        loss, _ = objective(method, found)
        loss.backward()
        total += float(loss.detach())
        signals.append(found)
    return total, gradient_of(policy), signals


def batch_of(lengths: Sequence[int], *, rewards: Sequence[float] | None = None, teachers: int = 1, seed: int = 0, vocab: int = 11, **scales: float) -> Batch:
    """A packed batch of random rollouts, each read by `teachers` identical views; scales are the samples' own."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i, length in enumerate(lengths):
        ids = torch.randint(0, vocab, (length,), generator=generator).tolist()
        logp = (-3 * torch.rand(length, generator=generator)).tolist()
        rollout = Rollout(prompt_ids=[0, 1], completion_ids=ids, behavior_logp=logp, text="", index=i, reward=rewards[i] if rewards else 0.0)
        views = [{"teacher": View(messages=(), prompt_ids=(2,))}] * teachers or [{}]
        scales = scales or {"distill_scale": 1.0}
        samples += [TrainingSample(rollout=rollout, views=v, advantage=rollout.reward or 0.0, **scales) for v in views]
    (batch,) = pack(samples, 10**6)
    return batch


def signals_of(batch: Batch, *, seed: int = 0, **given: Tensor) -> TokenSignals:
    """Random scalars per token in place of what a model would say; `given` replaces any of them."""
    generator = torch.Generator().manual_seed(seed)
    names = ("logp", "policy_logp", "label_kl", "entropy", "target_logp", "target_entropy", "divergence", "reference_kl")
    values = {name: torch.rand(len(batch.token), generator=generator) * (-1 if "logp" in name else 1) for name in names}
    return TokenSignals(batch=batch, **(values | given))


def score_tensors(
    method: Method,
    *,
    hidden: Tensor,
    head: Head,
    views: dict[str, tuple[Tensor, Head]],
    token: Tensor,
    chunk: int | None = None,
) -> TokenSignals:
    """Scoring on bare tensors: one rollout of the given tokens, every view read by the given states and head."""
    ids = token.tolist()
    rollout = Rollout(prompt_ids=[0], completion_ids=ids, behavior_logp=[0.0] * len(ids), text="", reward=1.0)
    sample = TrainingSample(rollout=rollout, views={r: View(messages=(), prompt_ids=(0,)) for r in views}, advantage=0.0, distill_scale=1.0 / len(ids))
    (batch,) = pack([sample], 10**6)
    readings = {role: Reading(hidden=h, head=w) for role, (h, w) in views.items()}
    return score(method, batch, hidden=hidden, head=head, readings=readings, chunk=chunk)


class ScriptedSampler:
    """A sampler whose groups' rewards are written down; every rollout has five tokens."""

    def __init__(self, *rewards: list[float | None]) -> None:
        self.rewards, self.asked = list(rewards), []

    def sample(self, problems, n):
        self.asked.append(len(problems))
        return [Group(problem=p, rollouts=[self._rollout(5, r, i) for i, r in enumerate(self.rewards.pop(0))]) for p in problems]

    def has_room(self, problem):
        return True

    def complete(self, prompts):
        return [self._rollout(5, None, 0) for _ in prompts]

    def write(self, problem, text):
        return self._rollout(len(text), None, 0)

    def decoding(self, *, temperature, max_completion_length=None, thinking=None):
        return self

    def sync(self, policy, version):
        """Nothing to take over."""

    def _rollout(self, length: int, reward: float | None, index: int) -> Rollout:
        return Rollout(prompt_ids=[1], completion_ids=list(range(length)), behavior_logp=[-1.0] * length, text="x", reward=reward, index=index)


def packed_tokens(batch: Batch) -> int:
    """Tokens of every row that any weights read."""
    rows: list[Packed] = [batch.student, *batch.views.values(), *([batch.student] if batch.reads_initial else [])]
    return sum(len(packed.input_ids) for packed in rows)
