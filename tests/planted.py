"""Rollouts and readings whose every number is planted, and an AUROC by its definition: what tests of diagnostics compare with."""

import numpy as np

from selfdistill.diagnostics.readings import TokenReading
from selfdistill.tools import Tools
from selfdistill.types import Rollout


def rollout(ids, reward, index=0):
    return Rollout(prompt_ids=[1], completion_ids=ids, behavior_logp=[0.0] * len(ids), text="x", reward=reward, index=index)


def reading(own, group, values):
    n = len(values)
    zeros = np.zeros(n)
    signals = dict.fromkeys(("target_logp", "divergence", "entropy", "target_entropy"), zeros)
    return TokenReading(rollout=own, group=group, position=np.arange(n), log_ratio=np.array(values, dtype=float), **signals)


def tools_with(policy=None):
    """Tools that hold nothing but a policy: whoever asks for more fails."""
    tools = object.__new__(Tools)
    object.__setattr__(tools, "policy", policy)
    return tools


def by_pairs(scores, positive):
    above = [s for s, p in zip(scores, positive, strict=True) if p]
    below = [s for s, p in zip(scores, positive, strict=True) if not p]
    return sum((a > b) + 0.5 * (a == b) for a in above for b in below) / (len(above) * len(below))
