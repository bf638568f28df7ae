"""Fast against reference on whatever device there is: chunked scoring, packed layout and bf16 against plain fp32 logits, values and gradients.

python benchmarks/parity.py [--device cuda] [--hidden 1024 --layers 8 --vocab 49152]   prints a table and writes benchmarks/out/parity.json
"""

import argparse
import json
import random
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from selfdistill.loss import objective
from selfdistill.methods import hsd, opsd, purified_opsd, sdpo
from selfdistill.models import Policy
from selfdistill.packing import pack
from selfdistill.reading import read, start_readers
from selfdistill.samples import training_samples
from selfdistill.types import Group, Problem, Rollout

METHODS = {"opsd": opsd(), "hsd": hsd(), "sdpo": sdpo(), "purified_opsd": purified_opsd()}
TINY = Path(__file__).parents[1] / "src" / "selfdistill" / "assets" / "tiny_base"


def make_policy(arguments: argparse.Namespace, *, layout: str, attention: str, autocast: torch.dtype | None) -> Policy:
    """A random Qwen3 of the asked size; its tokenizer knows fewer words than it has rows, as padded vocabularies do."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=arguments.hidden // 64,
        head_dim=64,
    )
    model = Qwen3ForCausalLM._from_config(config, attn_implementation=attention)
    return Policy(model, AutoTokenizer.from_pretrained(TINY), layout=layout, autocast=autocast).to(arguments.device)


def make_groups(policy: Policy, *, rollouts: int, longest: int) -> list[Group]:
    """Ragged random completions of one problem; half of them succeed."""
    rng = random.Random(0)
    words = policy.vocab_size
    problem = Problem(prompt="a = 3 + 4 ; a ?", answer="7", solution="a = 3 + 4 = 7 ; answer 7", id="0")
    prompt = policy.chat.encode(({"role": "user", "content": problem.prompt},))
    ids = [[rng.randrange(6, words) for _ in range(rng.randrange(1, longest))] for _ in range(rollouts)]
    made = [
        Rollout(prompt_ids=prompt, completion_ids=c, behavior_logp=[-4.0] * len(c), text=policy.chat.decode(c), index=i, reward=float(i % 2))
        for i, c in enumerate(ids)
    ]
    return [Group(problem=problem, rollouts=made)]


def step(method, policy: Policy, groups: list[Group], *, chunk: int | None) -> tuple[float, torch.Tensor]:
    """(loss, gradient) of one step."""
    policy.zero_grad()
    readers, total = start_readers(method, policy), 0.0
    for batch in pack(training_samples(groups, method, encode=policy.chat.encode), 10**7):
        loss, _ = objective(method, read(policy, readers, method, batch.to(policy.device), chunk=chunk))
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.double().flatten() for p in policy.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in {"hidden": 128, "layers": 2, "vocab": 4096, "rollouts": 8, "longest": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    variants = {
        "chunks of 7": {"layout": "rows", "attention": "sdpa", "autocast": None, "chunk": 7},
        "packed": {"layout": "packed", "attention": "flex_attention" if arguments.device == "cuda" else "sdpa", "autocast": None, "chunk": None},
        "bf16": {"layout": "rows", "attention": "sdpa", "autocast": torch.bfloat16, "chunk": None},
    }
    table, rows = Table("method", "variant", "loss, relative difference", "gradient, cosine"), []
    for name, method in METHODS.items():
        reference = make_policy(arguments, layout="rows", attention="sdpa", autocast=None)
        groups = make_groups(reference, rollouts=arguments.rollouts, longest=arguments.longest)
        loss, gradient = step(method, reference, groups, chunk=None)
        for variant, options in variants.items():
            chunk = options.pop("chunk") if "chunk" in (options := dict(options)) else None
            other, direction = step(method, make_policy(arguments, **options), groups, chunk=chunk)
            cosine = float(torch.nn.functional.cosine_similarity(gradient, direction, dim=0))
            difference = abs(other - loss) / max(abs(loss), 1e-12)
            rows.append({"method": name, "variant": variant, "loss_difference": difference, "gradient_cosine": cosine})
            table.add_row(name, variant, f"{difference:.2e}", f"{cosine:.6f}")
    Console().print(f"{arguments.device}, torch {torch.__version__}, hidden {arguments.hidden}, {arguments.layers} layers, vocabulary {arguments.vocab}", table)
    out = Path(__file__).parent / "out" / "parity.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"settings": vars(arguments), "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
