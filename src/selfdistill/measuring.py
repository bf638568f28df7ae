"""Measuring a model once: weights, problems and decoding in, an evaluation out, sampled batch by batch and kept for whoever asks again.

A batch that is sampled is on disk with the state of the random generators behind it, so that an evaluation that is cut off goes on after it
and ends as if it had not been.
"""

import hashlib
import inspect
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from selfdistill import __version__
from selfdistill.api import make_eval_sampler
from selfdistill.atomic import require_writable, write_whole
from selfdistill.checkpoint import random_state, restore_random_state, seed_all
from selfdistill.config import Settings
from selfdistill.contexts import student_messages
from selfdistill.conversations import Conversation, Full
from selfdistill.evaluate import Evaluation, graded_samples, require_graded
from selfdistill.identity import weights_hash
from selfdistill.models import Policy
from selfdistill.sampling.transformers import TransformersSampler, stop_ids
from selfdistill.tasks import Task
from selfdistill.tasks.grading import RewardFunction
from selfdistill.types import Problem

FORMAT = 3
"""Of what makes two evaluations the same; another number is measured anew."""
STALE_S = 7 * 24 * 3600.0
"""An evaluation that was cut off can be continued for so long."""
DECODING = ("num_samples", "conversation", "temperature", "top_p", "batch_size")
Progress = Callable[[int, int], None]
"""(samples done, samples asked for)."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model on some problems under the `eval` settings of a run."""

    policy: Policy
    settings: Settings
    task: Task
    problems: Sequence[Problem]
    reward: RewardFunction | None
    conversation: Conversation

    @property
    def samples(self) -> int:
        return len(self.problems) * self.settings.eval.num_samples

    @property
    def seed(self) -> int:
        """Of the samples: the run's where `eval.seed` names none."""
        return self.settings.seed if self.settings.eval.seed is None else self.settings.eval.seed

    @cached_property
    def about(self) -> dict[str, Any]:
        """Everything that the scores depend on: weights, problems as the model reads them, decoding, grading, seed."""
        prompts = [[asdict(p), ids] for p, ids in zip(self.problems, self._prompts, strict=True)]
        sampler, settings = self._sampler, self.settings
        return {
            "format": FORMAT,
            "version": __version__,
            "weights": weights_hash(self.policy),
            "model": {"dtype": str(self.policy.dtype), "config": _hash(self.policy.base.config.to_json_string()), "attention": settings.model.attention},
            "tokenizer": _hash(json.dumps([sorted(self.policy.tokenizer.get_vocab().items()), self.policy.tokenizer.chat_template], default=str)),
            "stop": stop_ids(self.policy),
            "problems": _hash(json.dumps(prompts, sort_keys=True, default=str)),
            "task": {**settings.task.model_dump(), "code": _code(type(self.task)), "grading": _own_graders()},
            "reward": self.reward and {"name": getattr(self.reward, "__qualname__", type(self.reward).__qualname__), "code": _code(self.reward)},
            "decoding": {name: getattr(settings.eval, name) for name in DECODING}
            | {"max_completion_length": sampler.max_completion_length, "thinking": sampler.thinking},
            "seed": self.seed,
        }

    @cached_property
    def key(self) -> str:
        return _hash(json.dumps(self.about, sort_keys=True))

    def kept(self, *places: Path) -> dict[str, Any] | None:
        """The record of the same measurement in one of these files or in the cache."""
        for path in (*places, *([self.cache / f"{self.key}.json"] if self.cache else [])):
            if path.exists() and (found := _read(path)).get("key") == self.key:
                return found
        return None

    @property
    def cache(self) -> Path | None:
        """The folder of `eval.cache`."""
        where = self.settings.eval.cache
        return Path(self.settings.output_dir).absolute().parent / ".evaluations" if where == "auto" else Path(where) if where else None

    def measure(self, on_progress: Progress | None = None) -> dict[str, Any]:
        """The record: an evaluation as JSON with `key`, `about` and the seconds it took; the random state stays as it is. Who measures the same is waited for.

        Raises ValueError where there is nothing to sample, a prompt is too long or nothing could be graded.
        """
        state = random_state()
        try:
            return self._measured(on_progress)
        finally:
            restore_random_state(state)

    def _measured(self, on_progress: Progress | None) -> dict[str, Any]:
        if self.cache is None:
            return self._record(None, on_progress)
        if (found := self.kept()) is not None:
            return found
        parts = self.cache / f"{self.key}.parts"
        require_writable(self.cache, setting="eval.cache")
        self.cache.mkdir(parents=True, exist_ok=True)
        sweep(self.cache)
        # beside the parts, not among them: who waits for it holds a file that outlives them
        with FileLock(self.cache / f"{self.key}.lock"):
            if (found := self.kept()) is None:
                parts.mkdir(exist_ok=True)
                found = self._record(parts, on_progress)
                write_whole(self.cache / f"{self.key}.json", json.dumps(found) + "\n")
            shutil.rmtree(parts, ignore_errors=True)
        return found

    def _record(self, parts: Path | None, on_progress: Progress | None) -> dict[str, Any]:
        start = time.perf_counter()
        seed_all(self.seed)
        evaluation, before = self._evaluation(parts, on_progress)
        seconds = before + time.perf_counter() - start
        about = {"eval": self.settings.eval.model_dump(exclude={"every", "at_end", "cache", "seed"}), "weights": self.about["weights"]}
        # as it will be read again
        return json.loads(json.dumps(evaluation.to_json() | about | {"key": self.key, "about": self.about, "seconds": seconds}))

    def _evaluation(self, parts: Path | None, on_progress: Progress | None) -> tuple[Evaluation, float]:
        """All batches joined in the order of the problems, and the seconds that earlier processes spent on them."""
        k, size = self.settings.eval.num_samples, max(self.settings.eval.batch_size // self.settings.eval.num_samples, 1)
        if self.conversation == Full():
            self._sampler.check_lengths(self.problems)
        # by length, as the sampler would sort them all at once, so that a batch here is a batch there
        order = sorted(range(len(self.problems)), key=lambda i: len(self._prompts[i]))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        found: list[Evaluation] = []
        graded, seconds, done = 0, 0.0, 0
        for i, batch in enumerate(batches):
            evaluation, ok, spent = self._batch([self.problems[p] for p in batch], parts and parts / f"{i:06d}.pt")
            found.append(evaluation)
            graded, seconds, done = graded + ok, seconds + spent, done + len(batch) * k
            if on_progress:
                on_progress(done, self.samples)
        require_graded(graded, self.samples)
        return Evaluation.joined(found, order), seconds

    def _batch(self, problems: Sequence[Problem], part: Path | None) -> tuple[Evaluation, int, float]:
        """A batch's evaluation, how many of its samples were graded, and the seconds that an earlier process spent on it."""
        if part and part.exists():
            saved = torch.load(part, weights_only=True)
            restore_random_state(saved["random"])
            return Evaluation.from_json(json.loads(saved["evaluation"])), saved["graded"], saved["seconds"]
        start, k = time.perf_counter(), self.settings.eval.num_samples
        evaluation, graded = graded_samples(self._sampler, self.task, problems, num_samples=k, reward=self.reward, conversation=self.conversation)
        if part:
            text, beside = json.dumps(evaluation.to_json()), part.with_suffix(".partial")
            torch.save({"evaluation": text, "graded": graded, "seconds": time.perf_counter() - start, "random": random_state()}, beside)
            beside.replace(part)
        return evaluation, graded, 0.0

    @cached_property
    def _sampler(self) -> TransformersSampler:
        return make_eval_sampler(self.policy, self.settings)

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return [self.policy.chat.encode(student_messages(p), self._sampler.thinking) for p in self.problems]


def sweep(cache: Path) -> None:
    """Removes what evaluations that nobody continues left on their way: batches and locks untouched for STALE_S that no process holds."""
    for lock in {path.with_suffix(".lock") for kind in ("lock", "parts") for path in cache.glob(f"*.{kind}")}:
        parts = lock.with_suffix(".parts")
        touched = [path.stat().st_mtime for path in (lock, parts, *parts.glob("*")) if path.exists()]
        if time.time() - max(touched, default=0.0) < STALE_S:
            continue
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(parts, ignore_errors=True)
                lock.unlink(missing_ok=True)
        except Timeout:
            # slow, but alive
            continue


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); remove it to measure anew") from error


def _code(thing: Any) -> str | None:
    """A hash of the file that grades: a user's own code changes without a version."""
    try:
        source = inspect.getsourcefile(thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing))
    except TypeError:
        return None
    return _hash(Path(source).read_text()) if source and Path(source).exists() else None


@cache
def _own_graders() -> str:
    """A hash of all that tells and grades problems here: a corrected verifier measures anew."""
    package = Path(__file__).parent
    return _hash("".join(path.read_text() for path in (*sorted((package / "tasks").rglob("*.py")), package / "conversations.py")))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
