"""The rollouts and logits that published code was run on once (fixtures/official), and the same numbers through a method of ours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tiny_models import TEMPLATES
from torch import Tensor

from selfdistill.heads import Head
from selfdistill.loss import objective
from selfdistill.method import Method
from selfdistill.packing import pack, packed_order
from selfdistill.samples import training_samples
from selfdistill.scoring import Reading, score
from selfdistill.types import Batch, Group, Problem, Rollout, TokenSignals, TrainingSample

FOLDER = Path(__file__).parent / "fixtures" / "official"
INPUTS = json.loads((FOLDER / "inputs.json").read_text())
STUDENT = [torch.tensor(rows) for rows in INPUTS["student"]]
PLAIN = {"teacher": ("teacher",)}


def official(name: str) -> dict:
    """What the published code made of the inputs, and where it is from."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def logp_of(logits: Tensor, rollout: int) -> Tensor:
    token = torch.tensor(INPUTS["token"][rollout])
    return logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]


def official_groups(*, rewards: Sequence[float] | None = None, engine_gap: str | None = None, skip_first: int = 0) -> list[Group]:
    """The rollouts of two problems, as a sampler would hand them on; the engine's log-probs are the student's, or the inputs' gap below them."""
    graded = rewards or INPUTS["reward"]
    problems = [Problem(prompt=f"w{g}", answer="w7", solution="w8", columns={"rubric": "w9", "demonstration": "w3"}, templates=TEMPLATES) for g in (0, 1)]
    groups = [Group(problem=p, rollouts=[]) for p in problems]
    for i, ids in enumerate(INPUTS["token"]):
        behavior = logp_of(STUDENT[i], i) - (torch.tensor(INPUTS[engine_gap][i]) if engine_gap else 0.0)
        trained = tuple(range(skip_first, len(ids))) if skip_first else None
        group = groups[INPUTS["group"][i]]
        group.rollouts.append(
            Rollout(prompt_ids=[0], completion_ids=ids, behavior_logp=behavior.tolist(), text=str(i), index=i, reward=graded[i], trained=trained)
        )
    return groups


@dataclass(frozen=True, kw_only=True)
class Found:
    """The framework's loss and its gradient by the student's logits, rollout by rollout in the inputs' order."""

    loss: float
    gradient: list[Tensor]
    signals: TokenSignals
    order: list[int]
    """The rollout of each sample of the batch."""


def ours(method: Method, groups: Sequence[Group], *, views: Mapping[str, Sequence[str]] = PLAIN, proximal: bool = False) -> Found:
    """Contexts, scales, packing, scoring and objective are the method's own; only the models are replaced, by the stored logits.

    views: by role, the inputs' table of logits that each teacher of a rollout reads, in the order of the context's teachers.
    """
    samples = packed_order(given := training_samples(groups, method, encode=lambda messages, thinking: [0]))
    (batch,) = pack(given, 10**6)
    logits = [x.clone().requires_grad_() for x in STUDENT]
    unique = list(dict.fromkeys(s.rollout.index for s in samples))
    head = Head(weight=torch.eye(logits[0].shape[1]))
    trained = {s.rollout.index: list(s.rollout.positions) for s in samples}
    taught = [(s.rollout.index, sum(t.rollout is s.rollout for t in samples[:at])) for at, s in enumerate(samples) if s.views]
    readings = {}
    for role, tables in views.items() if taught else ():
        states = [torch.tensor(INPUTS[tables[k]][i])[trained[i]] for i, k in taught]
        readings[role] = Reading(hidden=torch.cat(states), head=head)
    hidden = torch.cat([logits[i][trained[i]] for i in unique])
    signals = score(method, _with_earlier(batch, samples) if proximal else batch, hidden=hidden, head=head, readings=readings)
    loss, _ = objective(method, signals)
    gradient = torch.autograd.grad(loss, logits, allow_unused=True)
    return Found(
        loss=float(loss.detach()),
        gradient=[torch.zeros_like(x) if g is None else g for x, g in zip(logits, gradient, strict=True)],
        signals=signals,
        order=[s.rollout.index for s in samples],
    )


def _with_earlier(batch: Batch, samples: Sequence[TrainingSample]) -> Batch:
    """The batch of a later update: the trainer's log-probs from before the first one lie `later_gap` below today's."""
    old = [logp_of(STUDENT[s.rollout.index], s.rollout.index) - torch.tensor(INPUTS["later_gap"][s.rollout.index]) for s in samples]
    return replace(batch, proximal_logp=torch.cat(old))


def agrees(found: Found, case: dict, *, tolerance: float = 2e-6) -> None:
    """Loss and gradient are the published code's."""
    torch.testing.assert_close(torch.tensor(found.loss), torch.tensor(case["loss"]), atol=tolerance, rtol=1e-5)
    assert max(float(torch.tensor(g).abs().max()) for g in case["gradient"]) > 1e-3, "a case without gradient says nothing"
    for mine, theirs in zip(found.gradient, case["gradient"], strict=True):
        torch.testing.assert_close(mine, torch.tensor(theirs), atol=tolerance, rtol=1e-5)
