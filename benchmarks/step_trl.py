"""TRL's side of benchmarks/step.py: the same SDPO steps by its SDPOTrainer at its fastest documented settings; prints one line of JSON."""

import tempfile
import time

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
from workload import Meter, Problems, arguments, every_other, messages, report


class Timed(SDPOTrainer):
    """Clocks around TRL's own methods: its sampling, and all it does before learning from a batch."""

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
        self.facts = {"tokens": int(batch["completion_mask"].sum()), "taught": float(batch["self_distillation_mask"].mean())}
        self.facts["teacher_tokens"] = int(batch["teacher_attention_mask"].sum()) - self.facts["tokens"]
        before = time.perf_counter()
        self.meter.start()
        self.metering = time.perf_counter() - before
        return batch


class Steps(TrainerCallback):
    """One row a step, after the teacher has followed."""

    def __init__(self) -> None:
        self.rows, self.trainer = [], None

    def on_step_begin(self, args, state, control, **kwargs):
        # the step's batch is prepared inside training_step, after this
        self.start = time.perf_counter()
        self.trainer.spent.update(sampling=0.0, preparing=0.0)

    def on_step_end(self, args, state, control, **kwargs):
        memory, t = self.trainer.meter.stop(), self.trainer
        whole = time.perf_counter() - self.start - t.metering
        row = {"step": whole, "sampling": t.spent["sampling"], "learning": whole - t.spent["preparing"]}
        row |= {"other": t.spent["preparing"] - t.spent["sampling"], "memory_mib": memory}
        self.rows.append(row | t.facts | {"trained_tokens": t.facts["tokens"] * t.facts["taught"]})


def main() -> None:
    a = arguments()
    task = Problems(a.prompts * a.steps)
    tokenizer = AutoTokenizer.from_pretrained(a.folder, padding_side="left")
    stops = [tokenizer.eos_token_id]
    words = task.rows[0].templates["solution"].replace("{problem}", "{prompt}").replace("{solution}", "{solution}{feedback}")
    rollouts = a.prompts * a.generations
    config = SDPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=a.device == "cpu",
        bf16=a.dtype == "bfloat16",
        per_device_train_batch_size=rollouts // a.micro_batches,
        gradient_accumulation_steps=a.micro_batches,
        num_generations=a.generations,
        max_completion_length=a.tokens,
        max_prompt_length=None,
        max_steps=a.steps,
        learning_rate=1e-6,
        gradient_checkpointing=False,
        cache_implementation=None if a.cache == "dynamic" else "static",
        generation_kwargs={"suppress_tokens": stops} if a.lengths == "forced" else None,
        distillation_mode="topk_logits",
        distillation_topk=a.top_k,
        distillation_alpha=0.5,
        distillation_add_tail=True,
        reprompt_template=words,
        solution_template="{successful_previous_attempt}",
        model_init_kwargs={"dtype": "float32"},
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    clock = Steps()
    trainer = Timed(
        device=a.device,
        model=a.folder,
        reward_funcs=every_other,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": messages(p)} for p in task.rows]),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    clock.trainer = trainer
    # last of all callbacks: the teacher's update belongs to the step
    trainer.remove_callback(clock)
    trainer.add_callback(clock)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.train()
    report(clock.rows, optimizer=str(config.optim), attention=trainer.model.config._attn_implementation)


if __name__ == "__main__":
    main()
