"""SDFT (2601.19897): the model shown a demonstration teaches itself without it."""

from selfdistill.contexts import Demonstration, Privileged
from selfdistill.method import Method
from selfdistill.sources import OnPolicy
from selfdistill.teachers import EMA


def sdft(*, rate: float = 0.01, skip_first: int = 3) -> Method:
    """Forward KL (the paper writes reverse, its author says forward was run), EMA teacher, first tokens not trained."""
    return Method(source=OnPolicy(skip_first), context=Privileged((Demonstration(),)), teacher=EMA(rate))
