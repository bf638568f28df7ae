"""On-policy self-distillation in one file: a model learns from its own words, read again by itself with the solution in view.

Every step the student answers some problems; a frozen copy of it, shown the reference solution, reads the very same answers;
and the student's next-token distributions are pulled towards that reading (OPSD, arXiv 2601.18734). Nobody grades anything.

    python examples/minimal.py          about a minute on two cores
"""

import copy
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from selfdistill.tasks.arithmetic import Arithmetic  # the problems and their checker; everything else is below

BASE = Path(__file__).parents[1] / "src" / "selfdistill" / "assets" / "tiny_base"
STEPS, PROBLEMS, SAMPLES = 20, 16, 4
LEARNING_RATE = 1e-4
TEMPERATURE = 1.1
"""Divides both sides' logits in the loss, so that unlikely tokens have a say too."""
CLIP = 1.0
"""Upper limit of one vocabulary entry's share of the divergence, in nats; the paper's 0.05 is for vocabularies of 150,000."""
MAX_NEW_TOKENS = 112


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Every text as the user's turn of a chat, up to where the assistant begins to speak."""
    chats = [tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True) for text in texts]
    return tokenizer(chats, add_special_tokens=False)["input_ids"]


def with_solution(question: str, solution: str) -> str:
    """What the teacher reads: the question and its solution, in the words the tiny base knows."""
    return f"{question} solution {solution} end"


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]]) -> list[list[int]]:
    """One completion a prompt at temperature 1, up to and with its end of sequence."""
    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    # top_k = 0: transformers would keep the 50 likeliest tokens, and the student must be read as it writes
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS, cache_implementation="static")
    rows = out[:, width:].tolist()
    return [row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row for row in rows]


def completion_logits(model: PreTrainedModel, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Float[Tensor, "tokens vocab"]:
    """What the model, having read a prompt, expects at every token of its completion: all completions end to end."""
    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    # padding stands behind every token that is read, so a causal model needs no mask
    logits = model(torch.tensor([row + [0] * (width - len(row)) for row in rows])).logits
    # position t predicts token t + 1: the first token of a completion is predicted by the last one of its prompt
    return torch.cat([row[len(p) - 1 : len(p) + len(c) - 1] for row, p, c in zip(logits, prompts, completions, strict=True)])


def forward_kl(student: Float[Tensor, "tokens vocab"], teacher: Float[Tensor, "tokens vocab"]) -> Float[Tensor, " tokens"]:
    """KL(T || S) = sum_v min(T(v) (log T(v) - log S(v)), CLIP) at every token, from logits."""
    log_s, log_t = (student / TEMPERATURE).log_softmax(-1), (teacher / TEMPERATURE).log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).clamp(max=CLIP).sum(-1)


def distill(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    plain: Sequence[list[int]],
    privileged: Sequence[list[int]],
    completions: Sequence[list[int]],
) -> Float[Tensor, ""]:
    """The loss: both read the same completions, each after its own prompt; mean over tokens, gradient through the student alone."""
    with torch.no_grad():
        target = completion_logits(teacher, privileged, completions)
    return forward_kl(completion_logits(student, plain, completions), target).mean()


def solved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, task: Arithmetic) -> Float[Tensor, " problems"]:
    """Share of SAMPLES right answers to each held-out problem."""
    problems = [p for p in task.problems("test") for _ in range(SAMPLES)]
    completions = sample(model, tokenizer, encode(tokenizer, [p.prompt for p in problems]))
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    return torch.tensor([task.verify(p, text) for p, text in zip(problems, texts, strict=True)]).view(-1, SAMPLES).mean(1)


def main(*, steps: int = STEPS, num_test: int = 150) -> tuple[float, float]:
    """Trains the tiny base and prints what it can do; returns its accuracy before and after."""
    torch.manual_seed(0)
    rng, task = random.Random(0), Arithmetic(num_train=2000, num_test=num_test)
    tokenizer, student = AutoTokenizer.from_pretrained(BASE), AutoModelForCausalLM.from_pretrained(BASE)
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    train, before = task.problems("train"), solved(student, tokenizer, task=task)
    print(f"before: {before.mean():.1%} of {num_test} held-out problems x {SAMPLES} samples")
    for step in range(1, steps + 1):
        problems = [p for p in rng.sample(train, PROBLEMS) for _ in range(SAMPLES)]
        plain = encode(tokenizer, [p.prompt for p in problems])
        privileged = encode(tokenizer, [with_solution(p.prompt, p.solution) for p in problems])
        completions = sample(student, tokenizer, plain)
        loss = distill(student, teacher, plain=plain, privileged=privileged, completions=completions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        print(f"step {step}/{steps}: {loss:.4f} nats a token; {tokenizer.decode(completions[0])}")
    after = solved(student, tokenizer, task=task)
    margin = 1.96 * (after - before).std() / num_test**0.5
    print(f"after: {after.mean():.1%}, {100 * (after - before).mean():+.1f} points (95 % interval over problems: ± {100 * margin:.1f})")
    return float(before.mean()), float(after.mean())


if __name__ == "__main__":
    main()
