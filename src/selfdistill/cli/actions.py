"""What the smaller commands do: names and paths in, a printed page or a folder out."""

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from selfdistill.api import Assembled
    from selfdistill.method import Method
    from selfdistill.types import Group

out = Console(highlight=False, soft_wrap=True)
LISTED = 100
"""Columns of a list of controls, whatever the terminal's."""


def describe_method(name: str, *, vs: str | None) -> None:
    """What a method is in a sentence, its parts and its arguments; or the differing parts side by side."""
    from selfdistill.method import describe
    from selfdistill.method_names import arguments_of, build_method, functions_of

    method = build_method(name, {}, max_completion_length=1024)
    if vs is not None:
        _compare(method, build_method(vs, {}, max_completion_length=1024), (name, vs))
        return
    for function in functions_of(name):
        said = ": ".join(filter(None, (getattr(function, "__name__", name), _first_line(function))))
        out.print(escape(said), soft_wrap=False)
    out.print()
    out.print(_columns(("part", name), list(describe(method).items())))
    if arguments := arguments_of(name):
        out.print()
        out.print(_columns(("argument", "default"), [(f"--method.{key}", text) for key, text in arguments.items()]))


def _compare(one: "Method", other: "Method", names: tuple[str, str]) -> None:
    """The parts that differ, and under them what differs without being another objective."""
    from selfdistill.method import besides
    from selfdistill.variants import apart

    claimed, decided = apart(one, other, names)
    found = {"part": claimed, "decided here, where its paper is silent": decided, "besides": besides(one, other)}
    if not any(found.values()):
        out.print(f"{escape(names[0])} and {escape(names[1])} do not differ")
    for i, (title, rows) in enumerate((title, rows) for title, rows in found.items() if rows):
        out.print(*([""] if i else []), _columns((title, *names), [(part, *texts) for part, texts in rows.items()]), sep="\n")


def _columns(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None)
    for title in titles:
        table.add_column(escape(title), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def list_controls(name: str) -> None:
    """Every control and ablation of a method as it is written after a command, what it is for, and the part it changes."""
    from selfdistill.method import diff
    from selfdistill.method_names import build_method
    from selfdistill.variants import controls_of

    method = build_method(name, {}, max_completion_length=1024)
    found = controls_of(name)
    if not found:
        out.print(f"no control changes anything of {escape(name)}")
    for variant in found:
        # a line of its own each, so that a narrow terminal breaks none of what is to be copied
        out.print(f"[bold]{escape(variant.written)}[/]")
        for line in (variant.why, *(_change(part, *texts) for part, texts in diff(method, variant.method).items())):
            out.print(escape(fill(line, width=LISTED, initial_indent="    ", subsequent_indent="    ")))


def _change(part: str, one: str, other: str) -> str:
    """A part before and after, one around the method's own showing that as …; where that is long, its name."""
    from selfdistill.method import UNUSED

    inside = one in other and one not in ("()", UNUSED)
    said = f"{part}: … → {other.replace(one, '…')}" if inside else f"{part}: {one} → {other}"
    return said if len(said) <= LISTED - 4 else f"{part} changes"


def preview_recipe(recipe: str, *, overrides: Mapping[str, Any], problems: int) -> None:
    """Both prompts of real problems and the alignment proof. Raises ValueError where training would be stopped."""
    from selfdistill.config import load_settings

    if problems < 1:
        raise ValueError(f"--problems {problems} shows nothing and proves nothing; give at least 1")
    # a mistyped key is told before the libraries load
    settings = load_settings(recipe, overrides)
    from selfdistill.api import SETTINGS, assemble, members
    from selfdistill.lockstep import introduce
    from selfdistill.preflight import first_rollouts

    learners = [assemble(own, setting=setting) for own, setting in zip(members(settings), SETTINGS, strict=False)]
    trainers = [parts.trainer for parts in learners]
    introduce(trainers)
    n = max(2, min(4, learners[0].settings.sampling.num_generations))
    for parts, groups in zip(learners, first_rollouts(*trainers, problems=problems, n=n), strict=True):
        _show_preview(parts, groups)


def _show_preview(parts: "Assembled", groups: "list[Group]") -> None:
    from selfdistill.preflight import check_alignment, preview

    for shown in preview(parts.policy, parts.method, groups):
        for prompt in (shown.student, *shown.teachers):
            out.rule(f"{prompt.role}, read by the {prompt.weights}'s weights, {len(prompt.ids)} tokens")
            out.print(escape(prompt.text))
            out.print("joins   " + escape(" | ".join(prompt.header)) + " [bold]||[/] " + escape(" | ".join(shown.completion)))
    found = check_alignment(parts.policy, parts.method, groups)
    out.rule("aligned")
    out.print(f"the student is {found['own_divergence']:.1e} nats from itself under its own prompt and weights")
    out.print(f"sampler and trainer differ by {found['engine_gap']:.1e} nats a sampled token")


def sample_model(model: str, question: str, *, n: int, temperature: float, max_completion_length: int) -> None:
    """Completions of one question, thinking as a run's own sampling does. Raises ValueError on numbers that nothing can be sampled with."""
    for name, given in (("n", n), ("max-completion-length", max_completion_length)):
        if given < 1:
            raise ValueError(f"--{name} {given} leaves nothing to sample; give at least 1")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"--temperature {temperature:g} cannot divide logits; give 0 for greedy decoding, or more")
    from selfdistill.config import read_settings
    from selfdistill.loading import load_policy
    from selfdistill.sampling.transformers import TransformersSampler
    from selfdistill.types import Problem

    policy = load_policy(model_folder(model), setting="MODEL")
    own = Path(model) / "settings.json"
    thinking = read_settings(own).sampling.thinking if own.exists() else None
    room = _room(policy, max_completion_length)
    sampler = TransformersSampler(policy=policy, max_completion_length=room, temperature=temperature, thinking=thinking)
    for rollout in sampler.sample([Problem(prompt=question)], n)[0].rollouts:
        out.print(escape(rollout.text) + (" [dim](cut at max_completion_length)[/]" if rollout.truncated else ""))


