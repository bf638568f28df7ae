"""Which pairs of a skill and a mistake fit a problem: groups of a step and the bank in, scored notes for each group's teachers out."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from selfdistill.contexts import words
from selfdistill.skills import FIELDS, SINGULAR, Bank, Item
from selfdistill.tools import Tools
from selfdistill.types import Group, Note, Packed, Problem

Retrieval = Callable[[Sequence[Group], Bank, Tools, int], list[tuple[Note, ...]]]
"""(groups, bank, tools, pairs) -> at most that many notes a group, each with the fields `skill` and `mistake`."""
Embedder = Callable[[Sequence[str], Tools], Float[Tensor, "texts width"]]
AT_ONCE = 64
"""Texts of one forward pass."""


@dataclass(frozen=True)
class StudentStates:
    """The mean over a text's tokens of the student's final hidden state, as the student is now; zeros for a text without tokens."""

    def __call__(self, texts: Sequence[str], tools: Tools) -> Float[Tensor, "texts width"]:
        ids = [tools.policy.chat.plain(text) for text in texts]
        spoken = [i for i, tokens in enumerate(ids) if tokens]
        found: dict[int, Tensor] = {}
        with tools.readers["student"].reading() as policy:
            for start in range(0, len(spoken), AT_ONCE):
                rows = spoken[start : start + AT_ONCE]
                packed = _end_to_end([ids[i] for i in rows]).to(policy.device)
                states = policy(lambda hidden, head: hidden, packed).float()
                found |= {i: part.mean(0) for i, part in zip(rows, states.split(packed.lengths), strict=True)}
        silent = torch.zeros_like(next(iter(found.values()))) if found else torch.zeros(1)
        return torch.stack([found.get(i, silent) for i in range(len(ids))])


@dataclass(frozen=True)
class SentenceTransformer:
    """A sentence-transformers model: a folder or hub id, loaded once. Raises ValueError where the library is missing or the model cannot be loaded."""

    path: str = "sentence-transformers/all-MiniLM-L6-v2"

    def __call__(self, texts: Sequence[str], tools: Tools) -> Float[Tensor, "texts width"]:
        return torch.as_tensor(_encoder(self.path).encode(list(texts), show_progress_bar=False)).float().cpu()


@dataclass(frozen=True)
class Nearest:
    """The skills and the mistakes whose embeddings are nearest to the question's by cosine, paired by rank; score = mean of both cosines (SGSD).

    [open] Where a bank has fewer of one kind, the rest of the other stays unpaired. What is embedded is what a teacher would read.
    """

    embedder: Embedder = StudentStates()

    def __call__(self, groups: Sequence[Group], bank: Bank, tools: Tools, pairs: int) -> list[tuple[Note, ...]]:
        shown = [{kind: _texts(g.problem, kind, bank) for kind in FIELDS} for g in groups]
        questions = [g.problem.question for g in groups]
        known = list(dict.fromkeys([*questions, *(t for kinds in shown for texts in kinds.values() for t in texts)]))
        place = {text: i for i, text in enumerate(known)}
        unit = F.normalize(self.embedder(known, tools), dim=-1)

        def ranked(question: str, texts: list[str]) -> list[tuple[str, float]]:
            cosines = unit[[place[t] for t in texts]] @ unit[place[question]] if texts else unit.new_zeros(0)
            return [(texts[i], float(cosines[i])) for i in cosines.argsort(descending=True, stable=True)[:pairs].tolist()]

        return [_paired(*(ranked(q, kinds[kind]) for kind in FIELDS)) for q, kinds in zip(questions, shown, strict=True)]


@dataclass(frozen=True)
class RandomPairs:
    """The ablation: skills and mistakes drawn alike from the whole bank, all teachers of equal weight (SGSD, random skills).

    The seed names problem and step, so a resumed run draws the same.
    """

    def __call__(self, groups: Sequence[Group], bank: Bank, tools: Tools, pairs: int) -> list[tuple[Note, ...]]:
        return [self._drawn(group, bank, pairs) for group in groups]

    def _drawn(self, group: Group, bank: Bank, pairs: int) -> tuple[Note, ...]:
        version = max((r.policy_version for r in group.rollouts), default=0)
        rng = random.Random(f"{group.problem.id or group.problem.prompt}/{version}")
        texts = [_texts(group.problem, kind, bank) for kind in FIELDS]
        return _paired(*([(text, 0.0) for text in rng.sample(found, min(pairs, len(found)))] for found in texts))


def _paired(skills: Sequence[tuple[str, float]], mistakes: Sequence[tuple[str, float]]) -> tuple[Note, ...]:
    return tuple(Note(fields={"skill": s, "mistake": m}, score=(a + b) / 2) for (s, a), (m, b) in zip(skills, mistakes, strict=False))


def _texts(problem: Problem, kind: str, bank: Mapping[str, Sequence[Item]]) -> list[str]:
    """Every item of a kind in the problem's words for it."""
    text = words(problem, f"{SINGULAR[kind]}_item")
    return [text.format(**{field: item[field] for field in FIELDS[kind]}).strip() for item in bank[kind]]


def _end_to_end(ids: Sequence[Sequence[int]]) -> Packed:
    """Texts as one packed view whose every state is kept."""
    lengths = tuple(map(len, ids))
    return Packed(
        input_ids=torch.tensor([token for tokens in ids for token in tokens]),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        lengths=lengths,
        predicts=torch.arange(sum(lengths)),
    )


@cache
def _encoder(path: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer as Encoder
    except ImportError as error:
        raise ValueError(
            f"retrieval by SentenceTransformer needs its library ({error}): pip install 'selfdistill[retrieval]'; or use StudentStates()"
        ) from error
    from selfdistill.loading import quiet

    try:
        with quiet():
            return Encoder(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"the sentence embedder {path!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
