"""The commands: each a dataclass of its arguments and a `run` that hands them to the library."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

Recipe = Annotated[str, arg(metavar="RECIPE")]
Model = Annotated[str, arg(metavar="MODEL")]
Method = Annotated[str, arg(metavar="METHOD")]
Run = Annotated[Path, arg(metavar="RUN")]
Folder = Annotated[Path, arg(metavar="FOLDER")]
"""What stands for an argument in `--help`, as in docs/command_line.md."""


@dataclass(frozen=True)
class _Command:
    takes_settings: ClassVar[bool] = False

    def run(self, overrides: Mapping[str, Any]) -> None: ...

    def where(self, overrides: Mapping[str, Any]) -> str:
        """What to say after an interruption."""
        return ""


@dataclass(frozen=True)
class Train(_Command):
    """Train by a recipe. Any setting is changed by --key value: --steps 50, --method hsd, --sampling.temperature 0.9, --model.lora.r 16."""

    recipe: Positional[Recipe]
    """A .toml file, or the name of a shipped recipe such as quickstart."""
    resume: bool = False
    """Continue from the last checkpoint of the run's output_dir, bit for bit."""
    takes_settings: ClassVar[bool] = True

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.config import load_settings, make_settings, read_settings

        settings = load_settings(self.recipe, overrides)
        own = Path(settings.output_dir) / "settings.json"
        if self.resume and own.is_file():
            settings = make_settings(read_settings(own).model_dump(mode="json"), {"output_dir": settings.output_dir, **overrides}, origin=str(own))
        from selfdistill.runner import execute

        execute(settings, resume=self.resume)

    def where(self, overrides: Mapping[str, Any]) -> str:
        from selfdistill.config import load_settings

        run = Path(load_settings(self.recipe, overrides).output_dir)
        if any((run / "checkpoints").glob("step_*/trainer_state.pt")):
            return f"; {run} is whole up to its last checkpoint, continue with the same command and --resume"
        if not run.exists():
            return "; nothing was written yet"
        return f"; {run} has no checkpoint yet (checkpoint_every sets how often), remove it or choose another --output_dir to start anew"


@dataclass(frozen=True)
class Eval(_Command):
    """Measure a model on held-out problems: avg@k, pass@k, maj@k, intervals over problems, truncation, length, entropy; beside another where asked."""

    model: Positional[Model]
    """A run's folder (its last checkpoint), a model folder or a hub id."""
    recipe: str | None = None
    """Whose task and decoding a model without a run is measured under; none: quickstart. --eval.num_problems, --eval.num_samples and others change them."""
    vs: str | None = None
    """Another model, measured the same way and compared problem by problem: difference, rescued and broken problems, McNemar."""
    output: Path | None = None
    """A JSON file for all samples."""
    leaderboard: Path | None = None
    """A JSON file for the figures with what was measured and how."""
    takes_settings: ClassVar[bool] = True

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.evaluating import evaluate_model

        evaluate_model(self.model, recipe=self.recipe, vs=self.vs, overrides=overrides, output=self.output, leaderboard=self.leaderboard)

    def where(self, overrides: Mapping[str, Any]) -> str:
        kept = overrides.get("eval.cache", "auto") is not None
        return "; the same command goes on after the last whole batch" if kept else "; without eval.cache nothing is kept, the same command starts anew"


