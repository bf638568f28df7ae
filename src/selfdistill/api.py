"""The Python entry: `for result in selfdistill.train(model=..., method=hsd(), dataset=...): ...`, in a notebook as on a cluster."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from selfdistill.advantages import GroupRelative
from selfdistill.config import Settings, make_settings
from selfdistill.conversations import Conversation
from selfdistill.imports import load_object
from selfdistill.loading import Lora, load_policy
from selfdistill.lockstep import introduce, lockstep
from selfdistill.method import Method
from selfdistill.method_names import build_conversation, build_method
from selfdistill.models import Policy, check_head, check_layout
from selfdistill.preflight import prove_alignment
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.tasks import Task
from selfdistill.tasks.files import Dataset, with_templates
from selfdistill.tasks.grading import RewardFunction, grade
from selfdistill.tasks.loading import load_task
from selfdistill.templates import load_templates
from selfdistill.trainer import StepResult, Trainer
from selfdistill.types import Problem
from selfdistill.writers import NEEDS_PEER


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """Everything a run is made of, ready to step."""

    settings: Settings
    policy: Policy
    method: Method
    task: Task
    reward: RewardFunction | None
    conversation: Conversation
    """How evaluations tell the problems."""
    trainer: Trainer
    sampler: TransformersSampler

    def problems(self, split: str) -> Sequence[Problem]:
        return worded(self.task, split, self.settings)


def assemble(
    settings: Settings,
    *,
    policy: Policy | None = None,
    method: Method | None = None,
    task: Task | None = None,
    reward: RewardFunction | None = None,
    setting: str = "model.path",
    paired: bool = False,
) -> Assembled:
    """A run from its settings; what is given as an object takes the place of its section; `setting` is what holds the model's path.

    `paired`: a peer that the settings do not name is introduced later. Raises ValueError on anything that cannot run, before the model is loaded where
    that can be known.
    """
    torch.manual_seed(settings.seed)
    method = method or build_method(settings.method.name, settings.method.arguments, max_completion_length=settings.sampling.max_completion_length)
    _check_groups(method, settings.sampling.num_generations)
    if method.reads_peer and settings.peer is None and not paired:
        raise ValueError(NEEDS_PEER)
    task = task or load_task(settings.task)
    reward = reward or (load_object(settings.reward, setting="reward") if settings.reward else None)
    conversation = build_conversation(settings.eval.conversation)
    problems = worded(task, "train", settings)
    policy = policy or load_settings_policy(settings, setting=setting)
    check_head(policy)
    check_layout(policy)
    sampler = make_sampler(policy, settings)
    graded = partial(grade, task=task, reward=reward)
    trainer = Trainer(policy=policy, method=method, problems=problems, sampler=sampler, grade=graded, task=task, settings=settings)
    return Assembled(settings=settings, policy=policy, method=method, task=task, reward=reward, conversation=conversation, trainer=trainer, sampler=sampler)


SETTINGS = ("model.path", "peer.path")
"""What holds the path of each model that learns."""


def members(settings: Settings) -> tuple[Settings, ...]:
    """The settings of each model that learns: the run's own, and those of its peer, to whom the first model is the peer."""
    if settings.peer is None:
        return (settings,)
    turned = {"model": settings.peer, "peer": settings.model, "output_dir": f"{settings.output_dir}/peer"}
    return settings, settings.model_copy(update=turned)


def _check_groups(method: Method, rollouts: int) -> None:
    """Raises ValueError where rewards are compared within a problem and there is nothing to compare with."""
    if method.policy_coef and method.credit.reads_advantage and isinstance(method.advantage, GroupRelative) and rollouts < 2:
        raise ValueError(f"sampling.num_generations = {rollouts}: this method compares the rewards of a problem's rollouts and needs at least 2")


