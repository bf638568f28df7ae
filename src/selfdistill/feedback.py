"""Stages that run after grading and before packing: they write texts, annotations or reward shaping onto rollouts, in place.

Statistics over a whole step belong here, so that later stages see one rollout at a time.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import ClassVar

from selfdistill.contexts import Context, next_of_another
from selfdistill.critics import Critic
from selfdistill.judges import Attempt, Judge
from selfdistill.notes import NOTE, note_request
from selfdistill.retrieval import Retrieval
from selfdistill.rubrics import RubricSource
from selfdistill.skills import FIELDS, MEMORY, Bank, Extractor, cold_bank, extend, graded, read_bank
from selfdistill.steps import OpenedBy, Splitter, step_of_token
from selfdistill.tools import Tools
from selfdistill.types import Group, Note, Rollout, Teaching
from selfdistill.writers import Writer

log = logging.getLogger(__name__)
SAME = 0.25
"""Of a null control's rollouts; answers that a few problems share stay below."""

Feedback = Callable[[list[Group], Tools], None]
"""(groups, tools) -> None; the tools serve stages that let a model write or read, or that remember. One that writes metrics alone says `measures = True`,
one that makes groups known to each other and neither writes nor reads `lends = True`, and one that writes behind a whole completion has `room`: its tokens."""


@dataclass(frozen=True)
class SoftOverlong:
    """shaping = 0 up to limit - buffer tokens, then down linearly to -penalty at the limit (DAPO, 2503.14476, section 3.4)."""

    limit: int
    """`max_completion_length` in tokens."""
    buffer: int
    penalty: float = 1.0

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        for rollout in (r for g in groups for r in g.rollouts):
            excess = len(rollout.completion_ids) - (self.limit - self.buffer)
            rollout.shaping -= self.penalty * min(max(excess / self.buffer, 0.0), 1.0)


@dataclass(frozen=True)
class LendGroups:
    """Gives every group the next group of another problem as its donor, for contexts that must not fit their problem (null controls).

    Raises ValueError on a step of one problem, which has nobody to borrow from.
    """

    lends: ClassVar[bool] = True

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        for group, place in zip(groups, next_of_another(groups), strict=True):
            if place is None:
                raise ValueError("a shuffled context needs at least 2 problems a step, not 1; raise prompts_per_step or give the task more problems")
            group.donor = groups[place]


@dataclass(frozen=True)
class CountSameContext:
    """Reports `same_context_share`: of the rollouts that a null control teaches, those whose teachers together read the very words of the method's own.

    In whatever order and pairing: a bank of skills that every problem retrieves whole says the same to all. Warns before the first step where it
    is above `SAME`, for such a control's gain is the method's by construction.
    """

    null: Context = field(repr=False)
    own: Context = field(repr=False)

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        taught = [(shown, _words(self.own(r, g))) for g in groups for r in g.rollouts if (shown := _words(self.null(r, g)))]
        share = sum(null == own for null, own in taught) / max(len(taught), 1)
        tools.metrics["same_context_share"] = share
        if share > SAME and all(r.policy_version == 0 for g in groups for r in g.rollouts):
            log.warning(
                "the null control shows %.0f %% of its teachers the very words that the method's own context shows, so it is no control of what they say; "
                "set method.kind = 'empty', or for sgsd method.pairs below the bank's size",
                100 * share,
            )


def _words(teachings: list[Teaching]) -> Counter[str]:
    """Of all that a rollout's teachers read."""
    return Counter(w for t in teachings for view in t.views.values() for message in view.messages for w in message["content"].split())


@dataclass(frozen=True)
class NoteRubrics:
    """Notes every problem's rubric, for the context `Rubric`; a problem without one is noted none, and its rollouts are untaught (RCSD)."""

    source: RubricSource

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        for group, rubric in zip(groups, self.source(groups, tools), strict=True):
            group.notes["rubric"] = (Note(fields={"rubric": rubric}),) if rubric else ()


@dataclass(frozen=True)
class NoteFirst:
    """Lets a writer note what the context's prompt asks for, before a completion is scored under it (`reason_first`; RCSD, code).

    One note a prompt, shared by the rollouts that are read under it; the context `AfterNote` shows it.
    """

    context: Context
    writer: Writer

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        requests = [(r, chat) for g in groups for r in g.rollouts if (chat := note_request(self.context, r, g)) is not None]
        keys = [json.dumps(chat) for _, chat in requests]
        different = {key: chat for key, (_, chat) in zip(keys, requests, strict=True)}
        notes = dict(zip(different, self.writer(list(different.values()), tools), strict=True)) if different else {}
        for (rollout, _), key in zip(requests, keys, strict=True):
            rollout.feedback[NOTE] = notes[key]


@dataclass(frozen=True)
class WriteCritiques:
    """feedback["critique"]: what the critic writes of each rollout; nothing where it has nothing to say, which leaves the rollout untaught."""

    critic: Critic

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        pairs = [(rollout, group) for group in groups for rollout in group.rollouts]
        for (rollout, _), critique in zip(pairs, self.critic(pairs, tools), strict=True):
            if critique:
                rollout.feedback["critique"] = critique


@dataclass(frozen=True)
class JudgeOutcome:
    """R = s, the judge's score of the whole completion in place of the task's reward; 0 where it was cut at the length limit (ExpRL).

    An unparsable judgement is a reward of None, which takes the rollout out of the loss.
    """

    judge: Judge

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        whole = [Attempt(rollout=r, group=g, text=r.text, ends=True) for g in groups for r in g.rollouts if not r.truncated]
        scores = {id(attempt.rollout): score for attempt, score in zip(whole, self.judge(whole, tools), strict=True)}
        for rollout in (r for g in groups for r in g.rollouts):
            rollout.reward = scores.get(id(rollout), 0.0)


