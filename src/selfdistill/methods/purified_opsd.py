"""Purified OPSD (2607.02234): keep what question and reference say together, drop what the reference says by itself."""

from dataclasses import replace

from selfdistill.contexts import ThreeViews
from selfdistill.divergences import JSD
from selfdistill.method import Method
from selfdistill.methods.opsd import opsd
from selfdistill.reductions import Reduction, TokenMean
from selfdistill.targets import PMI


def purified_opsd(*, clip: float = 10.0, beta: float = 1.0, reduction: Reduction = TokenMean()) -> Method:
    """OPSD towards softmax(log B + c tanh(D / c) / beta), D = log T - log R centred, by JSD(0.5) without entry clip.

    Where the paper is silent: JSD weight 0.5; OPSD's mean over the step's tokens; the base view is the student's prompt byte for byte,
    teacher and reference think, every log-softmax at temperature 1.1.
    """
    return replace(opsd(), context=ThreeViews(thinking=True), target=PMI(clip, beta), divergence=JSD(0.5), reduction=reduction)
