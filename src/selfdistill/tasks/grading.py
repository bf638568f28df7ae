"""Rewards on rollouts, in place: by the task's verifier or by a user's reward function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfdistill.tasks import Task
from selfdistill.types import Group, Problem, Rollout

RewardFunction = Callable[..., Sequence[float | None]]


def grade(groups: Sequence[Group], task: Task, *, reward: RewardFunction | None = None) -> None:
    """Sets every rollout's reward, and what the environment says of it where the task speaks.

    Raises ValueError where a reward function returns the wrong count or raises.
    """
    pairs = [(g.problem, r) for g in groups for r in g.rollouts]
    if reward is not None:
        rewards = call_reward(reward, pairs)
    else:
        rewards = [task.verify(p, r.text) for p, r in pairs]
    speaks = getattr(task, "feedback", None)
    for (problem, rollout), value in zip(pairs, rewards, strict=True):
        rollout.reward = None if value is None else float(value)
        if speaks is not None and rollout.reward is not None and rollout.reward < 1:
            rollout.feedback["environment"] = speaks(problem, rollout.text)


def call_reward(reward: RewardFunction, pairs: Sequence[tuple[Problem, Rollout]]) -> list[float | None]:
    """f(prompts, completions, **columns) -> one number or None a completion, as TRL's reward functions."""
    name = getattr(reward, "__qualname__", repr(reward))
    columns = _accepted(reward, _columns([problem for problem, _ in pairs]))
    try:
        values = list(reward([p.prompt for p, _ in pairs], [r.text for _, r in pairs], **columns))
    except Exception as error:  # a user's code may raise anything; the run stops with its words
        raise ValueError(f"the reward function {name} raised {type(error).__name__}: {error}") from error
    if len(values) != len(pairs):
        raise ValueError(f"the reward function {name} returned {len(values)} values for {len(pairs)} completions; return one float (or None) each")
    for value in values:
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"the reward function {name} returned {value!r}, which is neither a number nor None")
    return values


def _columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """Everything a dataset knows, one list a column."""
    names = {name for p in problems for name in p.columns}
    own = {n: [getattr(p, n) for p in problems] for n in ("answer", "solution", "privileged_context")}
    return own | {n: [p.columns.get(n) for p in problems] for n in sorted(names)}


def _accepted(function: RewardFunction, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns a function takes: all of them with **columns, else those it names."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(columns)
    return {name: values for name, values in columns.items() if name in {p.name for p in parameters}}
