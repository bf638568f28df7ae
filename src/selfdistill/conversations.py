"""How a problem is told to the student: at once, or turn by turn with replies in between. A sampler, problems and n in, groups out.

Groups belong to the problems as they were given. A rollout that answered another chat than its problem's own carries that chat as
`prompt`, and what the student itself replied on the way as `earlier`. Every turn's prompt is what the chat template makes of the
texts so far: it begins with the tokens of the turn before where the template keeps them, and not where it rewrites history.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfdistill.contexts import student_messages
from selfdistill.sampling import Sampler
from selfdistill.types import Group, Message, Problem, Rollout

Conversation = Callable[[Sampler, Sequence[Problem], int], list[Group]]
"""(sampler, problems, n) -> a group of n rollouts a problem: its answers to the last turn."""


@dataclass(frozen=True)
class Full:
    """The problem's own prompt (FULL in 2605.30251)."""

    def __call__(self, sampler: Sampler, problems: Sequence[Problem], n: int) -> list[Group]:
        return sampler.sample(problems, n)


@dataclass(frozen=True)
class Concat:
    """All shards in one user turn (CONCAT in 2605.30251); [open] one a line. Raises ValueError where a problem has no shards."""

    def __call__(self, sampler: Sampler, problems: Sequence[Problem], n: int) -> list[Group]:
        told = [replace(p, prompt=(*_opening(p), _said("user", "\n".join(_shards(p))))) for p in problems]
        return _of(problems, sampler.sample(told, n))


@dataclass(frozen=True)
class Placeholder:
    """The shards turn by turn, every reply between them replaced by one neutral text (a diagnostic of 2605.30251).

    The difference to RawSharded is what the student's own replies do. [open] the text. Raises ValueError where a problem has no shards.
    """

    text: str = "Understood."
    """In words that the tokenizer knows."""

    def __call__(self, sampler: Sampler, problems: Sequence[Problem], n: int) -> list[Group]:
        told = [_told(p, [self.text] * (len(_shards(p)) - 1)) for p in problems]
        return _of(problems, sampler.sample(told, n))


@dataclass(frozen=True)
class RawSharded:
    """The shards turn by turn, the student's own replies between them (RAW-SHARDED in 2605.30251).

    All conversations of the call take their k-th turn together. [open] The answer-format instruction closes the last turn only; a
    reply on the way may be as long as the answer; a chat whose replies leave no room for another ends there, with an empty, truncated
    answer that is not trained. Raises ValueError where a problem has no shards, or its first turn is too long.
    """

    def __call__(self, sampler: Sampler, problems: Sequence[Problem], n: int) -> list[Group]:
        replies: dict[tuple[int, int], list[Rollout]] = {(p, i): [] for p in range(len(problems)) for i in range(n)}
        for turn in range(max((len(_shards(p)) for p in problems), default=0)):
            # a chat that found no room at an earlier turn has fewer replies than turns were taken
            chats = [chat for chat, own in replies.items() if len(own) == turn < len(_shards(problems[chat[0]]))]
            told = {chat: _told(problems[chat[0]], [r.text for r in replies[chat]]) for chat in chats}
            told = {chat: problem for chat, problem in told.items() if turn == 0 or sampler.has_room(problem)}
            asked = list(told.values())
            for (p, i), group in zip(told, _of(asked, sampler.sample(asked, 1)), strict=True):
                replies[p, i].append(replace(group.rollouts[0], index=i, trajectory=f"{problems[p].id}/{p}/{i}"))
        return [Group(problem=problem, rollouts=[_ended(problem, replies[p, i]) for i in range(n)]) for p, problem in enumerate(problems)]


def _ended(problem: Problem, replies: Sequence[Rollout]) -> Rollout:
    """The answer to the last turn with the replies before it; where the chat had to end before, an empty one to the turn it got to."""
    last = replies[-1]
    if len(replies) == len(_shards(problem)):
        return replace(last, earlier=tuple(replies[:-1]))
    return replace(last, completion_ids=[], behavior_logp=[], text="", truncated=True, earlier=tuple(replies))


def _told(problem: Problem, replies: Sequence[str]) -> Problem:
    """The problem as far as it is told after these replies; only its last turn is worded, and closed, as the task words questions."""
    shards = _shards(problem)
    turns = [message for shard, reply in zip(shards, replies, strict=False) for message in (_said("user", shard), _said("assistant", reply))]
    chat = (*_opening(problem), *turns, _said("user", shards[len(replies)]))
    is_last = len(replies) == len(shards) - 1
    return replace(problem, prompt=chat) if is_last else replace(problem, prompt=chat, instruction="", templates={})


def _of(problems: Sequence[Problem], groups: Sequence[Group]) -> list[Group]:
    """The groups under the problems they are of; each rollout keeps the chat that it answered."""
    return [
        Group(problem=problem, rollouts=[replace(r, prompt=student_messages(group.problem)) for r in group.rollouts])
        for problem, group in zip(problems, groups, strict=True)
    ]


def _shards(problem: Problem) -> Sequence[str]:
    """The user's turns, from the column `shards`."""
    found = problem.columns.get("shards")
    if not isinstance(found, list | tuple) or not found or not all(isinstance(shard, str) and shard.strip() for shard in found):
        raise ValueError(
            f"problem {problem.id or str(problem.prompt)[:40]!r}: a conversation in turns needs a column 'shards' that lists the user's turns as texts, "
            f"not {found!r:.60}; add it to the data, or tell the problem at once with Full()"
        )
    return found


def _opening(problem: Problem) -> tuple[Message, ...]:
    """What stands before the question: a system message, say."""
    return () if isinstance(problem.prompt, str) else tuple(problem.prompt[:-1])


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}
