"""Every method raises the reward of a tiny model that knows but errs, and does not at learning rate 0.

The student answers a table it half knows: right with 0.4, else any answer. Under privileged words it copies the answer it is
shown. Its expected reward is computed exactly, without sampling: the probability of the right completion.
"""

import copy
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from stepping import Spoken
from tiny_models import TEMPLATES, WORDS, tiny_policy

from selfdistill.api import assemble
from selfdistill.chat import Chat
from selfdistill.config import make_settings
from selfdistill.critics import TaskChecker
from selfdistill.divergences import ForwardKL
from selfdistill.judges import StepJudge
from selfdistill.loading import save_policy
from selfdistill.lockstep import introduce, lockstep
from selfdistill.method import Method
from selfdistill.method_names import build_method
from selfdistill.methods import METHODS, grpo_plus, hsd, opsd, pw_opsd, rcsd, shuffled_context
from selfdistill.models import Policy
from selfdistill.skills import TaskLessons
from selfdistill.sources import Sharded
from selfdistill.steps import ClosedBy
from selfdistill.teachers import External
from selfdistill.tutoring import AsWritten, PeerFeedback
from selfdistill.types import Message, Problem

QUESTIONS, ANSWERS, PREAMBLE = WORDS[20:32], WORDS[10:20], "w6 w7 w8"
GREETING = "w9"
HISTORY = ({"role": "user", "content": GREETING}, {"role": "assistant", "content": PREAMBLE})
TABLE = {q: ANSWERS[(7 * i + 3) % 10] for i, q in enumerate(QUESTIONS)}
GAIN = 0.1
"""Reward that counts as learned; the base has about 0.4."""


class Lookup:
    """The table as a task; what is right in general stands in every completion, so three tokens come before the answer."""

    def problems(self, split):
        # a problem's rubric is its worked answer here, so whoever is asked for one reads the words of the question itself
        words = TEMPLATES | {"rubric_request": TEMPLATES["student"], "rubric_request_solution": TEMPLATES["solution"]}
        # nor has it learned to read feedback, which is the answer here
        words |= {"feedback": "{problem} w1 {feedback}", "solution_feedback": "{problem} w1 {feedback} w3 {solution}"}
        return [Problem(prompt=q, answer=a, solution=f"{PREAMBLE} {a}", id=q, columns={"rubric": a}, templates=words) for q, a in TABLE.items()]

    def verify(self, problem, completion):
        return float(completion.split() == [*PREAMBLE.split(), problem.answer])

    def critique(self, problem, completion):
        return f"{PREAMBLE} {problem.answer}"

    def judge(self, problem, completion):
        """Two steps: what stands in every completion, and the answer."""
        preamble, answer = completion[: len(PREAMBLE)], completion[len(PREAMBLE) :].strip()
        return [Spoken(preamble, preamble != PREAMBLE), Spoken(answer, answer != problem.answer)]

    def lessons(self, problem, completion):
        """Which answer a right completion gave, and which one a wrong completion gave: skills that help with some problems and harm others."""
        answer = (completion.split() or [""])[-1]
        if self.verify(problem, completion):
            return [{"title": answer, "principle": "Give this answer.", "when": "It is right."}]
        return [{"description": answer, "why": "It was guessed.", "avoid": "Look it up."}] if answer in ANSWERS else []


class ToldOverTurns(Lookup):
    """Told at once the solution is shown; over two turns it is the bare question, after a greeting and the student's own reply to it."""

    def problems(self, split):
        shown = {p.id: TEMPLATES["solution"].format(problem=p.prompt, solution=p.solution) for p in super().problems(split)}
        return [replace(p, prompt=shown[p.id], columns={"shards": (GREETING, p.prompt)}) for p in super().problems(split)]


def draw(generator: torch.Generator, share: float) -> bool:
    return float(torch.rand((), generator=generator)) < share


def example(policy: Policy, generator: torch.Generator, *, knows: float, in_turns: bool) -> tuple[list[int], list[int]]:
    """A prompt and completion of the pre-training mixture: alone, or under one of the privileged templates with any answer.

    In turns, what would stand alone is a greeting with its reply, or follows upon them.
    """

    def pick(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    question, shown = pick(QUESTIONS), pick(ANSWERS)
    kind = pick(["student", "student", "answer", "solution", "peer", "demonstration", "reference", "rubric", "skill", "critique"])
    fields = dict.fromkeys(("solution", "demonstration", "peer", "critique"), f"{PREAMBLE} {shown}") | dict.fromkeys(("answer", "rubric", "skill"), shown)
    fields["mistake"] = pick(ANSWERS)
    text = TEMPLATES[kind].format(problem=question, **fields)
    share, right = (knows, TABLE[question]) if kind == "student" else (0.0 if kind == "reference" else 0.95, shown)
    said = right if draw(generator, share) else pick(ANSWERS)
    if in_turns and kind == "student" and draw(generator, 0.5):
        return encoded(policy.chat, GREETING), completed(policy.chat, PREAMBLE)
    before = (GREETING, PREAMBLE) if in_turns and kind == "student" else ()
    return encoded(policy.chat, *before, text), completed(policy.chat, f"{PREAMBLE} {said}")


@cache
def encoded(chat: Chat, *turns: str) -> list[int]:
    """The prompt of a chat that the user begins; the mixture has few, so each is rendered once."""
    return chat.encode([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)])


@cache
def completed(chat: Chat, text: str) -> list[int]:
    return chat.completion(text)


