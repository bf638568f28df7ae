"""What a run leaves behind as it goes: metrics.jsonl, rollouts by step, and the trackers that were asked for."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from contextvars import Context
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from selfdistill.atomic import parsed, write_whole
from selfdistill.contexts import answered
from selfdistill.types import Group, TrainingSample

ROLLOUT_SCHEMA = 1


@runtime_checkable
class Tracker(Protocol):
    """One of the trackers people watch runs with."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """Appends a line a step to metrics.jsonl and hands the same numbers to the trackers.

    On resume, lines after the checkpoint's step are dropped, so that no step stands there twice.
    """

    def __init__(self, run: Path, *, trackers: Sequence[str] = (), settings: Mapping[str, Any], resumed_at: int | None = None, name: str | None = None) -> None:
        """`name` is what the trackers call the run; None: its folder's."""
        self.run = run
        path = run / "metrics.jsonl"
        write_whole(path, "".join(_until(path, resumed_at)))
        self.file = path.open("a", buffering=1)
        self.trackers = [_tracker(tracker, run, settings, name or run.name) for tracker in trackers]

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """One JSON object a line."""
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        for tracker in self.trackers:
            tracker.log(metrics, step)

    def rollouts(self, groups: Sequence[Group], samples: Sequence[TrainingSample], *, step: int) -> None:
        """All rollouts of a step with what their teachers read, written aside and renamed when whole."""
        contexts: dict[int, list[dict[str, Any]]] = {}
        for sample in samples:
            if sample.views:
                views = {role: {"messages": list(v.messages), "weights": v.weights, "thinking": v.thinking} for role, v in sample.views.items()}
                contexts.setdefault(id(sample.rollout), []).append(views)
        lines = []
        for group in groups:
            shared = {"schema": ROLLOUT_SCHEMA, "step": step, "problem_id": group.problem.id, "answer": group.problem.answer}
            for rollout in group.rollouts:
                read = {"prompt": list(answered(rollout, group.problem)), "contexts": contexts.get(id(rollout), [])}
                lines.append(json.dumps(shared | asdict(rollout) | read, default=str) + "\n")
        write_whole(self.run / "rollouts" / f"step_{step:06d}.jsonl", "".join(lines))

    def close(self) -> None:
        self.file.close()
        for tracker in self.trackers:
            tracker.close()


def _until(path: Path, step: int | None) -> list[str]:
    """The lines of a metrics file up to a step, without the torn one that a kill may leave at its end."""
    if step is None or not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and parsed(line, path)["step"] <= step]


def require_trackers(names: Sequence[str]) -> None:
    """Raises ValueError where a tracker's library is not installed, before anything is loaded."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"trackers = [{name!r}] needs the library {name}, which is not installed: pip install 'selfdistill[trackers]'")


def _tracker(tracker: str, run: Path, settings: Mapping[str, Any], name: str) -> Tracker:
    return {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}[tracker](run, settings, name)


class _TensorBoard:
    def __init__(self, run: Path, settings: Mapping[str, Any], name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"))
        self.writer.add_text("settings", f"```json\n{json.dumps(settings, indent=2)}\n```")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, run: Path, settings: Mapping[str, Any], name: str) -> None:
        import wandb

        # two models that learn together are two runs of one process
        self.run = wandb.init(project="selfdistill", name=name, dir=str(run), config=dict(settings), reinit="create_new")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(self, run: Path, settings: Mapping[str, Any], name: str) -> None:
        import trackio

        # it ends the run that its context knows, which would be the other model's
        self.run = Context().run(trackio.init, project="selfdistill", name=name, config=dict(settings))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()
