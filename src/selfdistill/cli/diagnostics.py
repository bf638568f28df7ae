"""The diagnostics as commands: a run's folder in; a table on the screen, <run>/diagnostics/<name>.json and .png out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Positional

from selfdistill.cli.commands import Run, _Command

if TYPE_CHECKING:
    from types import ModuleType

    from selfdistill.diagnostics.bench import Bench


WIDTH = 100
"""Characters of a table at most."""


@dataclass(frozen=True)
class _Diagnostic(_Command):
    folder: Positional[Run]
    """A run's folder."""
    steps: tuple[int, ...] = ()
    """Whose rollouts are read; none: the step that the checkpoint's weights wrote, or the nearest."""
    checkpoint: int = 0
    """Step of the checkpoint that the student is; 0: the run's start."""
    model: str | None = None
    """Another model in place of the one the run began with."""
    output: Path | None = None
    """Where the figures and the picture go instead of the run's own diagnostics/."""
    name: ClassVar[str]

    def bench(self) -> "Bench":
        from selfdistill.atomic import require_writable
        from selfdistill.checkpoint import seed_all
        from selfdistill.console import Console
        from selfdistill.diagnostics.bench import open_bench

        for name in ("problems", "samples", "rollouts", "window"):
            if (given := getattr(self, name, 1)) < 1:
                raise ValueError(f"--{name} {given} leaves nothing to read; give at least 1")
        found = open_bench(self.folder, steps=self.steps, checkpoint=self.checkpoint, model=self.model, console=Console(stderr=True))
        require_writable(self.figures, setting="--output")
        seed_all(found.settings.seed)
        return found

    @property
    def figures(self) -> Path:
        """The folder that they go to."""
        return self.output or self.folder / "diagnostics"

    def finish(self, result: Any, module: "ModuleType", bench: "Bench", *, read: str = "") -> None:
        """Prints the table and writes both files; `read` says which texts the figures are of, where it is not the bench's steps alone."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from selfdistill.atomic import write_whole
        from selfdistill.cli.actions import out
        from selfdistill.diagnostics.drawing import plain

        heading, *rows = module.table(result)
        shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for i, column in enumerate(heading):
            # a long name is folded, figures are not
            shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
        for row in rows:
            shown.add_row(*map(escape, row))
        Console(width=WIDTH, highlight=False).print(shown)
        about = {"diagnostic": self.name, "run": str(self.folder), "steps": bench.steps, "checkpoint": bench.checkpoint, "model": self.model}
        read = read or f"rollouts of step {', '.join(map(str, bench.steps))}, weights of step {bench.checkpoint}"
        title = f"{self.name}: {self.folder.name}, {read}"
        write_whole(self.figures / f"{self.name}.json", json.dumps(plain(about | {"result": result}), indent=1) + "\n")
        module.picture(result, self.figures / f"{self.name}.png", title=title)
        out.print(f"wrote {self.figures / self.name}.json and .png")


@dataclass(frozen=True)
class Credit(_Diagnostic):
    """Each token's log-ratio under any context: its profile where failed rollouts leave a successful peer, and its loudness in nats."""

    method: tuple[str, ...] = ("hsd", "opsd")
    """Whose teachers read the rollouts."""
    context: tuple[str, ...] = ("answer", "solution")
    """Kinds of context that the student itself reads them under: answer, solution, peer, demonstration, feedback."""
    window: int = 8
    """Tokens to either side of the divergence."""
    align: Literal["shown", "nearest"] = "shown"
    """The peer that HSD shows, or the success that agrees longest."""
    name: ClassVar[str] = "credit"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.diagnostics import credit

        bench = self.bench()
        methods = _readers(bench, self.method, self.context)
        credit.require_aligned(bench.require(methods), self.align)
        found = {label: bench.readings(method, named=label) for label, method in methods.items()}
        self.finish(credit.credit(found, window=self.window, align=self.align), credit, bench)


def _readers(bench: "Bench", methods: Sequence[str], contexts: Sequence[str]) -> dict[str, Any]:
    """Methods by name and by kind of context. Raises ValueError where there is none."""
    from selfdistill.diagnostics.readings import under

    if not methods and not contexts:
        raise ValueError("there is nothing to read under; give at least one --method or --context")
    return {name: bench.method(name) for name in methods} | {f"{kind} alone": under(kind) for kind in contexts}


