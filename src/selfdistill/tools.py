"""What a feedback stage may work with: the student as a writer, the weights that read, the task and its problems, and a memory kept with the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfdistill.sampling import Sampler
from selfdistill.tasks import Task
from selfdistill.types import Group, Problem

if TYPE_CHECKING:
    from selfdistill.models import Policy
    from selfdistill.reading import Readers


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
    problems: Sequence[Problem]
    """All training problems; drawing from them does not move the run's position in the data."""
    memory: dict[str, Any]
    """What a stage remembers from step to step, by its name: JSON values, saved with every checkpoint as memory.json."""
