"""ExpRL (2606.17024): a judge that sees the reference rewards what the policy, which never sees it, has written."""

from dataclasses import replace

from selfdistill.advantages import Annotated
from selfdistill.feedback import JudgeOutcome, JudgeSteps
from selfdistill.judges import Judge, ModelJudge
from selfdistill.method import Method
from selfdistill.policy_losses import ClippedRatio
from selfdistill.reductions import SequenceMean
from selfdistill.steps import OpenedBy, Splitter


def exprl(*, judge: Judge = ModelJudge(), reference_coef: float = 0.001) -> Method:
    """R = s = (s~ - 1) / 4, s~ the judge's grade of 1 to 5; GRPO on R with clip 0.2 / 0.28, plus 0.001 KL(pi || pi_0).

    R = 0 on a rollout cut at the length limit; one whose judgement cannot be read is out of the loss. [open] Mean over each rollout, as in GRPO;
    KL(pi || pi_0) over the full vocabulary.
    """
    return Method(
        feedback=(JudgeOutcome(judge),),
        policy_loss=ClippedRatio(clip_high=0.28),
        distill_coef=0.0,
        policy_coef=1.0,
        reference_coef=reference_coef,
        reduction=SequenceMean(),
    )


def exprl_process(*, judge: Judge = ModelJudge(), steps: Splitter = OpenedBy("###"), reference_coef: float = 0.001) -> Method:
    """ExpRL that credits each step with the change of the judge's score: A_t = s_t - s_(t-1) for step t > 1, A_1 = s_1 - s_T.

    A is shared by a step's tokens and not normalised; clip 0.2 / 0.26, plus 0.001 KL(pi || pi_0). A = 0 on a rollout of one step or cut at
    the length limit. [open] s_t is the judge's score of steps 1..t (the released prompt grades single steps); mean over each rollout.
    """
    stage, base = JudgeSteps(judge, steps), exprl(reference_coef=reference_coef)
    return replace(base, feedback=(stage,), credit=Annotated(stage.name), policy_loss=ClippedRatio(clip_high=0.26))
