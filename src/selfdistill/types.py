"""What flows through one training step, in order of appearance: text first, tensors after packing.

Axes: `group` rollouts of one problem; `length` every token of a packed view; `student_tokens` the trained tokens of the
unique rollouts of a batch; `tokens` the trained tokens of its training samples (K teachers repeat a rollout K times);
`samples`; `vocab`; `hidden`. There is no batch axis and no padding: the layout a model needs is its own affair.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfdistill.devices import send

Message = Mapping[str, str]
Weights = Literal["teacher", "initial", "student"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question and everything privileged that is known about it."""

    prompt: str | tuple[Message, ...]
    """The question: one user turn, or chat messages whose last one is the user's."""
    answer: str = ""
    solution: str = ""
    privileged_context: str = ""
    instruction: str = ""
    """How the answer is to be written; closes the last user turn of student and teacher alike."""
    id: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Every other column of the dataset: rubric, demonstration, skills, ..."""
    templates: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The words around privileged text, by kind; a kind that is missing falls back to the English ones."""

    @property
    def question(self) -> str:
        """The last user turn."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


@dataclass(kw_only=True)
class Rollout:
    """One completion, as token ids that are never re-tokenised, with all that is later said about it."""

    prompt_ids: list[int]
    completion_ids: list[int]
    behavior_logp: list[float]
    """Log-probability of each completion token under the tempered distribution, before top-p and top-k."""
    text: str
    """The completion decoded without special tokens: what is graded, shown to peers and stored."""
    truncated: bool = False
    """The completion ended at `max_completion_length`, not at an end-of-sequence token, or its conversation left no room for one."""
    temperature: float = 1.0
    policy_version: int = 0
    """Number of training steps taken by the weights that wrote it."""
    index: int = 0
    """Place in its group."""
    prompt: tuple[Message, ...] | None = None
    """The chat it answered, the answer-format instruction included; None: its problem's own."""
    trajectory: str = ""
    """Rows of one multi-turn conversation share it, and no others of the step."""
    earlier: tuple["Rollout", ...] = ()
    """The student's replies to the turns before; neither trained nor graded, and in no group or count."""
    trained: tuple[int, ...] | None = None
    """Completion positions that are trained; None: all."""
    reward: float | None = None
    """None: not graded; takes the rollout out of a loss that reads rewards, and out of its counts."""
    shaping: float = 0.0
    """Added to the reward for advantages only (length penalties); never read as correctness."""
    feedback: dict[str, str] = field(default_factory=dict)
    """Texts written about this rollout, by kind: environment, critique, ..."""
    annotations: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """One number a completion token, by name: step deltas, masks. Travels into TokenSignals."""
    labels: tuple[Mapping[int, float], ...] | None = None
    """What the label term teaches at each completion token, as probabilities by token id; None: the token itself."""
    windows: list["Rollout"] = field(default_factory=list)
    """Continuations from inside this rollout that a feedback stage wrote; a part of kind labels reads them, nothing else does."""

    @property
    def positions(self) -> tuple[int, ...]:
        """The completion positions that are trained."""
        return tuple(range(len(self.completion_ids))) if self.trained is None else self.trained


@dataclass(frozen=True, kw_only=True)
class Note:
    """A text about a problem: the fields that its kind of template is given, and how well it fits."""

    fields: Mapping[str, str]
    score: float = 0.0


