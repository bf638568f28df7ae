"""What the method makes of every token: rows of kept rollouts and a run's weights in, numbers by name out, as the step's loss saw them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill import checkpoint
from selfdistill.method import Method
from selfdistill.models import Policy
from selfdistill.packing import batch_of, cut
from selfdistill.reading import read, room_for
from selfdistill.report.selection import Row
from selfdistill.runs import SavedRun, require_own_tokens, rollout_from
from selfdistill.samples import training_samples
from selfdistill.teachers import evaluating
from selfdistill.trainer import Trainer
from selfdistill.types import Group, Problem, Rollout, Teaching, TokenSignals, TrainingSample, View


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Something a token can be coloured by."""

    name: str
    unit: str
    signed: bool
    about: str


QUANTITIES: Mapping[str, Quantity] = {
    "credit": Quantity(name="credit", unit="", signed=True, about="what the policy gradient multiplies"),
    "log_ratio": Quantity(
        name="log-ratio", unit="nats", signed=True, about="teacher's minus student's log-probability of the token; blue: the teacher likes it more"
    ),
    "weight": Quantity(name="weight", unit="", signed=True, about="how much the token's divergence counts"),
    "divergence": Quantity(name="divergence", unit="nats", signed=False, about="how far the student is from its target here, before the weight"),
    "entropy": Quantity(name="entropy", unit="nats", signed=False, about="of the student's distribution"),
    "target_entropy": Quantity(name="target's entropy", unit="nats", signed=False, about="of the distribution that teaches"),
    "surprise": Quantity(name="surprise", unit="nats", signed=False, about="minus the student's log-probability of the token"),
    "label_kl": Quantity(name="label loss", unit="nats", signed=False, about="KL from the token's label to the student"),
    "reference_kl": Quantity(name="KL to the start", unit="nats", signed=False, about="from the student to the weights the run began with"),
}
"""In the order they are offered; what a stage annotated comes after them, under its own name."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """One rollout under one of its teachers, or none."""

    views: Mapping[str, Mapping[str, Any]]
    """By role: `messages` and `weights`, as they were recorded."""
    advantage: float | None
    """None where the loss does not read it."""
    values: Mapping[str, list[float]]
    """By quantity, one number a trained token."""
    gap: float
    """Mean of |log-probability read here - log-probability when it was sampled|, nats."""


@dataclass(frozen=True)
class _Recorded:
    """A context that shows every teacher what the run says it read, whatever stages and peers were there then."""

    teachings: Mapping[int, list[Teaching]]

    def __call__(self, rollout: Rollout, group: Group) -> list[Teaching]:
        return self.teachings.get(id(rollout), [])


def nearest_weights(run: SavedRun, step: int) -> int:
    """Of the run's start (0) and its checkpoints, the step nearest to step - 1, whose weights wrote the rollouts; the earlier of two."""
    there = [0, *map(checkpoint.step_of, checkpoint.checkpoints(run.folder))]
    return min(there, key=lambda at: (abs(at - (step - 1)), at))


def restore(trainer: Trainer, run: SavedRun, step: int) -> None:
    """Puts the run's student and teachers where that checkpoint left them; 0 is where a trainer begins. Raises ValueError on an unknown format."""
    if step:
        checkpoint.restore(trainer, run.folder / "checkpoints" / f"step_{step:06d}")


def read_step(trainer: Trainer, groups: Sequence[Sequence[Row]]) -> list[list[list[Read]]]:
    """By group and rollout, one Read a teacher; none of a rollout that the loss cannot read (no reward, nothing trained).

    Signals are pointwise in rollouts, so a few groups of a step say what the whole step would. Raises ValueError where the ids are another tokenizer's.
    """
    rebuilt = [_group(rows) for rows in groups]
    require_own_tokens(rebuilt, trainer.policy.tokenizer)
    recorded = {id(r): _teachings(row) for rows, g in zip(groups, rebuilt, strict=True) for row, r in zip(rows, g.rollouts, strict=True)}
    method = replace(trainer.method, context=_Recorded(recorded))
    own = {id(r) for g in rebuilt for r in g.rollouts}
    samples = [s for s in training_samples(rebuilt, method, encode=trainer.policy.chat.encode) if id(s.rollout) in own]
    # a sample that no term of the loss uses is read all the same: a scale gets it packed, and no value depends on it
    samples = [replace(s, label_scale=s.label_scale or 1.0) for s in samples]
    by_rollout: dict[int, list[Read]] = {}
    for part in cut(samples, trainer.settings.tokens_per_batch, room_for(trainer.policy, trainer.readers)):
        for sample, found in zip(part, _signals(trainer, method, part), strict=True):
            by_rollout.setdefault(id(sample.rollout), []).append(found)
    return [[by_rollout.get(id(r), []) for r in g.rollouts] for g in rebuilt]


