"""What a loss costs between final hidden states and their gradient: `learn` beside the head products that nobody can save, plain torch, and peers.

python benchmarks/fused.py [--device cuda --dtype bfloat16] [--tokens 8192 --hidden 4096 --vocab 151936] [--heads trained frozen]
prints tables and writes benchmarks/out/fused.json after every pass; on a CPU in CPU seconds of one thread, each way in a process of its own, in turns

What other settings and machines measured stays in the file. A way that fails is said and the rest go on; unless it is a peer's, the exit status is 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product

import torch
from rich.console import Console
from rich.table import Table
from workload import PEERS, Meter, device_here, last_words, measured_before, measured_on, peer_environment, positive, write

from selfdistill.heads import Head
from selfdistill.kernels import products
from selfdistill.kernels.fused import learn
from selfdistill.kernels.products import add_outer, linear
from selfdistill.loss import objective
from selfdistill.methods import gkd, hsd, opsd, purified_opsd, sdpo
from selfdistill.scoring import Reading, score
from selfdistill.types import Batch, Packed

METHODS = {"opsd": opsd(), "sdpo": sdpo(), "purified_opsd": purified_opsd(), "hsd": hsd(), "gkd": gkd()}
ROLES = {"purified_opsd": ("teacher", "reference", "base")}
WAYS = {
    "floor": "head products alone",
    "torch": "fused, torch blocks",
    "triton": "fused, Triton",
    "plain": "plain torch, all logits at once",
    "chunks": "chunks, logits computed again in backward",
    "trl": "TRL's chunked divergence",
    "liger": "Liger's fused linear JSD",
}
PEERS_KNOW = ("gkd", "trained")
"""A plain JSD between two heads, of which the student's learns, and nothing else."""
ROLLOUTS = 16
WARM_UP = 64
"""Tokens of the pass before the first measured one: it compiles, loads and fills what is filled once."""
console = Console(width=130)


def batch_of(tokens: int, vocab: int, device: str, roles: tuple[str, ...], reads_initial: bool) -> Batch:
    """ROLLOUTS rollouts of random tokens, all taught."""
    generator = torch.Generator().manual_seed(0)
    ids, order, one = torch.randint(0, vocab, (tokens,), generator=generator), torch.arange(tokens), torch.ones(ROLLOUTS)
    length = tokens // ROLLOUTS
    packed = Packed(input_ids=ids, positions=order % length, lengths=(length,) * ROLLOUTS, predicts=order)
    scalars = dict.fromkeys(("reward", "advantage", "distill_scale", "policy_scale", "label_scale", "reference_scale"), one / tokens)
    return Batch(
        student=packed,
        views=dict.fromkeys(roles, packed),
        weights=dict.fromkeys(roles, "teacher"),
        reads_initial=reads_initial,
        token=ids,
        student_token=order,
        sample=order // length,
        position=order % length,
        behavior_logp=torch.full((tokens,), -4.0),
        proximal_logp=None,
        annotations={},
        label_token=ids[:, None],
        label_share=torch.ones(tokens, 1),
        length=one.long() * length,
        trained=one.long() * length,
        taught=one.bool(),
        temperature=1.0,
        **scalars,
    ).to(torch.device(device))


def head_of(arguments: argparse.Namespace) -> Head:
    device = arguments.device
    weight = torch.randn(arguments.vocab, arguments.hidden, generator=torch.Generator(device).manual_seed(1), device=device)
    weight = weight.mul_(3 / arguments.hidden**0.5).to(getattr(torch, arguments.dtype))
    return Head(weight=weight.requires_grad_("trained" in arguments.heads))


def given(arguments: argparse.Namespace, head: Head, tokens: int) -> dict:
    """Random states under one head for everyone: only its student side learns, and only where heads are trained."""
    device, roles = arguments.device, ROLES.get(arguments.method, ("teacher",))
    generator, reads_initial = torch.Generator(device).manual_seed(2), bool(METHODS[arguments.method].reference_coef)
    states = lambda: torch.randn(tokens, arguments.hidden, generator=generator, device=device).to(head.weight.dtype)  # noqa: E731
    read = {role: Reading(hidden=states(), head=head.detach()) for role in roles}
    made = {"readings": read, "initial": Reading(hidden=states(), head=head.detach()) if reads_initial else None, "hidden": states().requires_grad_()}
    return made | {"head": head, "batch": batch_of(tokens, arguments.vocab, device, roles, reads_initial)}


