"""The diagnostics whose models write or judge, as commands: a run's folder in; a table, <run>/diagnostics/<name>.json and .png out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from selfdistill.cli.diagnostics import _Diagnostic


@dataclass(frozen=True)
class Transport(_Diagnostic):
    """Loss against the transport distance of what student and teacher would write next, and the share of false alarms."""

    method: str = "topd_self"
    """Whose teacher writes and scores; topd in a run of topd has that run's teacher."""
    problems: int = 16
    """At most, from the chosen steps."""
    name: ClassVar[str] = "transport"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.diagnostics import transport

        bench = self.bench()
        method = bench.method(self.method)
        stage = transport.stage_of(method)
        bench.require({self.method: method})
        parts = bench.begun(replace(method, feedback=tuple(s for s in method.feedback if s is not stage)))
        groups = bench.groups(parts)[: self.problems]
        with bench.writing(parts, "windows of student and teacher"):
            probed = stage.probed(groups, parts.trainer.tools)
        self.finish(transport.transport(probed, quantile=stage.quantile), transport, bench)


@dataclass(frozen=True)
class Viability(_Diagnostic):
    """Whether the student can carry on from its teacher's alternatives, and what predicts it: the branch test with two controls."""

    method: str = "opsd"
    """Whose teacher hesitates."""
    problems: int = 16
    """At most, from the chosen steps."""
    rollouts: int = 2
    """Right rollouts a problem."""
    name: ClassVar[str] = "viability"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.diagnostics import viability
        from selfdistill.diagnostics.branches import branches, right_rollouts

        bench = self.bench()
        right_rollouts(bench.require({self.method: bench.method(self.method)}), self.rollouts)
        parts = bench.begun(bench.method(self.method))
        groups = [g for g in bench.groups(parts) if any((r.reward or 0) >= 1 for r in g.rollouts)][: self.problems]
        with bench.writing(parts, "from each branch"):
            found = branches(parts, groups, rollouts=self.rollouts, budget=bench.settings.tokens_per_batch)
        self.finish(viability.viability(found), viability, bench)


@dataclass(frozen=True)
class Judge(_Diagnostic):
    """How many right-wrong pairs a judge misplaces beside the correct reference, none, and a wrong one."""

    judge: str = "likelihood"
    """A judge's call, like "ModelJudge(Endpoint('http://localhost:8000/v1', 'name'))"; likelihood: the model's own of each attempt."""
    problems: int = 32
    """At most, from the chosen steps."""
    name: ClassVar[str] = "judge"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.diagnostics import judge
        from selfdistill.judges import StepJudge
        from selfdistill.method_names import build_judge

        bench = self.bench()
        chosen = judge.Likelihood(budget=bench.settings.tokens_per_batch) if self.judge == "likelihood" else build_judge(self.judge)
        judge.require_pairs(bench.require({})[: self.problems])
        parts = bench.begun(bench.method("grpo"))
        groups, tools = bench.groups(parts)[: self.problems], parts.trainer.tools
        exact = judge.judged(StepJudge(), groups, tools, reference="correct") if hasattr(parts.task, "judge") else None
        scores = {}
        for kind in judge.KINDS:
            with bench.writing(parts, f"judgements beside the reference {kind!r}"):
                scores[kind] = judge.judged(chosen, groups, tools, reference=kind)
        found = tuple(judge.misplacement(groups, scores[kind], reference=kind, exact=exact) for kind in judge.KINDS)
        self.finish(judge.JudgeResult(judge=self.judge, references=found), judge, bench)