Decode = Callable[[tuple[int, ...]], str]


def decoder(policy: Policy) -> Decode:
    """Ids to text, special tokens included; the short spans that tokens are told apart by come again and again."""
    return lru_cache(maxsize=2**16)(lambda ids: str(policy.tokenizer.decode(list(ids))) if ids else "")


def pieces(ids: Sequence[int], *, decode: Decode) -> list[str]:
    """Each token's own text, such that they join to the whole; bytes of an unfinished letter are shown by the token that finishes it."""
    found, shown, done = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, now = decode(tuple(ids[shown:done])), decode(tuple(ids[shown:end]))
        whole = not now.endswith("\ufffd")
        found.append(now[len(before) :] if whole else "")
        if whole:
            shown, done = done, end
    return found


def _group(rows: Sequence[Row]) -> Group:
    first = rows[0]
    problem = Problem(prompt=tuple(first["prompt"]), answer=first["answer"], id=first["problem_id"])
    return Group(problem=problem, rollouts=[rollout_from(row) for row in rows])


def _teachings(row: Row) -> list[Teaching]:
    return [Teaching(views={role: _view(view, row) for role, view in views.items()}) for views in row["contexts"]]


def _view(view: Mapping[str, Any], row: Row) -> View:
    """The recorded prompt; the student's own by the very tokens it was sampled from."""
    own = view["messages"] == row["prompt"] and view.get("thinking") is None
    prompt_ids = tuple(row["prompt_ids"]) if own else None
    return View(messages=tuple(view["messages"]), weights=view["weights"], thinking=view.get("thinking"), prompt_ids=prompt_ids)


@torch.no_grad()
def _signals(trainer: Trainer, method: Method, samples: Sequence[TrainingSample]) -> list[Read]:
    """Of one micro-batch, in its order."""
    with evaluating(trainer.policy):
        signals = read(trainer.policy, trainer.readers, method, batch_of(samples).to(trainer.policy.device))
    weighs = method.policy_coef and method.credit.reads_advantage
    found = _split(signals, _values(method, signals))
    return [replace(r, advantage=s.advantage if weighs else None, views=_shown(s)) for r, s in zip(found, samples, strict=True)]


def _shown(sample: TrainingSample) -> dict[str, dict[str, Any]]:
    return {role: {"messages": list(view.messages), "weights": view.weights} for role, view in sample.views.items()}


def _split(signals: TokenSignals, values: Mapping[str, Float[Tensor, " tokens"]]) -> list[Read]:
    """A batch's values by sample; an untaught one has none of its teacher's."""
    counts = signals.batch.trained.tolist()
    columns = {name: column.cpu().split(counts) for name, column in values.items()}
    gaps = (signals.policy_logp - signals.batch.behavior_logp).abs().cpu().split(counts)
    taught = signals.batch.taught.tolist()
    return [
        Read(
            views={},
            advantage=None,
            values={name: parts[i].tolist() for name, parts in columns.items() if taught[i] or name not in OF_THE_TEACHER},
            gap=float(gaps[i].mean()),
        )
        for i in range(len(counts))
    ]


OF_THE_TEACHER = ("log_ratio", "target_entropy", "divergence", "weight")
"""Say nothing of an untaught rollout."""


def _values(method: Method, signals: TokenSignals) -> dict[str, Float[Tensor, " tokens"]]:
    """Those that the method's loss looks at, and what its stages annotated."""
    found = {"entropy": signals.entropy, "surprise": -signals.logp}
    if method.reads_teacher:
        found |= {"log_ratio": signals.log_ratio, "target_entropy": signals.target_entropy}
    if method.distill_coef:
        found |= {"divergence": signals.divergence, "weight": method.token_weight(signals)}
    if method.policy_coef:
        found["credit"] = method.credit(signals)
    if method.label_coef and method.labels is None:
        found["label_kl"] = signals.label_kl
    if method.reference_coef:
        found["reference_kl"] = signals.reference_kl
    return found | {f"annotation {name}": values for name, values in signals.batch.annotations.items()}
