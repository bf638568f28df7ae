"""Every method of the field, one function a paper; each returns a Method of frozen parts."""

from collections.abc import Callable

from selfdistill.method import Method
from selfdistill.methods.ablations import constant_weight, no_clip, other_direction, other_weights
from selfdistill.methods.ccopd import ccopd
from selfdistill.methods.controls import null_context, shuffled_context, shuffled_peers
from selfdistill.methods.eopd import entropy_opd, eopd
from selfdistill.methods.exprl import exprl, exprl_process
from selfdistill.methods.gkd import gkd
from selfdistill.methods.grpo import dapo, dr_grpo, grpo, gspo
from selfdistill.methods.grpo_plus import grpo_blend, grpo_plus
from selfdistill.methods.hsd import hsd
from selfdistill.methods.opcod import opcod
from selfdistill.methods.opd import opd
from selfdistill.methods.opsd import opsd
from selfdistill.methods.purified_opsd import purified_opsd
from selfdistill.methods.pw_opsd import pw_opsd
from selfdistill.methods.rcsd import rcsd, rcsd_writer
from selfdistill.methods.rlsd import rlsd
from selfdistill.methods.sdft import sdft
from selfdistill.methods.sdpo import sdpo, sdpo_trust_region
from selfdistill.methods.sft import sft
from selfdistill.methods.sgsd import sgsd
from selfdistill.methods.step_critique import step_critique
from selfdistill.methods.topd import topd, topd_self

METHODS: tuple[Callable[..., Method], ...] = (
    sft,
    grpo,
    dr_grpo,
    dapo,
    gspo,
    opd,
    gkd,
    entropy_opd,
    eopd,
    opsd,
    rlsd,
    sdft,
    sdpo,
    sdpo_trust_region,
    opcod,
    hsd,
    pw_opsd,
    purified_opsd,
    rcsd_writer,
    rcsd,
    ccopd,
    sgsd,
    step_critique,
    exprl,
    exprl_process,
    topd,
    topd_self,
)
"""What stands alone; each is found by its function's name."""

CONTROLS: tuple[Callable[..., Method], ...] = (null_context, shuffled_peers, constant_weight, no_clip, other_direction, other_weights)
"""What shows whose a gain is; each changes one part of a method, or raises ValueError where it has no such part."""

WRAPPERS: tuple[Callable[..., Method], ...] = (grpo_plus, grpo_blend, shuffled_context, *CONTROLS)
"""What takes another method: written as wrapper(method), for example grpo_plus(hsd)."""

__all__ = [f.__name__ for f in (*METHODS, *WRAPPERS)]
