"""A run as the command line knows it: a folder that training fills, evaluation closes and `--resume` continues."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from selfdistill import checkpoint
from selfdistill.api import Assembled, assemble, make_eval_sampler
from selfdistill.atomic import write_whole
from selfdistill.config import Settings, read_settings, save_settings
from selfdistill.console import Console
from selfdistill.evaluate import Evaluation
from selfdistill.measuring import Measurement
from selfdistill.memory import estimate, explain_out_of_memory
from selfdistill.method import describe
from selfdistill.plots import learning_curve
from selfdistill.preflight import prove_alignment
from selfdistill.runlog import RunLog, require_trackers
from selfdistill.sources import told
from selfdistill.summary import summarize
from selfdistill.trainer import StepResult
from selfdistill.types import Problem


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run writes, and whether it goes on from its last checkpoint."""

    folder: Path
    resumed: Path | None

    @classmethod
    def open(cls, settings: Settings, *, resume: bool) -> "Run":
        """Raises ValueError where a new run would write over an old one, or where there is nothing to resume."""
        folder = Path(settings.output_dir)
        if resume:
            return cls(folder=folder, resumed=checkpoint.latest(folder))
        if (folder / "settings.json").exists():
            way = "continue it with --resume" if checkpoint.checkpoints(folder) else "it has no checkpoint yet, remove it"
            raise ValueError(f"{folder} already holds a run; {way}, or choose another --output_dir")
        return cls(folder=folder, resumed=None)

    def evaluation(self, step: int) -> Path:
        """Where a step's evaluation is kept."""
        return self.folder / "evaluations" / f"step_{step:06d}.json"

    def seconds(self) -> dict[str, float]:
        """What training and evaluation took, over all the times the run was resumed."""
        steps = [json.loads(line)["seconds"] for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        evaluations = [json.loads(path.read_text())["seconds"] for path in self.evaluation(0).parent.glob("step_*.json")]
        return {"train": sum(steps), "eval": sum(evaluations)}


def execute(settings: Settings, *, resume: bool = False, console: Console | None = None) -> Path:
    """Trains, evaluates and writes everything a run leaves behind. Returns the run's folder."""
    console = console or Console()
    require_trackers(settings.trackers)
    run = Run.open(settings, resume=resume)
    settings = _same_run(settings, run) if run.resumed else settings
    parts = assemble(settings)
    console.begin(settings, describe(parts.method), estimate(parts.policy, parts.trainer.readers, settings, islice(parts.trainer.stream.problems, 100)))
    held_out = _held_out(parts)
    with explain_out_of_memory(settings):
        if not run.resumed:
            _preflight(parts, held_out, console)
            run.folder.mkdir(parents=True, exist_ok=True)
            save_settings(settings, run.folder / "settings.json")
        base = _measure(parts, held_out, run.evaluation(0), console, "base") if held_out else None
        if run.resumed:
            checkpoint.restore(parts.trainer, run.resumed)
        _train(parts, run, held_out, console)
        trained = _measure(parts, held_out, run.evaluation(parts.trainer.steps_done), console, "trained") if settings.eval.at_end else None
    learning_curve(run.folder, title=f"{settings.method.name} on {settings.task.name}, {run.folder.name}")
    if base and trained:
        summary = summarize(settings, base, trained, seconds=run.seconds(), path=run.folder / "summary.json")
        console.summary(summary)
    console.end(run.folder, settings)
    return run.folder


def _held_out(parts: Assembled) -> list[Problem]:
    """The problems a run is measured on, none where it never is. Raises ValueError where it would be and there are none."""
    if not (parts.settings.eval.every or parts.settings.eval.at_end):
        return []
    found = list(parts.problems("test"))[: parts.settings.eval.num_problems]
    if not found:
        raise ValueError("the task's test split has 0 problems to evaluate on; give it some, or set eval.at_end = false and eval.every = 0")
    return found


def _same_run(settings: Settings, run: Run) -> Settings:
    """A resumed run keeps its own settings; only its length and what it prints may change. Raises ValueError otherwise."""
    own = read_settings(run.folder / "settings.json")
    free = {"steps", "trackers", "log_samples_every", "checkpoint_every", "keep_checkpoints", "eval", "output_dir"}
    changed = [k for k, v in settings.model_dump().items() if k not in free and v != own.model_dump()[k]]
    if changed:
        raise ValueError(f"--resume continues {run.folder} with its own settings, but {', '.join(changed)} differ; leave them out or start a new --output_dir")
    return settings


def _preflight(parts: Assembled, held_out: Sequence[Problem], console: Console) -> None:
    """What would stop the run later stops it before anything is written: a prompt that is too long, tokens that do not align."""
    problems, _ = told(parts.method.source, parts.trainer.stream.problems)
    parts.sampler.check_lengths(problems)
    make_eval_sampler(parts.policy, parts.settings).check_lengths(held_out)
    with console.status("checking that student and teacher read the same tokens"):
        found = prove_alignment(parts.trainer)
    console.aligned(found)


def _measure(parts: Assembled, problems: Sequence[Problem], path: Path, console: Console, what: str) -> Evaluation:
    """One evaluation, kept in the run and in the cache and not repeated; training's random state is untouched."""
    own = Measurement(policy=parts.policy, settings=parts.settings, task=parts.task, problems=problems, reward=parts.reward, conversation=parts.conversation)
    if (record := own.kept(path)) is None:
        with console.bar(f"evaluating {what}", own.samples) as advance:
            record = own.measure(advance)
    write_whole(path, json.dumps(record) + "\n")
    return Evaluation.from_json(record)


def _train(parts: Assembled, run: Run, held_out: Sequence[Problem], console: Console) -> None:
    """The loop around the steps: metrics, rollouts, samples, evaluations, checkpoints."""
    settings, trainer = parts.settings, parts.trainer
    log = RunLog(run.folder, trackers=settings.trackers, settings=settings.model_dump(), resumed_at=trainer.steps_done if run.resumed else None)
    try:
        with console.training(settings.steps, done=trainer.steps_done) as show:
            start, written = time.perf_counter(), parts.sampler.written.tokens
            for result in trainer:
                metrics = dict(result.metrics) | {f"seconds_{phase}": s for phase, s in result.seconds.items()}
                log.rollouts(result.groups, result.samples, step=result.step)
                metrics |= {"generated_tokens": parts.sampler.written.tokens - written, "seconds": time.perf_counter() - start}
                if settings.eval.every and result.step % settings.eval.every == 0:
                    metrics |= _eval_metrics(_measure(parts, held_out, run.evaluation(result.step), console, f"step {result.step}"))
                start, written = time.perf_counter(), parts.sampler.written.tokens
                log.log(metrics, step=result.step)
                show(result, _shown(result, settings))
                if _due(result.step, settings):
                    checkpoint.save(trainer, run.folder, keep=settings.keep_checkpoints)
    finally:
        log.close()


def _due(step: int, settings: Settings) -> bool:
    return step == settings.steps or bool(settings.checkpoint_every and step % settings.checkpoint_every == 0)


def _shown(result: StepResult, settings: Settings) -> bool:
    return bool(settings.log_samples_every) and (result.step == 1 or result.step % settings.log_samples_every == 0)


def _eval_metrics(evaluation: Evaluation) -> dict[str, Any]:
    low, high = evaluation.ci95
    figures = {"avg_at_k": evaluation.avg_at_k, "pass_at_k": evaluation.pass_at_k, "ci95_low": low, "ci95_high": high}
    return {f"eval_{name}": value for name, value in figures.items()} | {"eval_truncated": evaluation.truncated, "eval_mean_length": evaluation.mean_length}
