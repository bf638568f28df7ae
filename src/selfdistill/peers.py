"""Which of a rollout's successful peers the teacher is shown: the peers and a seed in, one of them out."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfdistill.types import Rollout

PeerChoice = Callable[[Sequence[Rollout], str], Rollout]


@dataclass(frozen=True)
class Uniformly:
    """Any of them, by a seed that names the rollout, so a resumed run draws the same."""

    def __call__(self, peers: Sequence[Rollout], seed: str) -> Rollout:
        return random.Random(seed).choice(peers)


@dataclass(frozen=True)
class First:
    """The first of the group (SDPO)."""

    def __call__(self, peers: Sequence[Rollout], seed: str) -> Rollout:
        return peers[0]


@dataclass(frozen=True)
class Shortest:
    """The one of fewest tokens."""

    def __call__(self, peers: Sequence[Rollout], seed: str) -> Rollout:
        return min(peers, key=lambda peer: len(peer.completion_ids))


@dataclass(frozen=True)
class LowestPerplexity:
    """The one its writer found likeliest a token."""

    def __call__(self, peers: Sequence[Rollout], seed: str) -> Rollout:
        return max(peers, key=_mean_logp)


@dataclass(frozen=True)
class HighestPerplexity:
    """The one its writer found least likely a token."""

    def __call__(self, peers: Sequence[Rollout], seed: str) -> Rollout:
        return min(peers, key=_mean_logp)


def _mean_logp(rollout: Rollout) -> float:
    return sum(rollout.behavior_logp) / max(len(rollout.behavior_logp), 1)
