"""Our side of benchmarks/step.py: SDPO or SDFT steps by the Trainer; prints one line of JSON."""

import tempfile
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, inf
from workload import Meter, Problems, arguments, every_other, metered, report

from selfdistill.api import assemble
from selfdistill.config import make_settings
from selfdistill.sampling import transformers
from selfdistill.sampling.choosing import Choice


@dataclass(frozen=True, kw_only=True)
class Endless(Choice):
    """Chooses no token that ends a completion."""

    stops: tuple[int, ...]

    def __call__(self, logits: Float[Tensor, "rows vocab"], uniform: Float[Tensor, " rows"]) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        for stop in self.stops:
            logits[:, stop] = -inf
        return super().__call__(logits, uniform)


def main() -> None:
    a = arguments()
    settings = {
        "model": {"path": a.folder, "device": a.device, "dtype": a.dtype, "attention": a.attention},
        "method": {"sdpo": {"name": "sdpo", "top_k": a.top_k}, "sdft": {"name": "sdft"}}[a.method],
        "steps": a.steps,
        "prompts_per_step": a.prompts,
        "tokens_per_batch": 10**9 if a.micro_batches == 1 else a.prompts * a.generations * a.tokens * 4 // a.micro_batches,
        "sampling": {"num_generations": a.generations, "max_completion_length": a.tokens, "batch_size": a.prompts * a.generations},
        "optimizer": {"lr": 1e-6},
        "output_dir": tempfile.gettempdir(),
    }
    parts = assemble(make_settings(settings, {}), task=Problems(a.prompts * a.steps), reward=every_other)
    trainer, policy, meter, steps, memory = parts.trainer, parts.policy, Meter(a.device), [], {}
    if a.lengths == "forced":
        transformers.Choice = partial(Endless, stops=tuple(transformers.stop_ids(policy)))

    def updates(batches, clock, inner=trainer._updates):
        memory.clear()
        if not metered(len(steps), a):
            return inner(batches, clock)
        meter.start()
        result = inner(batches, clock)
        memory["memory_mib"] = meter.stop()
        return result

    trainer._updates = updates
    for result in trainer:
        s = result.seconds
        learning = s["pack"] + s["score"] + s["objective"] + s["step"]
        rollouts = [r for g in result.groups for r in g.rollouts]
        steps.append(
            {"step": sum(s.values()), "sampling": s["sample"], "learning": learning, "other": s["grade"] + s["annotate"] + s["teach"]}
            | {"tokens": sum(len(r.completion_ids) for r in rollouts)}
            | {"teacher_tokens": sum(len(v.prompt_ids) for sample in result.samples for v in sample.views.values())}
            | {f"phase_{name}": value for name, value in s.items()}
            | memory
        )
    about = {"optimizer": trainer.settings.optimizer.name, "attention": policy.base.config._attn_implementation, "layout": policy.layout}
    report(a, steps, **about, gradient_checkpointing=trainer.settings.model.gradient_checkpointing)


if __name__ == "__main__":
    main()
