"""What a feedback stage may work with: the student as a writer, the weights that read, the task and its problems, and a memory kept with the run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from selfdistill.sampling import Sampler
from selfdistill.tasks import Task
from selfdistill.types import Group, Problem, Rollout, View

if TYPE_CHECKING:
    from selfdistill.models import Policy
    from selfdistill.reading import Readers


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How far the student is from what teaches one rollout, before this step's update."""

    rollout: Rollout
    views: Mapping[str, View]
    """By role, with encoded prompts: those of the teacher with the largest share, the first among equals."""
    divergence: Float[Tensor, " trained"]
    """D of each trained token, averaged over the rollout's teachers by their shares."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Stages share it; a run has one."""

    sampler: Sampler
    """Samples the student."""
    policy: "Policy"
    """The student."""
    readers: "Readers"
    """The weights that the method's views name."""
    grade: Callable[[list[Group]], None]
    """Sets the rewards of groups that a stage has sampled itself."""
    task: Task
    """Where the problems are from; stages ask it for what it can say beyond `verify`: a critique, verdicts on steps."""
    score: Callable[[list[Group]], list[Scored]]
    """The method's own divergence on every taught rollout, without gradient."""
    problems: Sequence[Problem]
    """All training problems; drawing from them does not move the run's position in the data."""
    memory: dict[str, Any]
    """What a stage remembers from step to step, by its name: JSON values, saved with every checkpoint as memory.json."""
    metrics: dict[str, float]
    """What stages report of this step, by name; empty again before the next one."""
    peer: "Tools | None" = field(default=None, repr=False, compare=False)
    """Those of the other model, where two learn in lockstep."""
