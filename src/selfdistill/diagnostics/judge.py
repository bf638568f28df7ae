"""How far a judge leans on its reference: rollouts judged beside three kinds of it, to the share of pairs it misplaces (ExpRL, 2606.17024)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy

from selfdistill.contexts import Privileged, Solution
from selfdistill.diagnostics.drawing import GUIDE, bars, panels
from selfdistill.diagnostics.readings import token_readings
from selfdistill.diagnostics.statistics import ratio, ratio_interval
from selfdistill.judges import Attempt, Judge, without_reference
from selfdistill.method import Method
from selfdistill.reading import start_readers
from selfdistill.teachers import Live
from selfdistill.tools import Tools
from selfdistill.types import Group, Problem, Rollout

KINDS = ("correct", "none", "wrong")
"""Of references: the problem's own, a blank, and a false one."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """exp(mean_t log pi(y_t | q, reference, y_<t)): how natural the attempt is to the student itself beside the reference.

    The judge of a model that has not learned to judge in words. Judges whole attempts only.
    """

    budget: int = 16384
    """Tokens of a micro-batch."""

    def __call__(self, attempts: Sequence[Attempt], tools: Tools) -> list[float | None]:
        method = Method(context=Privileged((Solution(),)), teacher=Live())
        groups = [replace(a.group, rollouts=[a.rollout]) for a in attempts]
        readers = start_readers(method, tools.policy)
        found = token_readings(groups, policy=tools.policy, readers=readers, method=method, budget=self.budget)
        scores = {id(r.rollout): float(numpy.exp(r.target_logp.mean())) for r in found}
        return [scores.get(id(a.rollout)) for a in attempts]


@dataclass(frozen=True, kw_only=True)
class Misplacement:
    """One kind of reference."""

    reference: str
    judged: int
    """Rollouts with a judgement."""
    pairs: int
    """Of a right and a wrong rollout of one problem, both judged."""
    share: float
    """Of pairs in which the wrong one is not placed below the right one; ties count half."""
    share_ci95: tuple[float, float]
    """Percentile bootstrap over problems; chance is one half."""
    right: float
    """Mean score of right rollouts."""
    wrong: float
    exact: float | None
    """Mean |score - the task's exact share of steps that hold|; None where the task has no such judge."""


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    judge: str
    references: tuple[Misplacement, ...]


def misplacement(groups: Sequence[Group], scores: Sequence[float | None], *, reference: str, exact: Sequence[float | None] | None = None) -> Misplacement:
    """Of scores in the order of the groups' rollouts. [open] What the paper counts as misplaced. Raises ValueError without a pair."""
    told = iter(scores)
    by_group = [[(r.reward, score) for r in g.rollouts if (score := next(told)) is not None and r.reward is not None] for g in groups]
    sides = [([s for r, s in rows if r >= 1], [s for r, s in rows if r < 1]) for rows in by_group]
    lost = [float(sum((w > r) + 0.5 * (w == r) for r in right for w in wrong)) for right, wrong in sides]
    pairs = [float(len(right) * len(wrong)) for right, wrong in sides]
    if not sum(pairs):
        judged = sum(map(len, by_group))
        raise ValueError(
            f"no problem has a right and a wrong rollout that both were judged beside the {reference!r} reference ({judged} of {len(scores)} have a "
            f"judgement); give another --judge or other --steps"
        )
    known = [abs(s - e) for s, e in zip(scores, exact, strict=True) if s is not None and e is not None] if exact is not None else []
    return Misplacement(
        reference=reference,
        judged=sum(map(len, by_group)),
        pairs=int(sum(pairs)),
        share=ratio(lost, pairs),
        share_ci95=ratio_interval(lost, pairs, list(range(len(groups)))),
        right=float(numpy.mean([s for right, _ in sides for s in right])),
        wrong=float(numpy.mean([s for _, wrong in sides for s in wrong])),
        exact=float(numpy.mean(known)) if known else None,
    )


def require_pairs(groups: Sequence[Group]) -> None:
    """Raises ValueError where no problem has a right and a wrong rollout."""
    kinds = [{r.reward >= 1 for r in g.rollouts if r.reward is not None} for g in groups]
    if not any(len(found) == 2 for found in kinds):
        raise ValueError(f"none of {len(groups)} problems has a right and a wrong rollout, so there is no pair to judge; choose other --steps")


def judged(judge: Judge, groups: Sequence[Group], tools: Tools, *, reference: str) -> list[float | None]:
    """The judge's scores of all rollouts, shown a reference of this kind."""
    shown = _reference(reference, groups)
    attempts = [Attempt(rollout=r, group=replace(g, problem=p), text=r.text, ends=True) for g, each in zip(groups, shown, strict=True) for r, p in each]
    return judge(attempts, tools)


def _reference(kind: str, groups: Sequence[Group]) -> list[list[tuple[Rollout, Problem]]]:
    """Every rollout with its problem as the judge sees it."""
    if kind == "correct":
        return [[(r, g.problem) for r in g.rollouts] for g in groups]
    if kind == "none":
        return [[(r, without_reference(g.problem)) for r in g.rollouts] for g in groups]
    others = [*groups[1:], *groups[:1]]
    return [[(r, _false(r, g, other.problem)) for r in g.rollouts] for g, other in zip(groups, others, strict=True)]


def _false(rollout: Rollout, group: Group, other: Problem) -> Problem:
    """[open] A wrong reference is another failed rollout of the problem, drawn in turn, else the next problem's solution."""
    failed = [r.text for r in group.rollouts if r is not rollout and r.text != rollout.text and r.reward is not None and r.reward < 1]
    text = failed[rollout.index % len(failed)] if failed else other.solution
    return replace(group.problem, solution=text, answer=other.answer, privileged_context="")


def table(result: JudgeResult) -> list[tuple[str, ...]]:
    rows = [("reference", "judged", "pairs", "misplaced", "mean score, right", "wrong", "from the exact judge")]
    for m in result.references:
        low, high = m.share_ci95
        exact = "" if m.exact is None else f"{m.exact:.3f}"
        rows.append((m.reference, str(m.judged), str(m.pairs), f"{m.share:.1%} [{low:.1%}, {high:.1%}]", f"{m.right:.3f}", f"{m.wrong:.3f}", exact))
    return rows


def picture(result: JudgeResult, path: Path, *, title: str) -> None:
    """Misplaced pairs by reference, and mean scores of right and wrong rollouts."""
    with panels(path, 2, title=f"{title}\n{result.judge}") as (shares, scores):
        percents: Mapping[str, float] = {m.reference: 100 * m.share for m in result.references}
        bars(shares, percents, errors={m.reference: (100 * m.share_ci95[0], 100 * m.share_ci95[1]) for m in result.references}, form="{:.1f}")
        shares.axvline(50, **GUIDE)
        shares.set(title="pairs misplaced (chance: 50)", xlabel="percent", ylabel="reference")
        drawn: Mapping[str, Callable[[Misplacement], float]] = {"right": lambda m: m.right, "wrong": lambda m: m.wrong}
        for shift, (name, value) in zip((-0.2, 0.2), drawn.items(), strict=True):
            bar = scores.bar([i + shift for i in range(len(result.references))], [value(m) for m in result.references], width=0.38, alpha=0.8, label=name)
            scores.bar_label(bar, fmt="%.3f", fontsize=8)
        scores.set_xticks(range(len(result.references)), [m.reference for m in result.references])
        scores.set(title="mean score of rollouts", xlabel="reference")
        scores.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
