"""Null controls: the same method with a context that cannot help. A gain that survives them is not the context's."""

from dataclasses import replace
from typing import Literal

from selfdistill.contexts import Context, FromAnotherProblem, FullPrompt, NoTeacher, SamePrompt, SuccessfulPeer, holds
from selfdistill.feedback import CountSameContext, LendGroups
from selfdistill.method import Method
from selfdistill.null_contexts import Blank, Scrambled, Wrong


def null_context(method: Method, *, kind: Literal["empty", "shuffled", "wrong", "random"] = "shuffled") -> Method:
    """The method's words around nothing, another problem's texts, falsehoods about this one, or another's words in random order.

    Raises ValueError for a method whose teacher reads only what the student does.
    """
    if not method.reads_teacher or isinstance(method.context, NoTeacher | SamePrompt | FullPrompt):
        raise ValueError("this method's teacher reads nothing beyond the student's prompt, so no null context changes it")
    parts = {"empty": Blank, "shuffled": FromAnotherProblem, "wrong": Wrong, "random": Scrambled}
    context = parts[kind](method.context)
    return replace(method, context=context) if kind == "empty" else _lending(method, context)


def shuffled_context(method: Method) -> Method:
    """Every teacher reads what belongs to the next problem of the step: its answer, solution and peers."""
    return null_context(method, kind="shuffled")


def shuffled_peers(method: Method) -> Method:
    """Every teacher reads its own problem's answer, but peers of the next problem of the step."""
    if not method.reads_teacher or not holds(method.context, SuccessfulPeer):
        raise ValueError("this method's teacher reads no successful peer, so those of another problem change nothing")
    return _lending(method, FromAnotherProblem(method.context, keep_answer=True))


def _lending(method: Method, context: Context) -> Method:
    """Groups are lent before the method's own stages, which may score under the context; what those write on a donor is seen all the same."""
    return replace(method, feedback=(LendGroups(), *method.feedback, CountSameContext(context, method.context)), context=context)