@dataclass(frozen=True)
class JudgeSteps:
    """annotations[name]: A_t = s_t - s_(t-1) for t > 1 and A_1 = s_1 - s_T, s_t the judge's score of steps 1..t, shared by the tokens of step t (ExpRL).

    0 all over on a rollout of one step and on one cut at the length limit. One unparsable judgement leaves no token of the rollout trained.
    """

    judge: Judge
    steps: Splitter = OpenedBy("###")
    name: str = "step_delta"

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        judged: list[tuple[Rollout, list[str], slice]] = []
        attempts: list[Attempt] = []
        for group, rollout in ((g, r) for g in groups for r in g.rollouts):
            rollout.annotations[self.name] = (0.0,) * len(rollout.completion_ids)
            pieces = self.steps(rollout.text)
            if not rollout.truncated and len(pieces) > 1:
                prefixes = list(accumulate(pieces))
                judged.append((rollout, pieces, slice(len(attempts), len(attempts) + len(pieces))))
                attempts += [Attempt(rollout=rollout, group=group, text=p, ends=p is prefixes[-1]) for p in prefixes]
        if not judged:
            log.warning("no rollout ends by itself and has two steps, so none has credit; %s splits them: see the method's argument `steps`", self.steps)
        scores = self.judge(attempts, tools)
        for rollout, pieces, at in judged:
            self._annotate(rollout, pieces, scores[at], tools)

    def _annotate(self, rollout: Rollout, pieces: list[str], scores: list[float | None], tools: Tools) -> None:
        known = [s for s in scores if s is not None]
        if len(known) < len(scores):
            rollout.trained = ()
            return
        deltas = [known[0] - known[-1], *(later - earlier for earlier, later in pairwise(known))]
        places = step_of_token(rollout.completion_ids, pieces, tools.policy.chat.decode)
        rollout.annotations[self.name] = tuple(deltas[place] for place in places)


@dataclass(frozen=True, kw_only=True)
class KeepSkills:
    """memory["skills"]: read from `path` or built from the model's own rollouts where a run has none, extended while the model fails (SGSD).

    Each `every` steps, by the rollouts' own count of steps: if under `below` of the step's graded rollouts are right, at most `add` items.
    Warns where there is no pair to teach from.
    """

    extractor: Extractor
    path: str | None = None
    """JSON in place of the cold start; a checkpoint's memory.json will do."""
    cold_start: int = 256
    """Problems that are rolled out once."""
    most: int = 3
    """Items from one rollout."""
    every: int = 25
    """Steps; 0: never."""
    below: float = 0.8
    add: int = 5
    capacity: int = 30
    """Items that were added on the way; the oldest leave."""

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        version = max((r.policy_version for g in groups for r in g.rollouts), default=0)
        if MEMORY not in tools.memory:
            bank = read_bank(self.path) if self.path else cold_bank(self.extractor, tools, problems=self.cold_start, most=self.most)
            tools.memory[MEMORY] = bank
            self._warn(bank)
        elif self.every and version and version % self.every == 0 and self._fails(groups):
            limits = {"add": self.add, "most": self.most, "capacity": self.capacity}
            extend(tools.memory[MEMORY], groups, self.extractor, tools, added=version, **limits)
        bank = tools.memory[MEMORY]
        tools.metrics.update({f"bank_{kind}": float(len(bank[kind])) for kind in FIELDS})
        tools.metrics.update({"bank_added": float(sum(bool(i["added"]) for k in FIELDS for i in bank[k])), "bank_unparsable": float(bank["unparsable"])})

    def _fails(self, groups: list[Group]) -> bool:
        right = [(rollout.reward or 0) >= 1 for rollout, _ in graded(groups)]
        return bool(right) and sum(right) / len(right) < self.below

    def _warn(self, bank: Bank) -> None:
        if not all(bank[kind] for kind in FIELDS):
            log.warning(
                "the skill bank has %d skills and %d mistakes (%d answers of %s could not be read), so there is no pair to teach from; "
                "set method.extractor or method.bank",
                *(len(bank["skills"]), len(bank["mistakes"]), bank["unparsable"], self.extractor),
            )


@dataclass(frozen=True)
class RetrieveSkills:
    """notes["skill"]: the pairs of a skill and a mistake that each problem's teachers read, from the bank that `KeepSkills` keeps (SGSD)."""

    retrieval: Retrieval
    pairs: int = 8

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        for group, notes in zip(groups, self.retrieval(groups, tools.memory[MEMORY], tools, self.pairs), strict=True):
            group.notes["skill"] = notes


@dataclass(frozen=True)
class MarkContent:
    """annotations["content"]: 1 where a completion token says something, 0 at special tokens, think tags and tokens that are newlines only (SGSD).

    [open] A think tag that a tokenizer spells in several tokens counts as content.
    """

    def __call__(self, groups: list[Group], tools: Tools) -> None:
        special, decode = tools.policy.chat.special_ids, tools.policy.tokenizer.decode
        ids = {token for g in groups for r in g.rollouts for token in r.completion_ids}
        silent = {token for token in ids if token in special or _silent(str(decode([token])))}
        for rollout in (r for g in groups for r in g.rollouts):
            rollout.annotations["content"] = tuple(float(token not in silent) for token in rollout.completion_ids)


def _silent(text: str) -> bool:
    return text.strip() in ("<think>", "</think>") or (not text.strip() and "\n" in text)
