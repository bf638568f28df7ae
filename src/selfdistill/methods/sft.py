"""SFT: cross-entropy on the reference solution."""

from selfdistill.method import Method
from selfdistill.sources import Reference


def sft() -> Method:
    """L = -mean_t log S(r_t | q, r_<t) over the tokens of the reference solution r."""
    return Method(source=Reference(), distill_coef=0.0, label_coef=1.0)