def export_model(model: str, *, output: Path, merge: bool, push_to_hub: str | None) -> None:
    """An ordinary folder, whole or not at all, and the hub where asked. Raises ValueError where the folder is taken."""
    import huggingface_hub

    from selfdistill.atomic import require_writable, whole_folder
    from selfdistill.loading import load_policy, save_policy

    if output.is_dir() and (any(output.iterdir()) or not output.name):
        raise ValueError(f"--output = {str(output)!r} is not empty, or where you are; name a new folder")
    # it is made beside itself and renamed
    require_writable(output.parent if output.is_dir() else output, setting="--output")
    policy = load_policy(model_folder(model), setting="MODEL")
    with whole_folder(output) as partial:
        save_policy(policy, partial, merge=merge)
    out.print(f"wrote {output}")
    if push_to_hub:
        huggingface_hub.upload_folder(repo_id=huggingface_hub.create_repo(push_to_hub, exist_ok=True).repo_id, folder_path=output)
        out.print(f"uploaded to {push_to_hub}")


def pretrain_base(recipe: str, *, output_dir: str | None) -> None:
    """Raises ValueError on a setting the recipe gets wrong."""
    from pydantic import ValidationError

    from selfdistill.pretrain import PretrainSettings, pretrain
    from selfdistill.recipes import read_recipe
    from selfdistill.setting_names import explain

    data = read_recipe(recipe) | ({"output_dir": output_dir} if output_dir else {})
    try:
        settings = PretrainSettings.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{recipe}: {explain(error, PretrainSettings)}") from None
    folder = pretrain(settings)
    out.print((folder / "README.md").read_text(), markup=False)
    out.print(f"wrote {folder}")


def model_folder(model: str) -> str:
    """A run's last checkpoint, or the name as it is."""
    from selfdistill.checkpoint import latest

    return str(latest(Path(model))) if (Path(model) / "settings.json").exists() else model


def _room(policy: Any, wanted: int) -> int:
    """A completion length that leaves half of a short model's positions to the prompt."""
    return wanted if policy.max_length is None else min(wanted, policy.max_length // 2)


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]
