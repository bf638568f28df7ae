"""Null controls: the same method with a context that cannot help. A gain that survives them is not the context's."""

from dataclasses import replace

from selfdistill.contexts import FromAnotherProblem
from selfdistill.feedback import LendGroups
from selfdistill.method import Method


def shuffled_context(method: Method) -> Method:
    """Every teacher reads what belongs to the next problem of the step: its answer, solution and peers."""
    return replace(method, feedback=(*method.feedback, LendGroups()), context=FromAnotherProblem(method.context))


def shuffled_peers(method: Method) -> Method:
    """Every teacher reads its own problem's answer, but peers of the next problem of the step."""
    return replace(method, feedback=(*method.feedback, LendGroups()), context=FromAnotherProblem(method.context, keep_answer=True))
