"""How good a model is on held-out problems: a sampler and problems in, accuracies with intervals over problems out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy
from scipy.stats import bootstrap

from selfdistill.sampling import Sampler
from selfdistill.tasks import Task
from selfdistill.tasks.grading import RewardFunction, grade
from selfdistill.types import Problem

RESAMPLES = 5000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of k samples a problem."""

    scores: tuple[tuple[float, ...], ...]
    """1 where a sample is right: problems x samples."""
    texts: tuple[tuple[str, ...], ...]
    lengths: tuple[int, ...]
    """Tokens of every sample."""
    truncated_samples: tuple[bool, ...]

    @property
    def avg_at_k(self) -> float:
        """Mean accuracy over all samples."""
        return float(numpy.mean([numpy.mean(s) for s in self.scores]))

    def pass_at(self, k: int) -> float:
        """Unbiased 1 - C(n - c, k) / C(n, k), c right ones among n samples, mean over problems (2107.03374)."""
        return float(numpy.mean([1 - comb(len(s) - int(sum(s)), k) / comb(len(s), k) for s in self.scores]))

    @property
    def pass_at_k(self) -> float:
        """Share of problems with a right sample among all k."""
        return self.pass_at(len(self.scores[0]))

    @property
    def maj_at_k(self) -> float:
        """Share of problems whose most frequent last line is right; ties go to the first written."""
        return float(numpy.mean([s[_majority(t)] for s, t in zip(self.scores, self.texts, strict=True)]))

    @property
    def ci95(self) -> tuple[float, float]:
        """Percentile bootstrap over problems of avg_at_k."""
        return interval([float(numpy.mean(s)) for s in self.scores])

    @property
    def truncated(self) -> float:
        return float(numpy.mean(self.truncated_samples))

    @property
    def mean_length(self) -> float:
        return float(numpy.mean(self.lengths))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluation":
        """What `to_json` wrote, read back; other keys are ignored."""
        nested = {name: tuple(map(tuple, data[name])) for name in ("scores", "texts")}
        return cls(**nested, lengths=tuple(data["lengths"]), truncated_samples=tuple(data["truncated_samples"]))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A trained model beside its base, problem by problem."""

    difference: float
    """avg@k of the trained model minus that of the base."""
    difference_ci95: tuple[float, float]
    """Paired percentile bootstrap over problems."""
    truncated_difference_ci95: tuple[float, float]
    rescued: int
    """Problems that no sample of the base solved and one of the trained model's does."""
    broken: int
    """Problems that only the base solves."""


def evaluate(sampler: Sampler, task: Task, problems: Sequence[Problem], *, num_samples: int, reward: RewardFunction | None = None) -> Evaluation:
    """Samples every problem `num_samples` times and grades as in training; a reward of 1 is right."""
    groups = sampler.sample(problems, num_samples)
    grade(groups, task, reward=reward)
    rollouts = [r for g in groups for r in g.rollouts]
    return Evaluation(
        scores=tuple(tuple(float((r.reward or 0) >= 1) for r in g.rollouts) for g in groups),
        texts=tuple(tuple(r.text for r in g.rollouts) for g in groups),
        lengths=tuple(len(r.completion_ids) for r in rollouts),
        truncated_samples=tuple(r.truncated for r in rollouts),
    )


def compare(base: Evaluation, trained: Evaluation) -> Comparison:
    """Raises ValueError where the two were not measured on the same problems."""
    if len(base.scores) != len(trained.scores):
        raise ValueError(f"base and trained model were measured on {len(base.scores)} and {len(trained.scores)} problems; use the same ones")
    differences = [float(numpy.mean(t) - numpy.mean(b)) for b, t in zip(base.scores, trained.scores, strict=True)]
    solved = [(any(b), any(t)) for b, t in zip(base.scores, trained.scores, strict=True)]
    return Comparison(
        difference=float(numpy.mean(differences)),
        difference_ci95=interval(differences),
        truncated_difference_ci95=interval([t - b for b, t in zip(_by_problem(base), _by_problem(trained), strict=True)]),
        rescued=sum(t and not b for b, t in solved),
        broken=sum(b and not t for b, t in solved),
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean, on a fixed seed."""
    if len(set(values)) == 1:
        return values[0], values[0]
    found = bootstrap((numpy.asarray(values),), numpy.mean, n_resamples=RESAMPLES, method="percentile", rng=numpy.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _by_problem(evaluation: Evaluation) -> list[float]:
    """Truncated share of every problem's samples."""
    k = len(evaluation.scores[0])
    flags = evaluation.truncated_samples
    return [sum(flags[i : i + k]) / k for i in range(0, len(flags), k)]


def _majority(texts: Sequence[str]) -> int:
    """Index of the first sample with the most frequent last line."""
    answers = [t.strip().splitlines()[-1].split(";")[-1].strip() if t.strip() else "" for t in texts]
    return answers.index(Counter(answers).most_common(1)[0][0])