def train(
    *,
    model: str | Mapping[str, Any] | Policy = "tiny",
    method: str | Method = "hsd",
    dataset: str | Task | Iterable[Mapping[str, Any]] | None = None,
    reward: RewardFunction | None = None,
    **settings: Any,
) -> Iterator[StepResult]:
    """Yields one StepResult a training step; evaluation, logging and early stops are loops around it.

    model: a name, a model section like {"path": ..., "lora": {"r": 16}}, or a Policy. dataset: a task's name, a path, a hub id,
    a Task, or rows with the columns prompt, answer, solution. Other keywords are settings,
    nested ones as mappings: steps=50, optimizer={"lr": 1e-5}. Raises ValueError on bad input.
    """
    for (result,) in _steps((model,), method, dataset, reward, settings):
        yield result


def train_pair(
    *,
    model: str | Mapping[str, Any] | Policy,
    peer: str | Mapping[str, Any] | Policy,
    method: str | Method = "opcod",
    dataset: str | Task | Iterable[Mapping[str, Any]] | None = None,
    reward: RewardFunction | None = None,
    **settings: Any,
) -> Iterator[tuple[StepResult, ...]]:
    """Like `train`, of two models in lockstep: yields (the model's StepResult, its peer's). Each model is the other's peer."""
    yield from _steps((model, peer), method, dataset, reward, settings)


def _steps(
    models: Sequence[str | Mapping[str, Any] | Policy],
    method: str | Method,
    dataset: str | Task | Iterable[Mapping[str, Any]] | None,
    reward: RewardFunction | None,
    settings: Mapping[str, Any],
) -> Iterator[tuple[StepResult, ...]]:
    """A result a model and step, the alignment of each proved before."""
    if "peer" in settings:
        raise ValueError("train() teaches one model, so peer has no meaning there; call selfdistill.train_pair(model=..., peer=...)")
    data = dict(settings)
    data |= {"method": method} if isinstance(method, str) else {}
    data |= {"task": dataset} if isinstance(dataset, str) else {}
    task = dataset if dataset is None or isinstance(dataset, str | Task) else Dataset(rows=dataset)
    trainers = [
        assemble(
            make_settings(data | ({} if isinstance(model, Policy) else {"model": model}), {}),
            policy=model if isinstance(model, Policy) else None,
            method=method if isinstance(method, Method) else None,
            task=None if isinstance(task, str) else task,
            reward=reward,
            setting=setting,
            paired=len(models) > 1,
        ).trainer
        for model, setting in zip(models, SETTINGS, strict=False)
    ]
    introduce(trainers)
    prove_alignment(*trainers)
    yield from lockstep(trainers)


def load_settings_policy(settings: Settings, path: str | None = None, *, setting: str = "model.path") -> Policy:
    """The policy of a run's model section, or another checkpoint loaded the same way."""
    model = settings.model
    lora = Lora(**model.lora.model_dump()) if model.lora and path is None else None
    return load_policy(
        path or model.path,
        dtype=model.dtype,
        device=model.device,
        lora=lora,
        gradient_checkpointing=model.gradient_checkpointing,
        attention=model.attention,
        layout=model.layout,
        setting=setting,
    )


def make_sampler(policy: Policy, settings: Settings, *, on_progress: Callable[[int, int], None] | None = None) -> TransformersSampler:
    """The training sampler of a run."""
    s = settings.sampling
    return TransformersSampler(
        policy=policy,
        max_completion_length=s.max_completion_length,
        max_prompt_length=s.max_prompt_length,
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        batch_size=s.batch_size,
        thinking=s.thinking,
        cuda_graphs=s.cuda_graphs,
        on_progress=on_progress,
    )


def make_eval_sampler(policy: Policy, settings: Settings, *, on_progress: Callable[[int, int], None] | None = None) -> TransformersSampler:
    """The sampler evaluations decode with."""
    e = settings.eval
    return replace(
        make_sampler(policy, settings, on_progress=on_progress),
        max_completion_length=e.max_completion_length or settings.sampling.max_completion_length,
        temperature=e.temperature,
        top_p=e.top_p,
        top_k=0,
        batch_size=e.batch_size,
        thinking=settings.sampling.thinking if e.thinking is None else e.thinking,
    )


def worded(task: Task, split: Any, settings: Settings) -> Sequence[Problem]:
    """The split's problems, under the user's own words where a file gives some."""
    problems = task.problems(split)
    return with_templates(problems, load_templates(settings.task.templates)) if settings.task.templates else problems
