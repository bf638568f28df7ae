"""The tiny base from scratch: settings in, an ordinary Hugging Face folder with its card out."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM, get_scheduler

from selfdistill.atomic import require_writable
from selfdistill.chat import special_id
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.arithmetic.card import write_card
from selfdistill.tasks.arithmetic.mixture import Example, Mixture
from selfdistill.tasks.arithmetic.tokenizer import make_tokenizer
from selfdistill.types import Message


class Phase(BaseModel):
    """A stretch of training with one slip rate and one learning-rate schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    steps: int
    lr: float
    """Peak; warm-up over the first 5 %, then linear decay to nothing."""
    slip_rate: float
    context_share: float


class PretrainSettings(BaseModel):
    """A base for the arithmetic testbed: correct work first, then slips."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    output_dir: str
    seed: int = 0
    operations: int = 5
    modulus: int = 19
    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 6
    max_length: int = 512
    batch_size: int = 64
    weight_decay: float = 0.01
    phases: tuple[Phase, ...]
    card_problems: int = Field(default=200, ge=0)
    """Test problems that the card is measured on; 0: it has no card."""


def pretrain(settings: PretrainSettings) -> Path:
    """Trains and saves the base, and measures it for its card. Returns its folder. Raises ValueError where it cannot be written."""
    require_writable(Path(settings.output_dir))
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    task = Arithmetic(operations=settings.operations, modulus=settings.modulus)
    tokenizer = make_tokenizer(settings.modulus)
    model = Qwen3ForCausalLM._from_config(_architecture(settings, tokenizer), attn_implementation="eager")  # fastest at this width
    rng = random.Random(settings.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for i, phase in enumerate(settings.phases):
            _train(model, tokenizer, task, phase, settings=settings, rng=rng, progress=progress, name=f"phase {i + 1}")
    folder = Path(settings.output_dir)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if settings.card_problems:
        write_card(folder, task, settings.model_dump(), problems=settings.card_problems, seconds=time.perf_counter() - start)
    return folder


def _architecture(settings: PretrainSettings, tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.hidden_size // settings.heads,
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=special_id(tokenizer, "eos"),
        pad_token_id=special_id(tokenizer, "pad"),
    )


def _train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    task: Arithmetic,
    phase: Phase,
    *,
    settings: PretrainSettings,
    rng: random.Random,
    progress: Progress,
    name: str,
) -> None:
    """One phase of next-token training on completions."""
    mixture = Mixture(task=task, slip_rate=phase.slip_rate, context_share=phase.context_share)
    optimizers = _optimizers(model, lr=phase.lr, weight_decay=settings.weight_decay)
    schedules = [get_scheduler("linear", o, num_warmup_steps=phase.steps // 20, num_training_steps=phase.steps) for o in optimizers]
    encode = _Encoder(tokenizer)
    bar, start, tokens = progress.add_task(name, total=phase.steps, status=""), time.perf_counter(), 0
    model.train()
    for step in range(1, phase.steps + 1):
        batches = encode.batches([mixture.draw(rng) for _ in range(settings.batch_size)])
        loss = sum(_loss(model, *batch) for batch in batches)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        model.zero_grad()
        tokens += sum(int((ids != encode.pad).sum()) for ids, _, _ in batches)
        status = f"loss {loss:.3f}, {tokens / (time.perf_counter() - start):,.0f} tokens/s"
        progress.update(bar, advance=1, status=status)
        if step % 50 == 0 and not progress.console.is_terminal:
            print(f"{name}: step {step}/{phase.steps}, {status}", flush=True)


def _optimizers(model: Qwen3ForCausalLM, *, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between embedding and head, AdamW for the rest; at this size Muon learns the facts several times sooner."""
    named = dict(model.named_parameters())
    matrices = {name: p for name, p in named.items() if p.ndim == 2 and "embed" not in name}
    rest = [p for name, p in named.items() if name not in matrices]
    muon = torch.optim.Muon(matrices.values(), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def _loss(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor, share: float) -> float:
    """Adds a micro-batch's gradient; its loss counts by its share of the batch's trained tokens."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss * share
    loss.backward()
    return float(loss.detach())


class _Encoder:
    """Examples to padded ids and labels; the end of sequence is trained, prompts are not."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        pad, end = special_id(tokenizer, "pad"), special_id(tokenizer, "eos")
        assert pad is not None and end is not None
        self.vocabulary, self.pad, self.end = tokenizer.get_vocab(), pad, end

    def batches(self, examples: Sequence[Example], parts: int = 2) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """(ids, labels, share of the trained tokens) of micro-batches of like length, so that little is padded."""
        rows = sorted((self._row(example) for example in examples), key=lambda row: len(row[0]))
        total = sum(label != -100 for _, labels in rows for label in labels)
        cut = [rows[len(rows) * i // parts : len(rows) * (i + 1) // parts] for i in range(parts)]
        return [(*self._padded(part), sum(label != -100 for _, labels in part for label in labels) / total) for part in cut if part]

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([r + [self.pad] * (width - len(r)) for r, _ in rows])
        labels = torch.tensor([label + [-100] * (width - len(label)) for _, label in rows])
        return ids, labels

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the chat template makes of the mixture's own words, without rendering it."""
        turns = " ".join(f"<{m['role']}> {m['content']} <end>" for m in messages)
        return [self.vocabulary[word] for word in f"{turns} <assistant>".split()]

    def _row(self, example: Example) -> tuple[list[int], list[int]]:
        prompt = self.chat_ids(example.messages)
        words = [self.vocabulary[word] for word in example.words]
        labels = [token if trained else -100 for token, trained in zip(words, example.trained, strict=True)]
        return prompt + words + [self.end], [-100] * len(prompt) + labels + [self.end]
