"""PW-OPSD (2605.21606): OPSD, believing the teacher more the further the rollout is."""

from dataclasses import replace

from selfdistill.method import Method
from selfdistill.methods.opsd import opsd
from selfdistill.reductions import SequenceMean
from selfdistill.token_weights import PositionSigmoid


def pw_opsd(*, floor: float = 0.25, center: float = 0.30, width: float = 0.10, clip: float = 0.05) -> Method:
    """OPSD with w_t = floor + (1 - floor) sigmoid((frac_t - center) / width), mean over rollouts of the mean over tokens."""
    return replace(opsd(clip=clip), token_weight=PositionSigmoid(floor, center, width), reduction=SequenceMean())
