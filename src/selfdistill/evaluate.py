"""How good a model is on held-out problems: a sampler and problems in, accuracies with intervals over problems out."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import comb
from typing import Any

import numpy
from scipy.stats import binomtest, bootstrap

from selfdistill.conversations import Conversation, Full
from selfdistill.sampling import Sampler
from selfdistill.tasks import Task
from selfdistill.tasks.answers import final_answer
from selfdistill.tasks.grading import RewardFunction, grade
from selfdistill.types import Group, Problem

FORMAT = 2
"""Of an evaluation as JSON. 1 had no surprisal and named no format."""
RESAMPLES = 5000
RESAMPLED_VALUES = 2**22
"""Values drawn at once, 32 MiB: thousands of problems need no more memory than hundreds."""


BY_SAMPLE = ("lengths", "truncated_samples", "surprisal")
"""Fields of an evaluation with a value a sample, problem by problem; the others have one a problem."""

FIGURES = ("avg_at_k", "ci95", "pass_at_k", "maj_at_k", "truncated", "mean_length", "distinct_answers", "entropy")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of k samples a problem."""

    scores: tuple[tuple[float, ...], ...]
    """1 where a sample is right: problems x samples."""
    texts: tuple[tuple[str, ...], ...]
    lengths: tuple[int, ...]
    """Tokens of every sample, problem by problem."""
    truncated_samples: tuple[bool, ...]
    problem_ids: tuple[str, ...] = ()
    """Which problems these are; a comparison pairs no others."""
    domains: tuple[str, ...] = ()
    """Each problem's column `domain`; none where the problems tell none."""
    surprisal: tuple[float, ...] = ()
    """-log-probability of every sample, summed over its tokens, in nats; empty where a file of format 1 is read."""

    @property
    def by_domain(self) -> dict[str, "Evaluation"]:
        """The problems of each domain alone, in the order of their names."""
        return {name: self._only([i for i, domain in enumerate(self.domains) if domain == name]) for name in sorted(set(self.domains))}

    def _only(self, places: Sequence[int]) -> "Evaluation":
        """The problems at these places, in this order; a field that was not kept of every problem is left out."""
        k = len(self.scores[0])
        samples = [i * k + j for i in places for j in range(k)]
        wanted = {f.name: samples if f.name in BY_SAMPLE else places for f in fields(self)}
        whole = {name: len(self.scores) * (k if name in BY_SAMPLE else 1) for name in wanted}
        kept = {name: values for name in wanted if len(values := getattr(self, name)) == whole[name]}
        return Evaluation(**{name: tuple(values[i] for i in wanted[name]) for name, values in kept.items()})

    @property
    def avg_at_k(self) -> float:
        """Mean accuracy over all samples."""
        return float(numpy.mean([numpy.mean(s) for s in self.scores]))

    def pass_at(self, k: int) -> float:
        """Mean over problems of `passed`."""
        return float(numpy.mean(self.passed(k)))

    def passed(self, k: int) -> list[float]:
        """Unbiased 1 - C(n - c, k) / C(n, k) of every problem, c right ones among n samples (2107.03374). Raises ValueError beyond n."""
        n = len(self.scores[0])
        if not 1 <= k <= n:
            raise ValueError(f"pass@{k} cannot be told from {n} samples a problem; k lies in 1..{n}, eval.num_samples raises it")
        return [1 - comb(len(s) - int(sum(s)), k) / comb(len(s), k) for s in self.scores]

    @property
    def pass_at_k(self) -> float:
        """Share of problems with a right sample among all k."""
        return self.pass_at(len(self.scores[0]))

    @property
    def maj_at_k(self) -> float:
        """Share of problems whose most frequent answer, as it is spelled, is right; ties go to the first written."""
        return float(numpy.mean(self.majority))

    @property
    def majority(self) -> tuple[float, ...]:
        """1 where a problem's most frequent answer is right."""
        return tuple(s[_majority(t)] for s, t in zip(self.scores, self.texts, strict=True))

    @property
    def distinct_answers(self) -> float:
        """Different answers, as they are spelled, among the k samples of a problem, mean over problems."""
        return float(numpy.mean([len(set(_answers(t))) for t in self.texts]))

    @property
    def entropy(self) -> float | None:
        """Nats a token: -(sum over samples and t of log S(y_t)) / tokens; None where no surprisal was kept.

        E[-log S(y_t)] = H(S_t) where y_t is drawn from S_t, so this is an unbiased estimate of the entropy along the model's own samples,
        at their temperature. S is the distribution before top-p: under top-p < 1 or greedy decoding the figure lies below the entropy.
        """
        return sum(self.surprisal) / max(sum(self.lengths), 1) if self.surprisal else None

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

    def figures(self) -> dict[str, Any]:
        """Every figure under the name that it has in files, logs, tables and pages: means over problems or samples, and the interval of avg_at_k."""
        return {name: getattr(self, name) for name in FIGURES}

    @classmethod
    def joined(cls, parts: Sequence["Evaluation"], places: Sequence[int]) -> "Evaluation":
        """One evaluation of the problems of all parts, each problem at its place."""
        every = {f.name: tuple(value for part in parts for value in getattr(part, f.name)) for f in fields(cls)}
        return cls(**every)._only(numpy.argsort(places).tolist())

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluation":
        """What `to_json` wrote, read back; other keys are ignored. Raises ValueError on an unknown format and where a field is missing."""
        if (found := data.get("format", 1)) not in (1, FORMAT):
            raise ValueError(f"this evaluation has format {found}, this version reads 1 to {FORMAT}; read it with the version that wrote it")
        if missing := {"scores", "texts", "lengths", "truncated_samples"} - data.keys():
            raise ValueError(f"this is no evaluation: it lacks {', '.join(map(repr, sorted(missing)))}")
        nested = {name: tuple(map(tuple, data[name])) for name in ("scores", "texts")}
        flat = {name: tuple(data.get(name, ())) for name in ("lengths", "truncated_samples", "problem_ids", "domains", "surprisal")}
        return cls(**nested, **flat)


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
    majority_rescued: int
    """Problems whose most frequent answer is right of the trained model only."""
    majority_broken: int
    mcnemar_p: float
    """Exact two-sided McNemar test on those two counts: binomial with p = 1/2 over the problems that changed.

    The test needs one verdict a problem; [open] the majority's, which is what a model of k samples would answer.
    """