def floor(method: object, batch: Batch, *, hidden: torch.Tensor, head: Head, readings: dict[str, Reading], initial: Reading | None) -> None:
    """One product for each side's values, one for the gradient of the states, one more for the head's: a block of rows at a time, as fast as they are here."""
    del method, batch
    read = [r.hidden for r in (*readings.values(), initial) if r is not None]
    size = max(2 ** (27 if hidden.is_cuda else 24) // head.vocab_size, 1)
    weight, total = head.weight.detach(), torch.zeros_like(head.weight) if head.weight.requires_grad else None
    with torch.no_grad():
        for rows in torch.arange(len(hidden), device=hidden.device).split(size):
            logits = linear(hidden[rows], weight)
            for states in read:
                linear(states[rows], weight)
            linear(logits, weight.T)
            if total is not None:
                add_outer(total, logits, hidden[rows])


def scored(method: object, batch: Batch, *, chunk: int | None = None, **parts: object) -> None:
    objective(method, score(method, batch, chunk=chunk, **parts))[0].backward()


def fused(method: object, batch: Batch, **parts: object) -> None:
    learn(method, batch, **parts).loss.backward()


def trl(method: object, batch: Batch, *, hidden: torch.Tensor, head: Head, readings: dict[str, Reading], initial: Reading | None) -> None:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    del method, batch, initial
    teacher = readings["teacher"]
    ChunkedDivergenceFunction.apply(hidden, head.weight, None, teacher.hidden, teacher.head.weight, None, 0.5)[0].mean().backward()


def liger(method: object, batch: Batch, *, hidden: torch.Tensor, head: Head, readings: dict[str, Reading], initial: Reading | None) -> None:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    del method, initial
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=hidden.is_cuda)
    teacher = readings["teacher"]
    loss(hidden, head.weight, teacher.hidden, teacher.head.weight, batch.token).backward()


def run(arguments: argparse.Namespace) -> dict:
    """One way's passes in this process: the median of their seconds, and the peak of the first above what stood before."""
    torch.set_num_threads(1)
    method, cuda = METHODS[arguments.method], arguments.device.startswith("cuda")
    ways: dict[str, Callable[..., None]] = {"floor": floor, "plain": partial(scored, chunk=2**62), "chunks": scored, "trl": trl, "liger": liger}
    ways |= {kernel: partial(fused, kernel=kernel) for kernel in ("torch", "triton")}
    if arguments.one in ("plain", "chunks"):
        # what plain torch multiplies with is its BLAS
        products.AVAILABLE = False
    way, head = ways[arguments.one], head_of(arguments)
    parts, small = given(arguments, head, arguments.tokens), given(arguments, head, WARM_UP)
    way(method, small.pop("batch"), **small)
    del small
    head.weight.grad = None
    meter, seconds = Meter(arguments.device), []
    batch = parts.pop("batch")
    meter.start()
    for _ in range(arguments.passes):
        parts["hidden"].grad = head.weight.grad = None
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize()
        start = clock()
        way(method, batch, **parts)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return {"seconds": statistics.median(seconds), "memory_mib": meter.stop()}


def ways_of(method: str, heads: str, arguments: argparse.Namespace) -> list[str]:
    """Those of the asked ways that the device and the method have."""
    cuda, known = arguments.device != "cpu", (method, heads) == PEERS_KNOW
    return [w for w in arguments.ways if (w != "triton" or cuda) and (w not in PEERS or known)]


