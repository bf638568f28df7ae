"""Tiny random models of several families, with a tokenizer and a chat template: what tests train and compare on."""

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from selfdistill.models import Policy
from selfdistill.types import Group, Problem, Rollout

WORDS = [f"w{i}" for i in range(50)]
SPECIAL = ["<pad>", "<end>", "<user>", "<assistant>", "<system>", "<unk>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
TEMPLATES = {
    "student": "{problem}",
    "answer": "{problem} w1 {answer}",
    "solution": "{problem} w2 {solution}",
    "reference": "w2 {solution}",
    "peer": "{problem} w1 {answer} w3 {peer}",
    "demonstration": "{problem} w4 {demonstration}",
    "feedback": "{problem} w5 {feedback}",
    "solution_feedback": "{problem} w5 {feedback} w2 {solution}",
    "feedback_request": "{problem} w2 {solution} w49 {attempt} w41",
    "rubric": "{problem} w45 {rubric}",
    "rubric_solution": "{problem} w2 {solution} w45 {rubric}",
    "rubric_request": "w44 {problem}",
    "rubric_request_solution": "w44 {problem} w2 {solution}",
    "note_request": "{problem} w43",
    "noted": "{problem} w42 {note}",
    "skill": "{problem} w46 {skill} w47 {mistake}",
    "skill_answer": "{problem} w1 {answer} w46 {skill} w47 {mistake}",
    "skill_item": "{title}",
    "mistake_item": "{description}",
    "skill_request": "{problem} w2 {attempt} w46 {most}",
    "mistake_request": "{problem} w2 {attempt} w47 {most}",
    "skill_merge_request": "w46 {items}",
    "mistake_merge_request": "w47 {items}",
    "critique": "{problem} w48 {critique}",
    "critique_request": "{problem} w2 {truth} w49 {attempt} w48",
    "judge_request": "{problem} w2 {truth} w49 {attempt}",
}
FAMILIES = ("qwen3", "llama", "gemma2", "cohere", "granite", "phi")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", additional_special_tokens=["<user>", "<assistant>", "<system>"]
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(family: str = "qwen3", *, vocab: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Two layers, 32 wide; heads are tied, biased, scaled or softcapped as the family's are, with weights large enough to matter."""
    torch.manual_seed(seed)
    vocab = vocab or len(SPECIAL + WORDS)
    common = {"vocab_size": vocab, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = {
        "qwen3": lambda: Qwen3Config(**common, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
        "llama": lambda: LlamaConfig(**common, num_key_value_heads=2, tie_word_embeddings=False),
        "gemma2": lambda: Gemma2Config(**common, num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0, sliding_window=8),
        "cohere": lambda: CohereConfig(**common, num_key_value_heads=2, logit_scale=0.25),
        "granite": lambda: GraniteConfig(**common, num_key_value_heads=2, logits_scaling=3.0),
        "phi": lambda: PhiConfig(**common, tie_word_embeddings=False),
    }[family]()
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("lm_head.bias"):
                parameter.normal_(0, 0.3)
    return model.eval()


def tiny_policy(family: str = "qwen3", **options) -> Policy:
    return Policy(tiny_model(family, **options), tiny_tokenizer())


def tiny_problems(n: int = 2) -> list[Problem]:
    rng = random.Random(0)

    def words(k: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(k))

    return [
        Problem(
            prompt=words(4 + i),
            answer=words(1),
            solution=words(6 + i),
            id=f"p{i}",
            columns={"demonstration": words(5), "rubric": f"w4{i} w9"},
            templates=TEMPLATES,
        )
        for i in range(n)
    ]


def tiny_groups(policy: Policy, *, problems: int = 2, n: int = 4, seed: int = 0, rewards=None, longest: int = 12) -> list[Group]:
    """Ragged random rollouts with the policy's own log-probs; one has a single token, and none needs an end of sequence."""
    rng = random.Random(seed)
    groups = []
    for problem in tiny_problems(problems):
        rollouts = []
        for i in range(n):
            length = 1 if i == 1 else rng.randrange(3, longest)
            ids = [rng.randrange(6, 56) for _ in range(length)]
            prompt = policy.chat.encode(({"role": "user", "content": problem.prompt},))
            logp = reference_logp(policy, prompt, ids)
            reward = float(i % 2) if rewards is None else rewards
            rollouts.append(Rollout(prompt_ids=prompt, completion_ids=ids, behavior_logp=logp, text=policy.chat.decode(ids), index=i, reward=reward))
        groups.append(Group(problem=problem, rollouts=rollouts))
    return groups


@torch.no_grad()
def reference_logp(policy: Policy, prompt: list[int], completion: list[int]) -> list[float]:
    logp = full_logp(policy, prompt, completion)
    return logp.gather(-1, torch.tensor(completion, device=logp.device)[:, None])[:, 0].tolist()


def full_logp(policy: Policy, prompt: list[int], completion: list[int], temperature: float = 1.0) -> torch.Tensor:
    """log-probs over the vocabulary at every completion token, from the model's own logits, one sequence."""
    logits = policy.base(torch.tensor([prompt + completion], device=policy.device)).logits[0, len(prompt) - 1 : -1, : policy.vocab_size].float()
    return (logits / temperature).log_softmax(-1)
