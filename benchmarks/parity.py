"""Fast against reference on whatever device there is, values and gradients: chunks, the packed layout, bf16 and the sweeps that training takes.

python benchmarks/parity.py [--device cuda] [--hidden 1024 --layers 8 --vocab 49152]
prints a table and writes benchmarks/out/parity.json after every row

The reference is fp32 logits of padded rows, all at once, scored and then differentiated. "fused" is `learn_from` as a training step calls it, by torch's
blocks, and on an accelerator by Triton's programs too. A variant that fails is said, the rest go on, and the exit status is 1.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM
from workload import TINY, device_here, measured_on, positive, write

from selfdistill.loss import objective
from selfdistill.method import Method
from selfdistill.methods import hsd, opsd, purified_opsd, sdpo
from selfdistill.models import Policy
from selfdistill.packing import pack
from selfdistill.reading import learn_from, read, start_readers
from selfdistill.samples import training_samples
from selfdistill.types import Group, Problem, Rollout

METHODS = {"opsd": opsd(), "hsd": hsd(), "sdpo": sdpo(), "purified_opsd": purified_opsd()}
WIDTH = 64
"""Of an attention head."""
console = Console(width=120)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a step is taken: by `score` in chunks, or by `learn` where a kernel is named."""

    layout: Any = "rows"
    attention: str = "sdpa"
    autocast: torch.dtype | None = None
    chunk: int | None = None
    kernel: str | None = None


PLAIN = Variant(chunk=2**62)


def variants_on(device: str) -> dict[str, Variant]:
    cuda = device != "cpu"
    found = {
        "fused": Variant(kernel="torch"),
        "chunks of 7": Variant(chunk=7),
        "bf16": Variant(autocast=torch.bfloat16),
        "packed": Variant(layout="packed", attention="flex_attention" if cuda else "sdpa"),
    }
    return ({"fused, Triton": Variant(kernel="triton")} if cuda else {}) | found


def make_policy(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """A random Qwen3 of the asked size, every row of whose head is a word, whatever the tokenizer knows."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // WIDTH,
        num_key_value_heads=arguments.hidden // WIDTH,
        head_dim=WIDTH,
    )
    with torch.device(arguments.device):
        model = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa")
    policy = Policy(model, tokenizer).to(arguments.device)
    policy.vocab_size = arguments.vocab
    return policy


def make_groups(policy: Policy, *, rollouts: int, longest: int) -> list[Group]:
    """Ragged random completions of one problem, of any word that the head has; half of them succeed, and their text is of words that the tokenizer has."""
    rng, known = random.Random(0), len(policy.tokenizer)
    problem = Problem(prompt="a = 3 + 4 ; a ?", answer="7", solution="a = 3 + 4 = 7 ; answer 7", id="0")
    prompt = policy.chat.encode(({"role": "user", "content": problem.prompt},))
    ids = [[rng.randrange(policy.vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(rollouts)]
    texts = [policy.chat.decode([token % known for token in c]) for c in ids]
    made = [
        Rollout(prompt_ids=prompt, completion_ids=c, behavior_logp=[-4.0] * len(c), text=text, index=i, reward=float(i % 2))
        for i, (c, text) in enumerate(zip(ids, texts, strict=True))
    ]
    return [Group(problem=problem, rollouts=made)]


def step(method: Method, policy: Policy, groups: list[Group], variant: Variant) -> tuple[float, torch.Tensor]:
    """(loss, gradient) of one step."""
    policy.layout, policy.autocast_dtype = variant.layout, variant.autocast
    policy.base.set_attn_implementation(variant.attention)
    policy.zero_grad()
    readers, total = start_readers(method, policy), 0.0
    for batch in pack(training_samples(groups, method, encode=policy.chat.encode), 10**7):
        batch = batch.to(policy.device)
        if variant.kernel:
            loss = learn_from(policy, readers, method, batch, kernel=variant.kernel).loss
        else:
            loss, _ = objective(method, read(policy, readers, method, batch, chunk=variant.chunk))
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.double().flatten() for p in policy.parameters() if p.grad is not None])


def compare(arguments: argparse.Namespace, policy: Policy) -> Iterator[dict[str, Any] | None]:
    """A row a method and variant, by the same weights on the same rollouts; None, after saying why, for one that fails."""
    groups = make_groups(policy, rollouts=arguments.rollouts, longest=arguments.longest)
    for name, method in METHODS.items():
        loss, gradient = step(method, policy, groups, PLAIN)
        for variant, how in variants_on(arguments.device).items():
            try:
                other, direction = step(method, policy, groups, how)
            except Exception as error:  # a kernel that does not compile here, say, hides no other variant
                console.print(f"{name}, {variant}: left out, {type(error).__name__}: {str(error)[:300]}", markup=False)
                yield None
                continue
            yield {
                "method": name,
                "variant": variant,
                "loss_difference": abs(other - loss) / max(abs(loss), 1e-12),
                "gradient_difference": float((direction - gradient).norm() / gradient.norm()),
                "gradient_cosine": float(torch.nn.functional.cosine_similarity(gradient, direction, dim=0)),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device_here, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hidden", type=partial(positive, of=WIDTH), default=128)
    for name, value in {"layers": 2, "vocab": 4096, "rollouts": 8, "longest": 64}.items():
        parser.add_argument(f"--{name}", type=positive, default=value)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    if arguments.vocab < len(tokenizer):
        parser.error(f"argument --vocab: {arguments.vocab} is below the {len(tokenizer)} words of the tokenizer")
    about = {"settings": vars(arguments), "machine": measured_on(arguments.device), "torch": torch.__version__}
    table, rows, failed = Table("method", "variant", "loss, relative difference", "gradient, relative difference", "gradient, cosine"), [], False
    for row in compare(arguments, make_policy(arguments, tokenizer)):
        if row is None:
            failed = True
            continue
        rows.append(row)
        differences = [f"{row[key]:.2e}" for key in ("loss_difference", "gradient_difference")]
        table.add_row(row["method"], row["variant"], *differences, f"{row['gradient_cosine']:.6f}")
        write("parity", {**about, "rows": rows})
    console.print(f"{arguments.device}, torch {torch.__version__}, hidden {arguments.hidden}, {arguments.layers} layers, vocabulary {arguments.vocab}", table)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
