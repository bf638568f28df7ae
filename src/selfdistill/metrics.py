"""What a step reports: groups, samples and sums over tokens in, one number a name out. Units are in the names where not obvious."""

from collections.abc import Mapping, Sequence

from selfdistill.types import Group, TrainingSample


def rollout_metrics(groups: Sequence[Group], samples: Sequence[TrainingSample]) -> dict[str, float]:
    """Reward, length and truncation over all rollouts; the share of them that has a teacher."""
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = [r.reward for r in rollouts if r.reward is not None]
    taught = {id(s.rollout) for s in samples if s.views}
    return {
        "reward": _mean(rewards),
        "success_share": _mean([r >= 1 for r in rewards]),
        "mixed_groups_share": _mean([len({r.reward for r in g.rollouts} - {None}) > 1 for g in groups]),
        "taught_share": len(taught) / max(len(rollouts), 1),
        "ungraded_share": 1 - len(rewards) / max(len(rollouts), 1),
        "mean_length": _mean([len(r.completion_ids) for r in rollouts]),
        "truncated": _mean([r.truncated for r in rollouts]),
    }


def token_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums over tokens as means: over all trained tokens, over taught ones for what the target says, over a part's own count for what it reports."""
    tokens, taught = max(sums.get("tokens", 0), 1), max(sums.get("taught_tokens", 0), 1)
    per_token = ("entropy", "reference_kl", "engine_gap", "clipped")
    per_taught = ("target_entropy", "divergence", "log_ratio")
    names = {"clipped": "clip_share"}
    means = {names.get(n, n): sums[n] / tokens for n in per_token if n in sums} | {n: sums[n] / taught for n in per_taught if n in sums}
    losses = {n: v for n, v in sums.items() if n.startswith("loss_")}
    own = {n.removeprefix("total_"): v / max(sums["count_" + n.removeprefix("total_")], 1) for n, v in sums.items() if n.startswith("total_")}
    return means | own | losses | {"loss": sum(losses.values()), "trained_tokens": sums.get("tokens", 0.0)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
