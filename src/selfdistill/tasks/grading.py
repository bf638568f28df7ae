"""Rewards on rollouts, in place: by the task's verifier, in processes that can be killed, or by a user's reward function."""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from selfdistill.tasks import Task, asking
from selfdistill.tasks.isolation import WORKERS, run_isolated
from selfdistill.types import Group, Problem, Rollout

log = logging.getLogger(__name__)

RewardFunction = Callable[..., Iterable[float | None]]
"""f(prompts, completions, **columns) -> one number or None a completion; None takes the rollout out of the loss."""
Pairs = Sequence[tuple[Problem, Rollout]]


@dataclass(frozen=True)
class Weighted:
    """Several reward functions as one: the weighted sum of what each says; one that says None has no part in it (as in TRL)."""

    rewards: tuple[RewardFunction, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rewards or len(self.rewards) != len(self.weights):
            raise ValueError(f"{len(self.rewards)} reward functions need as many weights, not {len(self.weights)}")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float | None]:
        inputs = {"prompts": prompts, "completions": completions} | columns
        every = [_called(reward, inputs, count=len(completions)) for reward in self.rewards]
        said = [[w * value for w, value in zip(self.weights, values, strict=True) if value is not None] for values in zip(*every, strict=True)]
        return [sum(values) if values else None for values in said]


def grade(groups: Sequence[Group], task: Task, *, reward: RewardFunction | None = None, timeout_s: float = 10.0, workers: int = WORKERS) -> None:
    """Sets every rollout's reward, and what the environment says of it where the task speaks.

    A verifier that is late or dies scores 0, with a warning that counts them. Raises ValueError where a verifier or `feedback` raises, and
    where a reward function raises or returns anything but one number or None a completion.
    """
    pairs = [(g.problem, r) for g in groups for r in g.rollouts]
    if reward is not None:
        rewards = call_reward(reward, pairs)
    else:
        rewards = verified([(problem, rollout.text) for problem, rollout in pairs], task, timeout_s=timeout_s, workers=workers)
    for (_, rollout), value in zip(pairs, rewards, strict=True):
        rollout.reward = value
    if getattr(task, "feedback", None) is not None:
        _tell([(problem, rollout) for problem, rollout in pairs if rollout.reward is not None and rollout.reward < 1], task)


def call_reward(reward: RewardFunction, pairs: Pairs) -> list[float | None]:
    """f(prompts, completions, **columns) with everything the dataset knows, one list a column, as TRL calls reward functions.

    Prompts are as the dataset gave them. A completion is a string, or one assistant message where the prompt is a chat.
    """
    problems, rollouts = [problem for problem, _ in pairs], [rollout for _, rollout in pairs]
    inputs = _columns(problems) | {
        "prompts": [p.prompt if isinstance(p.prompt, str) else list(p.prompt) for p in problems],
        "completions": [r.text if isinstance(p.prompt, str) else [{"role": "assistant", "content": r.text}] for p, r in pairs],
        "completion_ids": [r.completion_ids for r in rollouts],
    }
    # its parts are checked one by one and named in errors themselves
    return reward(**inputs) if isinstance(reward, Weighted) else _called(reward, inputs, count=len(pairs))


def _called(reward: RewardFunction, inputs: Mapping[str, Any], *, count: int) -> list[float | None]:
    name = getattr(reward, "__qualname__", type(reward).__name__)
    accepted = _accepted(reward, inputs, name)
    try:
        returned: Any = reward(**accepted)
    except Exception as error:  # a user's code may raise anything; the run stops with its words
        raise ValueError(f"the reward function {name} raised {type(error).__name__}: {error}") from error
    returned = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(returned, Iterable) or isinstance(returned, str | Mapping):
        raise ValueError(f"the reward function {name} returned {returned!r:.60} for {count} completions; return a list with one number (or None) each")
    values = list(returned)
    if len(values) != count:
        raise ValueError(f"the reward function {name} returned {len(values)} values for {count} completions; return one number (or None) each")
    return [_number(value, f"the reward function {name}") for value in values]


def _accepted(reward: RewardFunction, inputs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a function takes: everything with **columns, else what it names."""
    parameters = inspect.signature(reward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(inputs)
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in inputs]
    if missing:
        raise ValueError(f"the reward function {name} asks for {missing[0]!r}, which is no column; there are {', '.join(sorted(inputs))}")
    return {p.name: inputs[p.name] for p in parameters if p.name in inputs}


def _columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    names = sorted({name for p in problems for name in p.columns})
    own = {n: [getattr(p, n) for p in problems] for n in ("answer", "solution", "privileged_context")}
    return {n: [p.columns.get(n) for p in problems] for n in names} | own


def _tell(failed: Pairs, task: Task) -> None:
    """Writes what the task says of completions that are not right. Raises ValueError where it raises, or says what is no text."""
    with asking(task, "feedback", otherwise="leave feedback out") as speak:
        said = [speak(problem, rollout.text) for problem, rollout in failed]
    for text, (_, rollout) in zip(said, failed, strict=True):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"the feedback of {type(task).__name__} returned {text!r:.60}, which is neither text nor None")
        if text:
            rollout.feedback["environment"] = text


def verified(texts: Sequence[tuple[Problem, str]], task: Task, *, timeout_s: float = 10.0, workers: int = WORKERS) -> list[float | None]:
    """What the task's verifier says of each text as an answer to its problem. Late ones score 0. Raises ValueError where it raises."""
    if getattr(task, "isolated", False):
        return _verify_isolated(task, texts, timeout_s=timeout_s, workers=workers)
    return _verify_inline(task, texts)


def _verify_inline(task: Task, texts: Sequence[tuple[Problem, str]]) -> list[float | None]:
    name = _verifier(task)
    try:
        values = [task.verify(problem, text) for problem, text in texts]
    except Exception as error:  # a user's code may raise anything; the run stops with its words
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error
    return [_number(value, name) for value in values]


def _verify_isolated(task: Task, texts: Sequence[tuple[Problem, str]], *, timeout_s: float, workers: int) -> list[float | None]:
    outcomes = run_isolated(task.verify, texts, timeout_s=timeout_s, workers=workers)
    late = [text for (_, text), outcome in zip(texts, outcomes, strict=True) if outcome.late]
    if late:
        counts = f"{len(late)} of {len(texts)} completions"
        log.warning("%s was not done within %g s, or crashed, on %s; they score 0: %.80r", _verifier(task), timeout_s, counts, late[0])
    for outcome in outcomes:
        if outcome.error:
            raise ValueError(f"{_verifier(task)} raised {outcome.error}")
    return [0.0 if outcome.late else _number(outcome.value, _verifier(task)) for outcome in outcomes]


def _verifier(task: Task) -> str:
    return f"the verifier of {type(task).__name__}"


def _number(value: Any, who: str) -> float | None:
    """A reward as a float. Raises ValueError unless it is a finite number or None."""
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{who} returned {value!r:.60}, which is neither a finite number nor None")
    return float(value)