@dataclass(frozen=True)
class Compare(_Command):
    """Train methods side by side over several seeds, each beside its null control, or tabulate finished runs: gains, intervals, diversity, cost."""

    what: Annotated[Positional[tuple[str, ...]], arg(metavar="RECIPE or RUN ...")]
    """Recipes (each trained with every seed, into OUTPUT/recipe/seed) and folders of finished runs."""
    null: tuple[str, ...] = ()
    """Recipes or folders that are null controls; each belongs to the method of its name that differs in arguments alone."""
    seeds: int = 3
    """Of each recipe: 0, 1, ..."""
    output: Path = Path("runs/compare")
    """Where runs, compare.json, compare.md and compare.png go; the same command goes on with what is there."""
    jobs: int | None = None
    """Runs at once; none: one an accelerator, else one a core as far as memory allows."""
    controls: bool = True
    """Trains null_context(METHOD) beside every recipe whose teacher reads a context."""
    reference: str | None = None
    """The row that all others are paired with, by its name or its method's; none: opsd where there is one."""
    takes_settings: ClassVar[bool] = True

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.comparing import compare_methods

        options = {"seeds": self.seeds, "output": self.output, "jobs": self.jobs, "controls": self.controls, "reference": self.reference}
        compare_methods(self.what, nulls=self.null, overrides=overrides, **options)

    def where(self, overrides: Mapping[str, Any]) -> str:
        return f"; what is trained lies in {self.output}, the same command goes on"


@dataclass(frozen=True)
class Methods(_Command):
    """List the methods and what can be put around them, each in words."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.listing import list_methods

        print(list_methods())


@dataclass(frozen=True)
class Recipes(_Command):
    """List the shipped recipes, each by its first line; any of them is trained by `selfdistill train NAME`."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.listing import list_recipes

        print(list_recipes())


@dataclass(frozen=True)
class Describe(_Command):
    """Show what a method is, its parts and its arguments, or only the parts in which it differs from another."""

    method: Positional[Method]
    """A name like hsd or grpo_plus(hsd), or package.module:name."""
    vs: Annotated[str | None, arg(metavar="METHOD")] = None
    """The method to compare with."""
    controls: bool = False
    """Lists the controls and ablations of the method instead, with the part that each one changes."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.actions import describe_method, list_controls

        if self.controls and self.vs:
            raise ValueError(f"--controls lists the controls of {self.method} alone; leave out --vs {self.vs}")
        list_controls(self.method) if self.controls else describe_method(self.method, vs=self.vs)


@dataclass(frozen=True)
class Preview(_Command):
    """Show what student and teacher read on real problems, token by token where it joins the completion, and prove the alignment."""

    recipe: Positional[Recipe]
    """A .toml file, or the name of a shipped recipe such as quickstart."""
    problems: int = 2
    """How many problems are shown."""
    takes_settings: ClassVar[bool] = True

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.actions import preview_recipe

        preview_recipe(self.recipe, overrides=overrides, problems=self.problems)


@dataclass(frozen=True)
class Sample(_Command):
    """Ask a trained model a question."""

    model: Positional[Model]
    """A run's folder, a model folder or a hub id."""
    question: Annotated[Positional[str], arg(metavar="QUESTION")]
    """What the model is asked, as one user turn."""
    n: int = 1
    """Completions."""
    temperature: float = 1.0
    """Divides the logits before sampling; 0 is greedy."""
    max_completion_length: int = 512
    """Tokens of a completion; at most half of the model's positions."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.actions import sample_model

        sample_model(self.model, self.question, n=self.n, temperature=self.temperature, max_completion_length=self.max_completion_length)


@dataclass(frozen=True)
class Export(_Command):
    """Write a run's model as an ordinary Hugging Face folder."""

    model: Positional[Model]
    """A run's folder or a checkpoint."""
    output: Folder = Path("exported")
    """A new folder."""
    merge: bool = False
    """Folds a LoRA adapter into its base."""
    push_to_hub: Annotated[str | None, arg(metavar="ID")] = None
    """Uploads to this hub id as well."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.actions import export_model

        export_model(self.model, output=self.output, merge=self.merge, push_to_hub=self.push_to_hub)


@dataclass(frozen=True)
class Pretrain(_Command):
    """Train the testbed's base from scratch by a recipe of phases."""

    recipe: Positional[Recipe]
    """A .toml file, or tiny_base."""
    output_dir: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Where it goes instead of the recipe's own folder."""

    def run(self, overrides: Mapping[str, Any]) -> None:
        from selfdistill.cli.actions import pretrain_base

        pretrain_base(self.recipe, output_dir=self.output_dir)
