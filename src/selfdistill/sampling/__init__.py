"""Engines that write completions. A sampler turns problems into groups of rollouts and takes over new weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from selfdistill.types import Group, Problem, Rollout

if TYPE_CHECKING:
    from selfdistill.models import Policy


@runtime_checkable
class Sampler(Protocol):
    """Samples the student."""

    def sample(self, problems: Sequence[Problem], n: int) -> list[Group]:
        """n completions of every problem, with the log-probs of their tokens before top-p and top-k."""
        ...

    def has_room(self, problem: Problem) -> bool:
        """Whether a problem's prompt leaves room for a completion; where it does not, `sample` raises."""
        ...

    def complete(self, prompts: Sequence[list[int]]) -> list[Rollout]:
        """One completion of every prompt of token ids, in their order: a window is the completion of a prompt and half a rollout."""
        ...

    def write(self, problem: Problem, text: str) -> Rollout:
        """A given text as if it had been sampled; its log-probs are 0."""
        ...

    def decoding(self, *, temperature: float, max_completion_length: int | None = None, thinking: bool | None = None) -> "Sampler":
        """The same weights under another temperature (0: greedy), length and thinking flag: for texts that are not trained on.

        None keeps this sampler's own. Their prompts are longer than a dataset's, so only the model's positions limit them.
        """
        ...

    def sync(self, policy: "Policy", version: int) -> None:
        """Samples from these weights from now on; `version` is the number of optimizer steps behind them.

        On what `decoding` returns it leaves the original as it is, so a stage lets a teacher write that way.
        """
        ...
