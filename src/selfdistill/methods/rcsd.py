"""RCSD (2606.19327): the teacher reads a rubric of the problem; a first stage teaches the model to write one."""

from dataclasses import replace

from selfdistill.contexts import Privileged
from selfdistill.divergences import ForwardKL, TopK
from selfdistill.feedback import NoteFirst, NoteRubrics
from selfdistill.method import Method
from selfdistill.methods.opsd import opsd
from selfdistill.notes import AfterNote, Rubric, RubricAndSolution, SolutionForRubric
from selfdistill.rubrics import RubricColumn, RubricSource
from selfdistill.sources import AskForRubrics
from selfdistill.writers import Writer


def rcsd_writer() -> Method:
    """RCSD's stage 1, the writer of rubrics: L = mean_t KL(T_0(. | q, reference, r^_<t) || S(. | q, r^_<t)), r^ ~ S(. | q, asked for one).

    The formula's KL: no entry clip, the full vocabulary (the released code has stage 2 alone). [open] temperature 1.2 and thinking as in stage 2;
    unparsable rubrics are taught too.
    """
    context = Privileged((SolutionForRubric(),), thinking=True)
    return replace(opsd(), source=AskForRubrics(), context=context, divergence=ForwardKL(), loss_temperature=1.2)


def rcsd(
    *, rubrics: RubricSource = RubricColumn(), with_reference: bool = False, reason_first: Writer | None = None, clip: float = 0.05, top_k: int = 20
) -> Method:
    """Stage 2: OPSD whose teacher reads a rubric; L = mean_t sum over the teacher's top_k likeliest v of min(T(v) (log T(v) - log S(v)), clip).

    T and S are renormalised over those v, at temperature 1.2. The formula shows the rubric alone; the code adds the reference
    (`with_reference`) and a note on both, by the writer `reason_first`. [open] Without a rubric a problem is untaught, without a
    reference it reads its rubric alone; the note stands in the user's turn, so that both sides keep one header.
    """
    context = Privileged((RubricAndSolution(), Rubric()) if with_reference else (Rubric(),), thinking=True)
    noted = NoteRubrics(rubrics)
    base = replace(opsd(), feedback=(noted,), context=context, divergence=TopK(ForwardKL(clip), top_k), loss_temperature=1.2)
    return replace(base, feedback=(noted, NoteFirst(context, reason_first)), context=AfterNote(context)) if reason_first else base
