"""A run as the command line knows it: a folder that training fills, evaluation closes and `--resume` continues.

Two models in lockstep are two such folders, the peer's inside the other's; every function here takes the one or the two.
"""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from selfdistill import checkpoint
from selfdistill.api import SETTINGS, Assembled, assemble, make_eval_sampler, members
from selfdistill.atomic import parsed, require_writable, write_whole
from selfdistill.config import INCIDENTAL, Settings, read_settings, save_settings
from selfdistill.console import Console
from selfdistill.evaluate import Evaluation
from selfdistill.lockstep import introduce, lockstep
from selfdistill.measuring import Measurement
from selfdistill.memory import estimate, explain_out_of_memory, together
from selfdistill.method import describe
from selfdistill.plots import learning_curve, pareto
from selfdistill.preflight import prove_alignment
from selfdistill.profiling import profiled
from selfdistill.runlog import RunLog, require_trackers
from selfdistill.sources import told
from selfdistill.summary import summarize
from selfdistill.trainer import StepResult
from selfdistill.types import Problem


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run writes, and whether it goes on from its last checkpoint."""

    settings: Settings
    resumed: Path | None

    @classmethod
    def open(cls, settings: Settings, *, resume: bool) -> "tuple[Run, ...]":
        """One for each model, in step. Raises ValueError where a new run would write over an old one, or where there is nothing to resume."""
        each = members(settings)
        folders = [Path(own.output_dir) for own in each]
        if resume:
            if not (folders[0] / "settings.json").is_file():
                raise ValueError(f"there is no run in {folders[0]} to resume; leave out --resume to start one, or set --output_dir to the run's folder")
            require_writable(folders[0])
            # killed between the two, one model may be a checkpoint ahead
            step = checkpoint.latest(*folders).name
            return tuple(_same_run(cls(settings=own, resumed=folder / "checkpoints" / step)) for own, folder in zip(each, folders, strict=True))
        for folder in folders:
            if (folder / "settings.json").exists():
                way = "continue it with --resume" if checkpoint.checkpoints(folder) else "it has no checkpoint yet, remove it"
                raise ValueError(f"{folder} already holds a run; {way}, or choose another --output_dir")
        require_writable(folders[0])
        return tuple(cls(settings=own, resumed=None) for own in each)

    @property
    def folder(self) -> Path:
        return Path(self.settings.output_dir)

    def evaluation(self, step: int) -> Path:
        """Where a step's evaluation is kept."""
        return self.folder / "evaluations" / f"step_{step:06d}.json"

    def seconds(self) -> dict[str, float]:
        """What training and evaluation took, over all the times the run was resumed."""
        metrics = self.folder / "metrics.jsonl"
        steps = [parsed(line, metrics)["seconds"] for line in metrics.read_text().splitlines()]
        evaluations = [parsed(path.read_text(), path)["seconds"] for path in self.evaluation(0).parent.glob("step_*.json")]
        return {"train": sum(steps), "eval": sum(evaluations)}


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model that learns, and its run."""

    run: Run
    parts: Assembled
    whose: str
    """What the console adds where two learn."""


def execute(settings: Settings, *, resume: bool = False, console: Console | None = None) -> Path:
    """Trains, evaluates and writes everything a run leaves behind. Returns the run's folder."""
    console = console or Console()
    require_trackers(settings.trackers)
    if settings.profile and settings.peer:
        raise ValueError("profile = true watches one model, and with peer two learn in turns; leave one of the two out")
    runs = Run.open(settings, resume=resume)
    each = zip(runs, SETTINGS, ("", " of the peer"), strict=False)
    learners = [Learner(run=run, parts=assemble(run.settings, setting=setting), whose=whose) for run, setting, whose in each]
    introduce([learner.parts.trainer for learner in learners])
    console.begin(runs[0].settings, describe(learners[0].parts.method), together(map(_memory, learners)))
    held_out = _held_out(learners[0].parts)
    with explain_out_of_memory(settings):
        if not resume:
            _preflight(learners, held_out, console)
        for run in runs:
            run.folder.mkdir(parents=True, exist_ok=True)
            save_settings(run.settings, run.folder / "settings.json")
        bases = [_measure(learner, held_out, 0, console, "base") for learner in learners if held_out]
        for learner in learners:
            if learner.run.resumed:
                checkpoint.restore(learner.parts.trainer, learner.run.resumed)
                checkpoint.drop_after(learner.run.resumed)
        _train(learners, held_out, console)
        trained = [_measure(learner, held_out, learner.parts.trainer.steps_done, console, "trained") for learner in learners if settings.eval.at_end]
    _close(runs, bases if trained else [], trained, console)
    return runs[0].folder


def _close(runs: Sequence[Run], bases: Sequence[Evaluation], trained: Sequence[Evaluation], console: Console) -> None:
    """Pictures and summaries, and where they are."""
    title = f"{runs[0].settings.method.name} on {runs[0].settings.task.name}"
    for run in runs:
        learning_curve(run.folder, title=f"{title}, {run.folder.name}")
    for run, base, after in zip(runs, bases, trained, strict=False):
        console.summary(summarize(run.settings, base, after, seconds=run.seconds(), path=run.folder / "summary.json"))
    if len(runs) > 1:
        pareto(list(zip(bases, trained, strict=True)), runs[0].folder / "pareto.png", title=title)
    console.end(runs[0].folder, runs[0].settings)


def _memory(learner: Learner) -> dict[str, float]:
    parts = learner.parts
    return estimate(parts.policy, parts.trainer.readers, parts.settings, islice(parts.trainer.stream.problems, 100))


