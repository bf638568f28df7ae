"""TRL's side of benchmarks/step.py: the same steps by its SDPOTrainer or SDFTTrainer at their fastest documented settings; prints one line of JSON."""

import argparse
import tempfile
import time
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
from workload import Meter, Problems, arguments, every_other, messages, metered, report


class Timed:
    """Clocks around a trainer's own methods: its sampling, and all it does before learning from a batch."""

    def __init__(self, *args, device: str, **kwargs) -> None:
        self.spent, self.meter = {"sampling": 0.0, "preparing": 0.0}, Meter(device)
        super().__init__(*args, **kwargs)

    def _generate(self, *args, **kwargs):
        start = time.perf_counter()
        try:
            return super()._generate(*args, **kwargs)
        finally:
            self.spent["sampling"] += time.perf_counter() - start

    def _prepare_training_batch(self, *args, **kwargs):
        start = time.perf_counter()
        batch = super()._prepare_training_batch(*args, **kwargs)
        self.spent["preparing"] += time.perf_counter() - start
        taught = batch.get("self_distillation_mask")
        self.facts = {"tokens": int(batch["completion_mask"].sum()), "taught": 1.0 if taught is None else float(taught.mean())}
        self.facts["teacher_tokens"] = int(batch["teacher_attention_mask"].sum()) - self.facts["tokens"]
        before = time.perf_counter()
        if self.metered:
            self.meter.start()
        self.metering = time.perf_counter() - before
        return batch


class TimedSDPO(Timed, SDPOTrainer):
    pass


class TimedSDFT(Timed, SDFTTrainer):
    pass


class Steps(TrainerCallback):
    """One row a step, after the teacher has followed."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a, self.rows, self.trainer = a, [], None

    def on_step_begin(self, args, state, control, **kwargs):
        # the step's batch is prepared inside training_step, after this
        self.start = time.perf_counter()
        self.trainer.spent.update(sampling=0.0, preparing=0.0)
        self.trainer.metered = metered(len(self.rows), self.a)

    def on_step_end(self, args, state, control, **kwargs):
        t = self.trainer
        memory = {"memory_mib": t.meter.stop()} if t.metered else {}
        whole = time.perf_counter() - self.start - t.metering
        row = {"step": whole, "sampling": t.spent["sampling"], "learning": whole - t.spent["preparing"]}
        row |= {"other": t.spent["preparing"] - t.spent["sampling"]}
        self.rows.append(row | memory | t.facts)


def common(a: argparse.Namespace, stops: list[int]) -> dict[str, Any]:
    """The settings of both trainers."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": a.device == "cpu",
        "bf16": a.dtype == "bfloat16",
        "per_device_train_batch_size": a.prompts * a.generations // a.micro_batches,
        "gradient_accumulation_steps": a.micro_batches,
        "num_generations": a.generations,
        "max_completion_length": a.tokens,
        "max_prompt_length": None,
        "max_steps": a.steps,
        "learning_rate": 1e-6,
        "gradient_checkpointing": False,
        "cache_implementation": None if a.cache == "dynamic" else "static",
        "generation_kwargs": {"suppress_tokens": stops} if a.lengths == "forced" else None,
        "model_init_kwargs": {"dtype": "float32"},
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }


def sdpo(a: argparse.Namespace, task: Problems, **given: Any) -> Timed:
    """JSD over the student's top k and a tail; the EMA teacher reads a successful peer."""
    words = task.rows[0].templates["solution"].replace("{problem}", "{prompt}").replace("{solution}", "{solution}{feedback}")
    config = SDPOConfig(
        **common(a, [given["processing_class"].eos_token_id]),
        distillation_mode="topk_logits",
        distillation_topk=a.top_k,
        distillation_alpha=0.5,
        distillation_add_tail=True,
        reprompt_template=words,
        solution_template="{successful_previous_attempt}",
    )
    rows = [{"prompt": messages(p)} for p in task.rows]
    return TimedSDPO(args=config, reward_funcs=every_other, train_dataset=Dataset.from_list(rows), **given)


def sdft(a: argparse.Namespace, task: Problems, **given: Any) -> Timed:
    """KL(T || S) over the vocabulary behind the first three tokens; the EMA teacher reads a demonstration."""
    words = task.rows[0].templates["demonstration"].replace("{problem}", "{prompt}").replace("{demonstration}", "{privileged_context}")
    config = SDFTConfig(
        **common(a, [given["processing_class"].eos_token_id]),
        distillation_mode="full_logits",
        distillation_alpha=0.0,
        num_loss_tokens_to_skip=3,
        teacher_model_kind="ema",
        teacher_update_rate=0.01,
        teacher_prompt_template=words,
    )
    rows = [{"prompt": messages(p), "privileged_context": p.solution} for p in task.rows]
    return TimedSDFT(args=config, train_dataset=Dataset.from_list(rows), **given)


def main() -> None:
    a = arguments()
    tokenizer = AutoTokenizer.from_pretrained(a.folder, padding_side="left")
    clock = Steps(a)
    make = {"sdpo": sdpo, "sdft": sdft}[a.method]
    trainer = make(a, Problems(a.prompts * a.steps), device=a.device, model=a.folder, processing_class=tokenizer, callbacks=[clock])
    clock.trainer = trainer
    # last of all callbacks: the teacher's update belongs to the step
    trainer.remove_callback(clock)
    trainer.add_callback(clock)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.train()
    about = {"optimizer": trainer.args.optim.value, "attention": trainer.model.config._attn_implementation, "cache": a.cache}
    report(a, clock.rows, **about, gradient_checkpointing=trainer.args.gradient_checkpointing)


if __name__ == "__main__":
    main()
