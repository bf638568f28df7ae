"""A run opened for diagnosis: its rollouts, and a student at any of its checkpoints beside the weights that any method's views name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from selfdistill.api import Assembled, assemble
from selfdistill.checkpoint import checkpoints, require_format, restore, step_of
from selfdistill.config import Settings
from selfdistill.console import Console
from selfdistill.contexts import NoTeacher
from selfdistill.diagnostics.readings import TokenReading, token_readings
from selfdistill.loading import load_tokenizer, load_weights
from selfdistill.method import Method
from selfdistill.method_names import build_method
from selfdistill.runs import SavedRun, open_run, require_own_tokens
from selfdistill.teachers import External
from selfdistill.tutoring import PeerFeedback
from selfdistill.types import Group


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Raises ValueError on a folder without a run, a checkpoint or steps that it has not."""

    run: SavedRun
    steps: tuple[int, ...]
    """Whose rollouts are read."""
    checkpoint: int = 0
    """Step of the student's weights; 0: the run's start."""
    model: str | None = None
    """Weights that stand for the run's start; None: the run's own."""
    console: Console | None = field(default=None, compare=False)
    """Where progress is shown; None: nowhere."""

    @property
    def settings(self) -> Settings:
        """The run's own, under `model` where one is given."""
        own = self.run.settings
        if self.model is None:
            return own
        # an adapter's folder brings its adapter; a section of its own would be a second one
        adapted = (Path(self.model) / "adapter_config.json").is_file()
        return own.model_copy(update={"model": own.model.model_copy(update={"path": self.model} | ({"lora": None} if adapted else {}))})

    def method(self, name: str | None = None) -> Method:
        """The run's own with its arguments, where its name or none is given, else one at its defaults."""
        own = self.run.settings
        arguments = own.method.arguments if name in (None, own.method.name) else {}
        return build_method(name or own.method.name, arguments, max_completion_length=own.sampling.max_completion_length)

    @cached_property
    def folders(self) -> dict[int, Path]:
        """The run's checkpoints by step."""
        return {step_of(path): path for path in checkpoints(self.run.folder)}

    def begun(self, method: Method) -> Assembled:
        """The method at the run's start, its student moved to the checkpoint.

        The run's own method has the teacher and the memory it had there; another one's teacher stands at the start.
        """
        with self.bar("loading the model and its teacher"):
            parts = assemble(self.settings, method=method, setting="model.path" if self.model is None else "--model")
        if self.checkpoint:
            folder = self.folders[self.checkpoint]
            if self.model is None and method == self.method():
                restore(parts.trainer, folder)
            else:
                require_format(folder)
                load_weights(parts.policy, folder)
                parts.sampler.sync(parts.policy, self.checkpoint)
        return parts

    def groups(self, parts: Assembled) -> list[Group]:
        """The chosen steps' rollouts, annotated by the method's stages. Raises ValueError where another tokenizer wrote them."""
        groups = [group for step in self.steps for group in self.run.groups(step)]
        require_own_tokens(groups, parts.policy.tokenizer)
        if parts.method.feedback:
            with self.writing(parts, "what the method writes about rollouts"):
                parts.trainer.annotate(groups)
        return groups

    def readings(self, method: Method, *, named: str = "the method") -> list[TokenReading]:
        """Every rollout that the method teaches, token by token."""
        parts = self.begun(method)
        return self.read(parts, self.groups(parts), method, named=named)

    def read(self, parts: Assembled, groups: Sequence[Group], method: Method, *, named: str) -> list[TokenReading]:
        """`token_readings` under a method, as far as it is on the console."""
        budget = self.settings.tokens_per_batch
        with self.bar(f"reading under {named}", unit="micro-batches") as advance:
            return token_readings(groups, policy=parts.policy, readers=parts.trainer.readers, method=method, budget=budget, on_progress=advance)

    def require(self, methods: Mapping[str, Method]) -> list[Group]:
        """The chosen steps' rollouts as they were saved, before any weights are loaded.

        Raises ValueError where one of the methods cannot be read under here, or another tokenizer wrote the rollouts.
        """
        for name, method in methods.items():
            if method.context == NoTeacher():
                raise ValueError(f"nothing is taught by method {name!r}, so there is nothing to read under it; choose another --method")
            if isinstance(method.teacher, External):
                load_tokenizer(method.teacher.path, setting=f"{name}'s teacher") if method.teacher.path else self._no_teacher(name)
            if any(isinstance(stage, PeerFeedback) for stage in method.feedback):
                raise ValueError(f"method {name!r} reads what a second model writes, and one model is read here; choose another --method")
        groups = [group for step in self.steps for group in self.run.groups(step)]
        require_own_tokens(groups, load_tokenizer(self.settings.model.path, setting="model.path" if self.model is None else "--model"))
        return groups

    def _no_teacher(self, name: str) -> None:
        raise ValueError(f"method {name!r} needs a teacher model, which {self.run.folder} does not name; choose a run of {name} or another --method")

    @contextmanager
    def bar(self, what: str, total: int | None = None, *, unit: str = "texts") -> Iterator[Callable[[int, int], None]]:
        """A bar on the console; yields the function that moves it to (done, total)."""
        if self.console is None:
            yield lambda done, of: None
            return
        with self.console.bar(what, total, unit=unit) as advance:
            yield advance

    @contextmanager
    def writing(self, parts: Assembled, what: str) -> Iterator[None]:
        """A bar that every batch of the run's engine moves."""
        with self.bar(f"writing {what}") as advance:
            parts.sampler.on_progress = advance
            try:
                yield
            finally:
                parts.sampler.on_progress = None


def open_bench(folder: Path, *, steps: Sequence[int] = (), checkpoint: int = 0, model: str | None = None, console: Console | None = None) -> Bench:
    """Steps default to the one whose rollouts the checkpoint's weights wrote, or the nearest that is kept."""
    run = open_run(folder)
    if not run.steps:
        raise ValueError(f"{folder} has no rollouts of any step; copy its rollouts/ back or choose another run")
    nearest = min(run.steps, key=lambda step: (abs(step - checkpoint - 1), step))
    bench = Bench(run=run, steps=tuple(steps) or (nearest,), checkpoint=checkpoint, model=model, console=console)
    if checkpoint and checkpoint not in bench.folders:
        kept = ", ".join(map(str, bench.folders)) or "none"
        raise ValueError(f"{folder} has no checkpoint of step {checkpoint}; it has {kept}, and --checkpoint 0 is its start")
    if missing := [step for step in bench.steps if step not in run.steps]:
        raise ValueError(f"{folder} has no rollouts of step {missing[0]}; it has steps {run.steps[0]} to {run.steps[-1]}")
    return bench
