"""`selfdistill blame`: a run's folder in; a table on the screen, <run>/diagnostics/blame.json and .png out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from selfdistill.cli.diagnostics import _Diagnostic


@dataclass(frozen=True)
class Blame(_Diagnostic):
    """Whether a teacher's credit touches failing tokens only: its mass before, in and after the first wrong step that the task's judge finds."""

    method: str = "step_critique"
    """Whose teacher reads the rollouts; a run's own has the run's arguments, such as its critic."""
    name: ClassVar[str] = "blame"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.diagnostics import blame
        from selfdistill.tasks import asking
        from selfdistill.tasks.loading import load_task

        bench = self.bench()
        method = bench.method(self.method)
        saved = bench.require({self.method: method})
        with asking(load_task(bench.settings.task), "judge", otherwise="choose a run of a task that has one, such as the testbed") as judge:
            verdicts = {(g.problem.id, r.text): judge(g.problem, r.text) for g in saved for r in g.rollouts}
        blame.require_wrong(verdicts.values())
        parts = bench.begun(method)
        readings = bench.read(parts, bench.groups(parts), method, named=self.method)
        found = blame.blame(readings, method=self.method, judge=lambda p, text: verdicts[p.id, text], decode=parts.policy.chat.decode)
        self.finish(found, blame, bench)