def evaluate(
    sampler: Sampler,
    task: Task,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    reward: RewardFunction | None = None,
    conversation: Conversation = Full(),
) -> Evaluation:
    """Tells every problem `num_samples` times and grades the last reply as in training; a reward of 1 or more is right, a missing one is not.

    Raises ValueError where there is nothing to sample, or nothing that could be graded.
    """
    evaluation, graded = graded_samples(sampler, task, problems, num_samples=num_samples, reward=reward, conversation=conversation)
    require_graded(graded, len(evaluation.lengths))
    return evaluation


def graded_samples(
    sampler: Sampler, task: Task, problems: Sequence[Problem], *, num_samples: int, reward: RewardFunction | None, conversation: Conversation
) -> tuple[Evaluation, int]:
    """`evaluate` of a part of the problems, with the number of samples that were graded. Raises ValueError where there is nothing to sample."""
    if not problems or num_samples < 1:
        raise ValueError(f"{len(problems)} problems x {num_samples} samples are nothing to evaluate; both must be at least 1")
    groups = conversation(sampler, problems, num_samples)
    grade(groups, task, reward=reward)
    return _scored(groups), sum(r.reward is not None for g in groups for r in g.rollouts)


def require_graded(graded: int, samples: int) -> None:
    """Raises ValueError where none of the samples has a reward."""
    if not graded:
        advice = "give the data answers or set a reward, or leave evaluation out with eval.at_end = false and eval.every = 0"
        raise ValueError(f"none of the {samples} samples could be graded; {advice}")


def _scored(groups: Sequence[Group]) -> Evaluation:
    rollouts = [r for g in groups for r in g.rollouts]
    return Evaluation(
        scores=tuple(tuple(float((r.reward or 0) >= 1) for r in g.rollouts) for g in groups),
        texts=tuple(tuple(r.text for r in g.rollouts) for g in groups),
        lengths=tuple(len(r.completion_ids) for r in rollouts),
        truncated_samples=tuple(r.truncated for r in rollouts),
        problem_ids=tuple(g.problem.id or str(g.problem.prompt) for g in groups),
        domains=tuple(str(g.problem.columns["domain"]) for g in groups) if all(g.problem.columns.get("domain") for g in groups) else (),
        surprisal=tuple(-sum(r.behavior_logp) for r in rollouts),
    )


def require_pairs(base: Evaluation, trained: Evaluation) -> None:
    """Raises ValueError where the two were not measured on the same problems with as many samples each."""
    counts = [f"{len(e.scores)} problems x {len(e.scores[0])} samples" for e in (base, trained)]
    if counts[0] != counts[1]:
        raise ValueError(f"base and trained model were measured on {counts[0]} and {counts[1]}; use the same eval.num_problems and eval.num_samples")
    if base.problem_ids != trained.problem_ids:
        raise ValueError(f"base and trained model were measured on different {len(base.scores)} problems, which cannot be paired; use the same task and seed")


def compare(base: Evaluation, trained: Evaluation) -> Comparison:
    """Raises ValueError where the two were not measured on the same problems with as many samples each."""
    require_pairs(base, trained)
    differences = [float(numpy.mean(t) - numpy.mean(b)) for b, t in zip(base.scores, trained.scores, strict=True)]
    solved = [(any(b), any(t)) for b, t in zip(base.scores, trained.scores, strict=True)]
    voted = list(zip(base.majority, trained.majority, strict=True))
    gained, lost = sum(t > b for b, t in voted), sum(b > t for b, t in voted)
    return Comparison(
        difference=float(numpy.mean(differences)),
        difference_ci95=interval(differences),
        truncated_difference_ci95=interval([t - b for b, t in zip(_by_problem(base), _by_problem(trained), strict=True)]),
        rescued=sum(t and not b for b, t in solved),
        broken=sum(b and not t for b, t in solved),
        majority_rescued=gained,
        majority_broken=lost,
        mcnemar_p=float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean, on a fixed seed; equal values have no width."""
    if len(set(values)) == 1:
        return values[0], values[0]
    batch, rng = max(RESAMPLED_VALUES // len(values), 1), numpy.random.default_rng(0)
    found = bootstrap((numpy.asarray(values),), numpy.mean, n_resamples=RESAMPLES, batch=batch, method="percentile", rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _by_problem(evaluation: Evaluation) -> list[float]:
    """Truncated share of every problem's samples."""
    k = len(evaluation.scores[0])
    flags = evaluation.truncated_samples
    return [sum(flags[i : i + k]) / k for i in range(0, len(flags), k)]


def _majority(texts: Sequence[str]) -> int:
    """Index of the first sample with the most frequent answer."""
    answers = _answers(texts)
    return answers.index(Counter(answers).most_common(1)[0][0])


def _answers(texts: Sequence[str]) -> list[str]:
    """The final answer of every sample, as it is spelled."""
    return [final_answer(text) or _last_words(text) for text in texts]


def _last_words(text: str) -> str:
    """What stands behind the last line break or semicolon: the answer of a completion that marks none."""
    return re.split(r"[;\n]", text.strip())[-1].strip()
