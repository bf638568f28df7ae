"""Memory of scoring against tokens x vocabulary: ours in chunks, beside the same equation with all logits at once, in the same run.

python benchmarks/scoring_memory.py [--device cuda]   prints MiB above the inputs and their gradients, writes benchmarks/out/scoring_memory.json
"""

import argparse
import resource
import subprocess
import sys

HIDDEN = 64
GRID = [(tokens, vocab) for vocab in (8192, 16384, 49152) for tokens in (1024, 2048, 4096)]


def measure(mode: str, tokens: int, vocab: int, device: str) -> float:
    """Peak MiB of one forward and backward of JSD between two heads' readings, above what was there before."""
    import torch

    from selfdistill.divergences import JSD
    from selfdistill.heads import Head
    from selfdistill.method import Method
    from selfdistill.scoring import Reading, score
    from selfdistill.types import Batch, Packed

    generator = torch.Generator().manual_seed(0)
    hidden, teacher, weight = (torch.randn(n, HIDDEN, generator=generator).to(device) for n in (tokens, tokens, vocab))
    hidden.requires_grad_()
    weight.requires_grad_()
    head = Head(weight=weight)
    zeros, ids = torch.zeros(tokens, device=device), torch.zeros(tokens, dtype=torch.long, device=device)
    one = torch.ones(1, device=device)
    packed = Packed(input_ids=ids, positions=ids, lengths=(tokens,), predicts=torch.arange(tokens, device=device))
    scalars = dict.fromkeys(("reward", "advantage", "distill_scale", "policy_scale", "label_scale", "reference_scale"), one)
    batch = Batch(
        student=packed,
        views={"teacher": packed},
        weights={"teacher": "teacher"},
        reads_initial=False,
        token=ids,
        student_token=packed.predicts,
        sample=ids,
        position=packed.predicts,
        behavior_logp=zeros,
        proximal_logp=None,
        annotations={},
        label_token=ids[:, None],
        label_share=zeros[:, None] + 1,
        length=one.long() * tokens,
        trained=one.long() * tokens,
        taught=one.bool(),
        temperature=1.0,
        **scalars,
    )
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    before = peak(device)
    reading = Reading(hidden=teacher, head=head.detach())
    method = Method(divergence=JSD(0.5))
    score(method, batch, hidden=hidden, head=head, readings={"teacher": reading}, chunk=None if mode == "chunks" else tokens).divergence.sum().backward()
    return (peak(device) - before) / 2**20


def peak(device: str) -> int:
    """Bytes: the largest allocation so far on an accelerator, the largest resident set on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=3, help="mode, tokens, vocabulary: a single measurement in this process")
    arguments = parser.parse_args()
    if arguments.one:
        mode, tokens, vocab = arguments.one
        print(measure(mode, int(tokens), int(vocab), arguments.device))
        return
    rows = []
    print("| vocabulary | tokens | chunks, MiB | all logits at once, MiB | ratio |\n|---|---|---|---|---|")
    for tokens, vocab in GRID:
        # a process each, since a process's peak never falls
        found = {
            mode: float(subprocess.check_output([sys.executable, __file__, "--device", arguments.device, "--one", mode, str(tokens), str(vocab)]))
            for mode in ("chunks", "whole")
        }
        rows.append({"tokens": tokens, "vocab": vocab} | found)
        print(f"| {vocab:,} | {tokens:,} | {found['chunks']:.0f} | {found['whole']:.0f} | {found['chunks'] / found['whole']:.2f} |", flush=True)
    from workload import write

    write("scoring_memory", rows)


if __name__ == "__main__":
    main()