def fit(policy: Policy, *, knows: float, steps: int, in_turns: bool = False) -> Policy:
    """Cross-entropy on completions of the mixture, rows padded on the right."""
    generator = torch.Generator().manual_seed(0)
    # transformers' own layers: in ours these tests check every shape, which takes longer than such small products
    model = type(policy.base)._from_config(policy.base.config)
    model.load_state_dict(policy.base.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    for _ in range(steps):
        rows = [example(policy, generator, knows=knows, in_turns=in_turns) for _ in range(64)]
        width = max(len(p) + len(c) for p, c in rows)
        ids = torch.tensor([p + c + [0] * (width - len(p) - len(c)) for p, c in rows])
        labels = torch.tensor([[-100] * len(p) + c + [-100] * (width - len(p) - len(c)) for p, c in rows])
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    policy.base.load_state_dict(model.state_dict())
    return policy


@cache
def base() -> Policy:
    policy = tiny_policy()
    assert sum(p.numel() for p in policy.parameters()) <= 100_000
    return fit(policy, knows=0.4, steps=700)


@cache
def base_in_turns() -> Policy:
    return fit(copy.deepcopy(base()), knows=0.4, steps=200, in_turns=True)


@torch.no_grad()
def expected_reward(policy: Policy, *, kind: str = "student", before: tuple[Message, ...] = ()) -> float:
    """Mean over problems of the probability of the right completion, under the words of a template and after earlier turns."""
    total = 0.0
    for question, answer in TABLE.items():
        text = TEMPLATES[kind].format(problem=question, answer=answer, solution=f"{PREAMBLE} {answer}")
        prompt = policy.chat.encode((*before, {"role": "user", "content": text}))
        completion = policy.chat.completion(f"{PREAMBLE} {answer}")
        logp = policy.base(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total += math.exp(float(logp.gather(-1, torch.tensor(completion)[:, None]).sum()))
    return total / len(TABLE)


def gain(method: Method, *, lr: float, steps: int = 12) -> float:
    """Expected reward after a run of the real trainer, minus before."""
    settings = make_settings(
        {
            "steps": steps,
            "prompts_per_step": len(TABLE),
            "sampling": {"num_generations": 8, "max_completion_length": 5},
            "optimizer": {"lr": lr, "schedule": "constant"},
        },
        {},
    )
    in_turns = isinstance(method.source, Sharded)
    policy, history = copy.deepcopy(base_in_turns() if in_turns else base()), HISTORY if in_turns else ()
    before = expected_reward(policy, before=history)
    # what learns with a peer has one that begins as it does
    policies = [policy, copy.deepcopy(policy)] if any(isinstance(stage, PeerFeedback) for stage in method.feedback) else [policy]
    task = ToldOverTurns() if in_turns else Lookup()
    trainers = [assemble(settings, policy=p, method=method, task=task, paired=len(policies) > 1).trainer for p in policies]
    introduce(trainers)
    for _ in lockstep(trainers):
        pass
    return expected_reward(policy, before=history) - before


def learns(method: Method, *, lr: float) -> None:
    found = gain(method, lr=lr)
    assert found > GAIN, f"the expected reward moved by {found:+.3f}"


# one token's jump from 0.4 to 0.95 fills a tiny vocabulary's whole divergence, which the published entry clip of 0.05 would hide
WIDE = ForwardKL(clip=1.0)
NAMES = [f.__name__ for f in METHODS] + ["grpo_plus(hsd)"]


def table(chats, tools):
    """Feedback from the table: the answer to the question that opens each chat."""
    return [TABLE[chat[-1]["content"].split()[0]] for chat in chats]


# the model has not learned to criticise, to judge or to name skills, so the table does
EXACT = {
    "step_critique": {"critic": TaskChecker()},
    "opcod": {"writer": table, "anchor": AsWritten(), "breaks_every": 0},
    "sgsd": {"extractor": TaskLessons()},
    "exprl": {"judge": StepJudge()},
    "exprl_process": {"judge": StepJudge(), "steps": ClosedBy(PREAMBLE)},
}


@pytest.fixture(scope="module")
def better(tmp_path_factory) -> str:
    """A folder with a teacher that knows the table."""
    folder = tmp_path_factory.mktemp("teacher")
    save_policy(fit(copy.deepcopy(base()), knows=0.95, steps=80), folder)
    return str(folder)


def method_named(name: str, better: str) -> Method:
    if name == "grpo_plus(hsd)":
        return grpo_plus(hsd())
    if name == rcsd.__name__:
        return rcsd(clip=WIDE.clip)
    method = build_method(name, EXACT.get(name, {}), max_completion_length=5)
    method = replace(method, teacher=External(better)) if isinstance(method.teacher, External) else method
    return replace(method, divergence=WIDE) if name in (opsd.__name__, pw_opsd.__name__) else method


def test_base_knows_but_errs_and_copies_what_it_is_shown():
    alone, shown = expected_reward(base()), [expected_reward(base(), kind=kind) for kind in ("answer", "solution")]
    assert 0.3 < alone < 0.6 and min(shown) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_method_raises_the_reward(name, better):
    learns(method_named(name, better), lr=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate_zero_fails_the_same_test(name, better):
    with pytest.raises(AssertionError, match=r"moved by \+0\.000"):
        learns(method_named(name, better), lr=0.0)


def test_another_problems_solution_teaches_nothing_right():
    """The control: the very same run with contexts shuffled across problems."""
    assert gain(shuffled_context(replace(opsd(), divergence=WIDE)), lr=1e-3) < 0.0