def _held_out(parts: Assembled) -> list[Problem]:
    """The problems a run is measured on, none where it never is. Raises ValueError where it would be and there are none."""
    if not (parts.settings.eval.every or parts.settings.eval.at_end):
        return []
    found = list(parts.problems("test"))[: parts.settings.eval.num_problems]
    if not found:
        raise ValueError("the task's test split has 0 problems to evaluate on; give it some, or set eval.at_end = false and eval.every = 0")
    return found


def _same_run(run: Run) -> Run:
    """A resumed run keeps its own settings; only its length and what it prints may change. Raises ValueError otherwise."""
    own = read_settings(run.folder / "settings.json")
    free = {"steps", "eval", *INCIDENTAL}
    changed = [k for k, v in run.settings.model_dump().items() if k not in free and v != own.model_dump()[k]]
    if changed:
        raise ValueError(f"--resume continues {run.folder} with its own settings, but {', '.join(changed)} differ; leave them out or start a new --output_dir")
    done = checkpoint.step_of(run.resumed) if run.resumed else 0
    if run.settings.steps < done:
        raise ValueError(f"{run.folder} has done {done} steps, --steps {run.settings.steps} is below that; give at least {done}, or start a new --output_dir")
    return run


def _preflight(learners: Sequence[Learner], held_out: Sequence[Problem], console: Console) -> None:
    """What would stop the run later stops it before anything is written: a prompt that is too long, tokens that do not align."""
    for parts in (learner.parts for learner in learners):
        problems, _ = told(parts.method.source, parts.trainer.stream.problems)
        parts.sampler.check_lengths(problems)
        make_eval_sampler(parts.policy, parts.settings).check_lengths(held_out)
    with console.status("checking that student and teacher read the same tokens"):
        found = prove_alignment(*(learner.parts.trainer for learner in learners))
    for measured in found:
        console.aligned(measured)


def _measure(learner: Learner, problems: Sequence[Problem], step: int, console: Console, what: str) -> Evaluation:
    """One evaluation, kept in the run and in the cache and not repeated; training's random state is untouched."""
    parts, path = learner.parts, learner.run.evaluation(step)
    own = Measurement(policy=parts.policy, settings=parts.settings, task=parts.task, problems=problems, reward=parts.reward, conversation=parts.conversation)
    if (record := own.kept(path)) is None:
        with console.bar(f"evaluating {what}{learner.whose}", own.samples) as advance:
            record = own.measure(advance)
    write_whole(path, json.dumps(record) + "\n")
    return Evaluation.from_json(record)


def _train(learners: Sequence[Learner], held_out: Sequence[Problem], console: Console) -> None:
    """The loop around the steps: metrics, rollouts, samples, evaluations, checkpoints."""
    settings = learners[0].parts.settings
    with ExitStack() as open_until_the_end:
        logs, shows = [], []
        for learner in learners:
            log = _log(learner)
            open_until_the_end.callback(log.close)
            logs.append(log)
            done = learner.parts.trainer.steps_done
            shows.append(open_until_the_end.enter_context(console.training(settings.steps, done=done, whose=learner.whose)))
            # what the alignment proof wrote is no step's
            learner.parts.sampler.written.tokens = 0
        steps = lockstep([learner.parts.trainer for learner in learners])
        if settings.profile:
            steps = profiled(steps, learners[0].parts.trainer, folder=learners[0].run.folder / "profile", console=console.out)
        for results in steps:
            for learner, result, log, show in zip(learners, results, logs, shows, strict=True):
                start = time.perf_counter()
                log.rollouts(result.groups, result.samples, step=result.step)
                metrics = dict(result.metrics) | {f"seconds_{phase}": s for phase, s in result.seconds.items()}
                metrics["seconds"] = sum(result.seconds.values()) + time.perf_counter() - start
                metrics["generated_tokens"], learner.parts.sampler.written.tokens = learner.parts.sampler.written.tokens, 0
                if settings.eval.every and result.step % settings.eval.every == 0:
                    metrics |= _eval_metrics(_measure(learner, held_out, result.step, console, f"step {result.step}"))
                log.log(metrics, step=result.step)
                show(result, _shown(result, settings))
            if _due(results[0].step, settings):
                _save(learners, keep=settings.keep_checkpoints)


def _log(learner: Learner) -> RunLog:
    settings, resumed = learner.parts.settings, learner.run.resumed
    resumed_at = learner.parts.trainer.steps_done if resumed else None
    folder = learner.run.folder
    name = f"{folder.parent.name}-peer" if learner.whose else folder.name
    return RunLog(folder, trackers=settings.trackers, settings=settings.model_dump(), resumed_at=resumed_at, name=name)


def _save(learners: Sequence[Learner], *, keep: int) -> None:
    """A checkpoint of every model; the oldest go when all are written, so that at any time there is one that all have."""
    for learner in learners:
        checkpoint.save(learner.parts.trainer, learner.run.folder, keep=keep + len(learners) - 1)
    for learner in learners:
        checkpoint.prune(learner.run.folder, keep=keep)


def _due(step: int, settings: Settings) -> bool:
    return step == settings.steps or bool(settings.checkpoint_every and step % settings.checkpoint_every == 0)


def _shown(result: StepResult, settings: Settings) -> bool:
    return bool(settings.log_samples_every) and (result.step == 1 or result.step % settings.log_samples_every == 0)


def _eval_metrics(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation's figures as trackers take them: a number each."""
    figures = evaluation.figures()
    low, high = figures.pop("ci95")
    return {f"eval_{name}": value for name, value in (figures | {"ci95_low": low, "ci95_high": high}).items() if value is not None}
