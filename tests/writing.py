"""Tiny models of many families, and rollouts that they write."""

import torch
import transformers
from tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from selfdistill.models import Policy
from selfdistill.sampling import loop
from selfdistill.sampling.choosing import Choice

FULL = ["qwen3", "llama", "granite", "cohere", "phi"]
"""Families whose layers all see everything."""
SMALL = {"vocab_size": 56, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SMALL |= {"num_hidden_layers": 4, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
CONFIGS = {
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=6),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, **MIXED),
    "lfm2": lambda: transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"] * 2),
    "diffllama": lambda: transformers.DiffLlamaConfig(**SMALL),
    "doge": lambda: transformers.DogeConfig(**SMALL),
    "falcon": lambda: transformers.FalconConfig(**{name: value for name, value in SMALL.items() if name != "head_dim"}, alibi=False),
    "mamba": lambda: transformers.MambaConfig(vocab_size=56, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0, eos_token_id=1),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(**SMALL, **LINEAR, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16),
}
STOPS = [1, 20, 21, 22]
PROMPTS = [[5, 6, 7], [*range(9, 21)], [*range(9, 21)], [7] * 6, [5, 6, 7], [30]]
"""Ragged, two of them twice; the longest is longer than the windows."""


def policy_of(name: str, attention: str | None = None) -> Policy:
    if name in FAMILIES:
        model = tiny_model(name)
    else:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
    if attention:
        model.set_attn_implementation(attention)
    return Policy(model, tiny_tokenizer()).eval()


def written(policy: Policy, *, prompts=PROMPTS, limit: int = 24, seed: int = 0, engine=loop, **decoding) -> list[loop.Line]:
    torch.manual_seed(seed)
    return engine.write(policy, prompts, choice=Choice(**decoding), limit=limit, stops=STOPS)
