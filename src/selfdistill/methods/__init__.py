"""Every method of the field, one function a paper; each returns a Method of frozen parts."""

from collections.abc import Callable

from selfdistill.method import Method
from selfdistill.methods.controls import shuffled_context, shuffled_peers
from selfdistill.methods.grpo import dapo, dr_grpo, grpo, gspo
from selfdistill.methods.grpo_plus import grpo_plus
from selfdistill.methods.hsd import hsd
from selfdistill.methods.opd import opd
from selfdistill.methods.opsd import opsd
from selfdistill.methods.purified_opsd import purified_opsd
from selfdistill.methods.pw_opsd import pw_opsd
from selfdistill.methods.sdft import sdft
from selfdistill.methods.sdpo import sdpo, sdpo_trust_region
from selfdistill.methods.sft import sft
from selfdistill.methods.topd import topd, topd_self

METHODS: tuple[Callable[..., Method], ...] = (
    sft,
    grpo,
    dr_grpo,
    dapo,
    gspo,
    opd,
    opsd,
    sdft,
    sdpo,
    sdpo_trust_region,
    hsd,
    pw_opsd,
    purified_opsd,
    topd,
    topd_self,
)
"""What stands alone; each is found by its function's name."""

WRAPPERS: tuple[Callable[..., Method], ...] = (grpo_plus, shuffled_context, shuffled_peers)
"""What takes another method: written as wrapper(method), for example grpo_plus(hsd)."""

__all__ = [f.__name__ for f in (*METHODS, *WRAPPERS)]