@dataclass(frozen=True)
class Gap(_Diagnostic):
    """Accuracy with and without each kind of context, before training, beside the gain of the runs that trained on it."""

    method: tuple[str, ...] = ()
    """Whose teachers' prompts are answered."""
    context: tuple[str, ...] = ()
    """Kinds of context shown to the student itself; none, and neither --method nor --against: every kind that the run's problems have."""
    against: tuple[Path, ...] = ()
    """Further runs: each one's method is measured here, and its gain is read from its summary.json."""
    problems: int = 64
    """At most, from the chosen steps."""
    samples: int = 4
    """Completions a problem and prompt."""
    name: ClassVar[str] = "gap"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.diagnostics import gap
        from selfdistill.diagnostics.readings import CONTEXTS

        bench = self.bench()
        trained = {run.name: gained(run) for run in self.against}
        chosen = self.method or self.context or self.against
        methods = _readers(bench, self.method, self.context if chosen else tuple(CONTEXTS)) if not trained or self.method or self.context else {}
        methods |= {name: method for name, (method, _) in trained.items()}
        bench.require(methods)
        scores = {}
        plain: gap.Scores = {}
        for name, method in methods.items():
            parts = bench.begun(method)
            groups = bench.groups(parts)[: self.problems]
            if not plain:
                with bench.bar("answering without a context") as advance:
                    plain = gap.accuracy_without(parts, groups, bench.settings, samples=self.samples, on_progress=advance)
            with bench.bar(f"answering under {name}") as advance:
                scores[name] = gap.accuracy_under(parts, groups, bench.settings, samples=self.samples, on_progress=advance)
        scores = {name: found for name, found in scores.items() if found or chosen}
        gains = {name: gain for name, (_, gain) in trained.items()}
        self.finish(gap.gap(plain, scores, samples=self.samples, gains=gains), gap, bench)


def gained(folder: Path) -> tuple[Any, float]:
    """A run's method and its summary's difference of avg@k. Raises ValueError where it has none."""
    from selfdistill.diagnostics.bench import open_bench

    path = folder / "summary.json"
    if not path.exists():
        raise ValueError(f"{folder} has no summary.json, so its gain is not known; finish the run, or leave it out of --against")
    try:
        return open_bench(folder).method(), float(json.loads(path.read_text())["difference"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole summary ({error}); run it again, or leave it out of --against") from error


@dataclass(frozen=True)
class Markers(_Diagnostic):
    """Words of doubt a thousand tokens, over training and on held-out problems."""

    words: tuple[str, ...] = ()
    """Words and phrases to count; none: English ones such as wait, maybe, hmm, let me check."""
    name: ClassVar[str] = "markers"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.diagnostics import markers

        bench = self.bench()
        bench = replace(bench, steps=self.steps or tuple(bench.run.steps))
        groups = {step: bench.run.groups(step) for step in bench.steps}
        self.finish(markers.markers(groups, bench.run.evaluations, words=self.words or markers.EPISTEMIC), markers, bench, read="all its texts")


@dataclass(frozen=True)
class Leakage(_Diagnostic):
    """Whether the student speaks of references it never saw, and the teacher's KL by class of token and place in the rollout."""

    method: str | None = None
    """Whose teacher reads the rollouts; none: the run's own, else opsd where that has no teacher."""
    words: tuple[str, ...] = ()
    """What speaks of a reference; none: English phrases of the shipped templates."""
    name: ClassVar[str] = "leakage"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.contexts import NoTeacher
        from selfdistill.diagnostics import leakage
        from selfdistill.divergences import ForwardKL

        bench = self.bench()
        own = bench.method(self.method)
        method = bench.method("opsd") if self.method is None and own.context == NoTeacher() else own
        bench.require({self.method or (bench.settings.method.name if method is own else "opsd"): method})
        parts = bench.begun(method)
        readings = bench.read(parts, bench.groups(parts), replace(method, divergence=ForwardKL()), named="its teacher")
        groups = {step: bench.run.groups(step) for step in self.steps or (bench.run.steps[0], bench.run.steps[-1])}
        words = self.words or leakage.REFERENCES
        result = leakage.leakage(readings, groups, bench.run.evaluations, decode=parts.policy.chat.decode, words=words)
        self.finish(result, leakage, bench)


@dataclass(frozen=True)
class Pmi(_Diagnostic):
    """What of the privileged reading is the reference's alone, over the run's checkpoints: norms, their ratio, cosines."""

    method: str = "purified_opsd"
    """Whose views are read: question and reference, reference alone."""
    name: ClassVar[str] = "pmi"

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.diagnostics import pmi
        from selfdistill.diagnostics.bench import open_bench

        bench = self.bench()
        decomposed = pmi.decomposed(bench.method(self.method))
        bench.require({self.method: bench.method(self.method)})
        found = []
        for step in (bench.checkpoint,) if bench.checkpoint else (0, *bench.folders):
            here = open_bench(self.folder, steps=self.steps, checkpoint=step, model=self.model, console=bench.console)
            parts = here.begun(here.method(self.method))
            groups = here.groups(parts)
            of_part = {name: here.read(parts, groups, part, named=f"{name}, step {step}") for name, part in decomposed.items()}
            found.append(pmi.decomposition(of_part, checkpoint=step, steps=here.steps))
        self.finish(pmi.Pmi(checkpoints=tuple(found)), pmi, bench, read="its checkpoints")
