"""What a paper's equation is written over: a student, the weights it left, rollouts, and every distribution from one sequence at a time."""

import math
from dataclasses import replace

import pytest
import torch
from stepping import gradient_of, perturb
from tiny_models import full_logp, tiny_groups, tiny_policy
from torch import Tensor

from selfdistill.loss import objective
from selfdistill.method import Method
from selfdistill.packing import pack
from selfdistill.reading import learn_from, read, start_readers
from selfdistill.samples import training_samples
from selfdistill.types import Batch, Group, Rollout


class Scene:
    """Readers are started before the student moves, so frozen, averaged and live teachers all differ."""

    def __init__(self, method: Method, *, rewards: float | None = None, seed: int = 0) -> None:
        self.policy, self.method = tiny_policy(), method
        self.groups = tiny_groups(self.policy, rewards=rewards, seed=seed)
        self.readers = start_readers(method, self.policy)
        perturb(self.policy)

    def rollouts(self) -> list[tuple[Rollout, Group]]:
        return [(r, g) for g in self.groups for r in g.rollouts]

    def student(self, rollout: Rollout, temperature: float = 1.0) -> Tensor:
        return full_logp(self.policy, rollout.prompt_ids, rollout.completion_ids, temperature)

    def view(self, rollout: Rollout, group: Group, role: str, temperature: float = 1.0) -> Tensor:
        """A view's log-probs under the weights it names."""
        (teaching,) = self.method.context(rollout, group)
        view = teaching.views[role]
        prompt = list(view.prompt_ids or self.policy.chat.encode(view.messages, view.thinking))
        with self.readers[view.weights].reading() as reader:
            return full_logp(reader, prompt, rollout.completion_ids, temperature)

    def initial(self, rollout: Rollout) -> Tensor:
        with self.readers["initial"].reading() as reader:
            return full_logp(reader, rollout.prompt_ids, rollout.completion_ids)

    def batches(self, budget: int = 10**6) -> list[Batch]:
        return pack(training_samples(self.groups, self.method, encode=self.policy.chat.encode), budget)

    def found(self, batches: list[Batch] | None = None, *, chunk: int | None = None, fused: dict[str, int | None] | None = None):
        """The framework's (loss, gradient, sums) over the whole step: scored and followed by autograd, or fused, in slabs and blocks of these sizes."""
        self.policy.zero_grad()
        total, sums = 0.0, {}
        for batch in self.batches() if batches is None else batches:
            if fused is None:
                loss, parts = objective(self.method, read(self.policy, self.readers, self.method, batch, chunk=chunk))
            else:
                learned = learn_from(self.policy, self.readers, self.method, batch, **fused)
                loss, parts = learned.loss, learned.sums
            loss.backward()
            total += float(loss.detach())
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in parts.items()}
        return total, gradient_of(self.policy), sums

    def check(self, expected: Tensor, batches: list[Batch] | None = None) -> dict[str, float]:
        """Loss and gradient of the framework are those of the loop, in one piece and in many."""
        self.policy.zero_grad()
        expected.backward()
        wanted = gradient_of(self.policy)
        assert wanted.abs().max() > 1e-5, "an equation without gradient says nothing"
        ways = [{}] if batches else [{}, {"batches": self.batches(150), "chunk": 2}]
        ways += [{"batches": batches, "fused": sizes} for sizes in ({}, {"slab": 40, "block": 3}, {"slab": 2, "block": 1})]
        reported = []
        for way in ways:
            total, gradient, sums = self.found(**({"batches": batches} | way))
            assert total == pytest.approx(float(expected.detach()), abs=2e-6)
            torch.testing.assert_close(gradient, wanted, atol=3e-6, rtol=1e-3)
            reported.append(sums)
        assert all(sums == pytest.approx(reported[0], abs=1e-3, rel=1e-4) for sums in reported), "sums do not depend on how a step is cut"
        return sums


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()


def jsd(student: Tensor, target: Tensor, beta: float = 0.5) -> Tensor:
    mixture = (beta * target.exp() + (1 - beta) * student.exp()).log()
    return beta * kl(target, mixture) + (1 - beta) * kl(student, mixture)


def advantages(group: Group, *, normalize: bool = True) -> list[float]:
    rewards = [r.reward for r in group.rollouts]
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [(r - mean) / (std + 1e-6 if normalize else 1) for r in rewards]


def policy_term(logp: Tensor, behavior: float, advantage: float, *, low: float = 0.2, high: float = 0.2, proximal: float | None = None) -> Tensor:
    """PPO's clipped surrogate of one token, times the truncated correction of the engine's probability."""
    proximal = float(logp.detach()) if proximal is None else proximal
    ratio = (logp - proximal).exp()
    return min(math.exp(proximal - behavior), 2.0) * torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def with_proximal(batch: Batch, proximal: dict[tuple[int, ...], list[float]]) -> Batch:
    """The batch of a later update: by completion, the trainer's log-probs from before the first one."""
    texts = [tuple(batch.token[batch.sample == s].tolist()) for s in range(len(batch.length))]
    return replace(batch, proximal_logp=torch.tensor([x for ids in texts for x in proximal[ids]]))