@dataclass(kw_only=True)
class Group:
    """The rollouts of one problem."""

    problem: Problem
    rollouts: list[Rollout]
    donor: "Group | None" = None
    """Another problem's group of the same step: what null controls show instead of its own."""
    peer: "Group | None" = field(default=None, repr=False, compare=False)
    """The other model's group on this very problem, where two models learn in lockstep."""
    notes: dict[str, tuple["Note", ...]] = field(default_factory=dict)
    """What a feedback stage found or wrote about the problem, by kind: retrieved skills, rubrics, ..."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One forward pass over a rollout's completion: the prompt it is read under and the weights that read it."""

    messages: tuple[Message, ...]
    """The chat up to the assistant's header."""
    weights: Weights = "teacher"
    thinking: bool | None = None
    """The chat template's `enable_thinking`; None leaves the template's default."""
    prompt_ids: tuple[int, ...] | None = None
    """The encoded chat; filled in by `training_samples` unless given."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What one teacher says about one rollout: its views by role, and its share among the rollout's teachers."""

    views: Mapping[str, View]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """One rollout read by one teacher (or none), with the scalars that weigh it in the step's loss."""

    rollout: Rollout
    views: Mapping[str, View]
    """Empty: untaught, no teacher pass."""
    advantage: float
    distill_scale: float = 0.0
    policy_scale: float = 0.0
    label_scale: float = 0.0
    reference_scale: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Sequences laid end to end, and where the states that predict the trained tokens are."""

    input_ids: Int[Tensor, " length"]
    positions: Int[Tensor, " length"]
    """Restarts at 0 with every sequence."""
    lengths: tuple[int, ...]
    """Tokens of each sequence; sums to `length`."""
    predicts: Int[Tensor, " predicted"]
    """Index into `length` of the state before each trained token."""
    kept_ids: Int[Tensor, " length"] | None = None
    """`input_ids` on the host, where these are on a device."""

    @property
    def host_ids(self) -> Int[Tensor, " length"]:
        """The tokens where looking at them waits for no device."""
        return self.input_ids.cpu() if self.kept_ids is None else self.kept_ids

    def to(self, device: torch.device) -> "Packed":
        return Packed(
            input_ids=send(self.input_ids, device),
            positions=send(self.positions, device),
            lengths=self.lengths,
            predicts=send(self.predicts, device),
            kept_ids=self.host_ids,
        )


@dataclass(frozen=True, kw_only=True)
class HostIndex:
    """Where a batch's tokens belong, on the host: looking there waits for no device."""

    student_token: Int[np.ndarray, " tokens"]
    sample: Int[np.ndarray, " tokens"]
    taught: Bool[np.ndarray, " samples"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch. Samples of the same rollout share its student tokens through `student_token`."""

    student: Packed
    views: Mapping[str, Packed]
    """By role, over the taught samples only, in the order of `tokens`."""
    weights: Mapping[str, Weights]
    """Whose weights read each role."""
    reads_initial: bool
    """The student's own prompts are read by the initial weights too (KL to pi_0)."""
    token: Int[Tensor, " tokens"]
    student_token: Int[Tensor, " tokens"]
    sample: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    """Place in the completion, from 0."""
    behavior_logp: Float[Tensor, " tokens"]
    proximal_logp: Float[Tensor, " tokens"] | None
    """Log-probabilities of the trainer's weights before the first update on this step's rollouts; None: this update is the first."""
    annotations: Mapping[str, Float[Tensor, " tokens"]]
    label_token: Int[Tensor, "tokens labels"]
    label_share: Float[Tensor, "tokens labels"]
    """Probabilities of the label's tokens, in rows filled up with zeros."""
    length: Int[Tensor, " samples"]
    """Tokens of the whole completion."""
    trained: Int[Tensor, " samples"]
    """Trained tokens of the completion."""
    taught: Bool[Tensor, " samples"]
    reward: Float[Tensor, " samples"]
    advantage: Float[Tensor, " samples"]
    distill_scale: Float[Tensor, " samples"]
    policy_scale: Float[Tensor, " samples"]
    label_scale: Float[Tensor, " samples"]
    reference_scale: Float[Tensor, " samples"]
    temperature: float
    """At which the rollouts were sampled."""
    kept: HostIndex | None = None
    """Where the batch is on a device: what `host` gives."""

    @property
    def host(self) -> HostIndex:
        """Where its tokens belong."""
        if self.kept is not None:
            return self.kept
        return HostIndex(student_token=self.student_token.cpu().numpy(), sample=self.sample.cpu().numpy(), taught=self.taught.cpu().numpy())

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: _moved(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved | {"kept": None if device.type == "cpu" else self.host})

    def at(self, tokens: Int[Tensor, " chosen"], *, samples: slice, first: int) -> "Batch":
        """Some tokens of some samples, whose student tokens are counted from `first`; packed views stay whole."""
        by_token = ("token", "student_token", "sample", "position", "behavior_logp", "proximal_logp", "label_token", "label_share")
        by_sample = ("length", "trained", "taught", "reward", "advantage", "distill_scale", "policy_scale", "label_scale", "reference_scale")
        chosen = {name: None if (x := getattr(self, name)) is None else x[tokens] for name in by_token}
        chosen |= {name: getattr(self, name)[samples] for name in by_sample}
        chosen |= {"student_token": self.student_token[tokens] - first, "sample": self.sample[tokens] - samples.start}
        return replace(self, **chosen, kept=None, annotations={name: x[tokens] for name, x in self.annotations.items()})


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors and packed views on the device, inside mappings too; anything else as it is."""
    if isinstance(value, Mapping):
        return {name: _moved(v, device) for name, v in value.items()}
    if isinstance(value, Tensor):
        return send(value, device)
    return value.to(device) if isinstance(value, Packed) else value


@dataclass(frozen=True, kw_only=True)
class TokenSignals:
    """Everything a loss may look at: scalars per token of each sample; the vocabulary is already gone."""

    batch: Batch
    logp: Float[Tensor, " tokens"]
    """log S_t(y_t) at the loss temperature, with gradient."""
    policy_logp: Float[Tensor, " tokens"]
    """log S_t(y_t) at the sampling temperature, with gradient: what importance ratios are made of."""
    label_kl: Float[Tensor, " tokens"]
    """KL(label_t || S_t), with gradient: -log S_t(y_t) where the label is y_t itself; 0 unless the method asks for it."""
    entropy: Float[Tensor, " tokens"]
    """H(S_t) in nats, no gradient."""
    target_logp: Float[Tensor, " tokens"]
    """log of the target's probability of y_t, no gradient; 0 where untaught."""
    target_entropy: Float[Tensor, " tokens"]
    divergence: Float[Tensor, " tokens"]
    """D(S_t, target_t), with gradient; exactly 0 where untaught."""
    reference_kl: Float[Tensor, " tokens"]
    """KL(S_t || pi_0), with gradient; 0 unless the method asks for it."""

    @property
    def taught(self) -> Bool[Tensor, " tokens"]:
        return self.batch.taught[self.batch.sample]

    @property
    def log_ratio(self) -> Float[Tensor, " tokens"]:
        """Delta_t = log T_t(y_t) - log S_t(y_t), no gradient; 0 where untaught."""
        return torch.where(self.taught, (self.target_logp - self.logp).detach(), 0.0)

    @property
    def advantage(self) -> Float[Tensor, " tokens"]:
        return self.batch.advantage[self.batch.sample]

    def sample_mean(self, x: Float[Tensor, " tokens"], mask: Float[Tensor, " tokens"] | None = None) -> Float[Tensor, " samples"]:
        """Mean of x over each sample's trained tokens (those with mask 1, divided by their number)."""
        mask = torch.ones_like(x) if mask is None else mask
        zeros = torch.zeros_like(self.batch.advantage)
        total = zeros.index_add(0, self.batch.sample, x * mask)
        return total / zeros.index_add(0, self.batch.sample, mask).clamp(min=1)