def turns(
    method: str, heads: str, ways: Sequence[str], environments: Mapping[str, dict[str, str]], arguments: argparse.Namespace
) -> Iterator[tuple[str, dict[str, float] | None]]:
    """Figures of every way in turn, `repeats` times; None, after saying why, for one that fails, which has no further turn."""
    sizes = [text for name in ("device", "dtype", "tokens", "hidden", "vocab", "passes") for text in (f"--{name}", str(getattr(arguments, name)))]
    left = list(ways)
    for _ in range(arguments.repeats):
        for way in list(left):
            command = [sys.executable, __file__, "--one", way, "--method", method, "--heads", heads, *sizes]
            done = subprocess.run(command, capture_output=True, text=True, env=environments.get(way))
            if done.returncode:
                console.print(f"{method}, {heads} head, {WAYS[way]}: left out, {last_words(done.stderr)}", markup=False)
                left.remove(way)
            yield way, None if done.returncode else json.loads(done.stdout.strip().splitlines()[-1])


def compared(found: Mapping[str, Sequence[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians by way, and what they are of the floor and of plain torch where those were measured."""
    result = {way: {key: statistics.median(f[key] for f in each) for key in each[0]} for way, each in found.items()}
    for figures in result.values():
        if "floor" in result:
            figures["of_floor"] = figures["seconds"] / result["floor"]["seconds"]
        if "plain" in result:
            figures["of_plain"] = figures["seconds"] / result["plain"]["seconds"]
            figures["memory_of_plain"] = figures["memory_mib"] / result["plain"]["memory_mib"]
    return result


def show(method: str, heads: str, result: dict[str, dict]) -> None:
    table = Table("way", "seconds", "of floor", "of plain", "peak, MiB", "of plain", title=f"{method}, {heads} head")
    for way, found in result.items():
        ratios = {key: f"{found[key]:.2f}" if key in found else "" for key in ("of_floor", "of_plain", "memory_of_plain")}
        table.add_row(WAYS[way], f"{found['seconds']:.2f}", ratios["of_floor"], ratios["of_plain"], f"{found['memory_mib']:,.0f}", ratios["memory_of_plain"])
    console.print(table)


def measure(arguments: argparse.Namespace, work: Mapping[tuple[str, str], Sequence[str]]) -> set[str]:
    """Measures, shows and writes the ways of every (method, heads); those that failed."""
    setting = {name: getattr(arguments, name) for name in ("device", "dtype", "tokens", "hidden", "vocab", "repeats", "passes")}
    run, failed = {"setting": setting, "machine": measured_on(arguments.device, torch=torch.__version__)}, set()
    known = measured_before("fused").get("runs", [])
    results = next((r["results"] for r in known if r | run == r), {})
    others = [r for r in known if r | run != r]
    peers = {way: peer_environment(way) for way in PEERS if any(way in ways for ways in work.values())}
    environments = {way: environment for way, environment in peers.items() if environment}
    for (method, heads), ways in work.items():
        found: dict[str, list[dict[str, float]]] = {}
        for way, figures in turns(method, heads, [w for w in ways if w not in PEERS or w in environments], environments, arguments):
            if figures is None:
                failed.add(way)
                continue
            found.setdefault(way, []).append(figures)
            results[f"{method}, {heads}"] = compared(found)
            write("fused", {"runs": [*others, run | {"results": results}]})
        if found:
            show(method, heads, compared(found))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=device_here, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tokens", type=partial(positive, of=ROLLOUTS), default=2048, help=f"of {ROLLOUTS} rollouts together")
    for name, value in {"hidden": 576, "vocab": 49152, "repeats": 1, "passes": 1}.items():
        parser.add_argument(f"--{name}", type=positive, default=value)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=tuple(METHODS))
    parser.add_argument("--heads", nargs="+", default=["trained", "frozen"], choices=("trained", "frozen"))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=tuple(WAYS), help="triton on an accelerator, peers for gkd with a trained head alone")
    parser.add_argument("--one", choices=tuple(WAYS), help="a single way in this process")
    parser.add_argument("--method", choices=tuple(METHODS), help="that of --one")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run(arguments)))
        return
    work = {(method, heads): ways_of(method, heads, arguments) for heads, method in product(arguments.heads, arguments.methods)}
    if not any(work.values()):
        parser.error(f"argument --ways: {', '.join(arguments.ways)} is not for this; triton takes --device cuda, a peer --methods gkd --heads trained")
    sys.exit(int(bool(measure(arguments, work) - set(PEERS))))


if __name__ == "__main__":
    main()
