"""The base: a recipe makes an ordinary Hugging Face folder with a measured card, and the shipped one is what its card says."""

import json
import random
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.contexts import student_messages
from selfdistill.loading import load_policy
from selfdistill.pretrain import Phase, PretrainSettings, pretrain
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.arithmetic.mixture import Mixture
from selfdistill.types import Problem

ASSETS = Path(str(files("selfdistill") / "assets"))
BASE = ASSETS / "tiny_base"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "operations": 2, "modulus": 5, "batch_size": 16, "card_problems": 6}


def small(folder: Path, steps: int, **changes: object) -> PretrainSettings:
    phases = (Phase(steps=steps, lr=5e-3, slip_rate=0.2, context_share=0.5),)
    return PretrainSettings(output_dir=str(folder), phases=phases, **(SMALL | changes))


def completion_loss(folder: Path) -> float:
    """Nats a token of fresh workings of the recipe's own mixture."""
    policy = load_policy(str(folder))
    mixture, rng = Mixture(task=Arithmetic(operations=2, modulus=5), slip_rate=0.2, context_share=0.5), random.Random(99)
    total, count = 0.0, 0
    for example in (mixture.draw(rng) for _ in range(40)):
        prompt = policy.chat.encode(example.messages)
        ids = torch.tensor([prompt + policy.chat.completion(" ".join(example.words))])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        with torch.no_grad():
            total += float(policy.base(input_ids=ids, labels=labels).loss) * (ids.shape[1] - len(prompt))
        count += ids.shape[1] - len(prompt)
    return total / count


def test_training_learns_and_writes_an_ordinary_folder_with_its_card(tmp_path: Path):
    untrained, trained = pretrain(small(tmp_path / "a", 1, card_problems=0)), pretrain(small(tmp_path / "b", 60))
    assert completion_loss(trained) < 0.75 * completion_loss(untrained) and not (untrained / "card.json").exists()
    card, figures = (trained / "README.md").read_text(), json.loads((trained / "card.json").read_text())
    assert figures["problems"] == 6 and "seed 0" in card and "without context" in card
    assert {"student", "solution", "peer", "critique", "foreign_peer", "sharded"} <= set(figures["accuracy"])


def test_the_same_seed_gives_the_same_weights(tmp_path: Path):
    one, two, other = (pretrain(small(tmp_path / n, 3, seed=s, card_problems=0)) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    weights = [load_policy(str(f)).base.get_input_embeddings().weight for f in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError, match="lerning_rate"):
        PretrainSettings(output_dir="x", phases=(), lerning_rate=1)


def test_the_shipped_recipe_made_the_shipped_base():
    recipe = PretrainSettings.model_validate(tomllib.loads((ASSETS / "recipes" / "tiny_base.toml").read_text()))
    config = json.loads((BASE / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]) == (recipe.hidden_size, recipe.layers, recipe.intermediate_size)
    assert (recipe.operations, recipe.modulus) == (Arithmetic().operations, Arithmetic().modulus)
    assert sum(f.stat().st_size for f in BASE.glob("*.safetensors")) <= 8_000_000


def test_the_shipped_base_loads_by_the_auto_classes_and_ends_its_turns():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    problem = Arithmetic(num_test=1).problems("test")[0]
    prompt = tokenizer.apply_chat_template([dict(m) for m in student_messages(problem)], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, do_sample=False, max_new_tokens=112)[0].tolist()
    assert out[-1] == tokenizer.eos_token_id


def test_the_shipped_base_errs_alone_and_seldom_with_the_solution():
    task = Arithmetic(num_test=40)
    sampler = TransformersSampler(policy=load_policy("tiny"), max_completion_length=112)
    problems = task.problems("test")
    alone = [task.verify(g.problem, r.text) for g in sampler.sample(problems, 2) for r in g.rollouts]
    shown = [_with_solution(p) for p in problems]
    told = [task.verify(g.problem, r.text) for g in sampler.sample(shown, 2) for r in g.rollouts]
    assert 0.2 < sum(alone) / len(alone) < 0.6
    assert sum(told) / len(told) > 0.8


def _with_solution(problem: Problem) -> Problem:
    return replace(problem, prompt=problem.templates["solution"].format(problem=problem.prompt, instruction="", solution=problem.solution), templates={})
