"""Retrieval: what a text's embedding is, which pairs are found for a problem, and random ones."""

import sys
from dataclasses import dataclass, replace

import pytest
import torch
from stepping import SKILLS, perturb, tools_of
from tiny_models import tiny_groups, tiny_policy

from selfdistill.method import Method
from selfdistill.retrieval import Nearest, RandomPairs, SentenceTransformer, StudentStates
from selfdistill.skills import read_bank

BANK = read_bank(SKILLS)


@pytest.fixture
def tools():
    return tools_of(tiny_policy(), Method())


def mean_state(policy, text: str) -> torch.Tensor:
    """By the model's own forward on one text, before its head."""
    with torch.no_grad():
        states = policy.base(torch.tensor([policy.tokenizer(text)["input_ids"]]), output_hidden_states=True).hidden_states[-1]
    return states[0].mean(0)


def test_an_embedding_is_the_mean_final_state_of_the_student_as_it_is_now(tools):
    texts = ["w1 w2 w3", "w9", "", *(f"w{i} w{i % 7}" for i in range(70))]
    before = StudentStates()(texts, tools)
    torch.testing.assert_close(before[0], mean_state(tools.policy, texts[0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(before[-1], mean_state(tools.policy, texts[-1]), atol=1e-5, rtol=1e-5)
    assert not before.requires_grad and not before[2].any()
    tools.policy.train()
    perturb(tools.policy)
    after = StudentStates()(texts, tools)
    assert tools.policy.training and not torch.allclose(before[0], after[0])
    torch.testing.assert_close(after[1], mean_state(tools.policy, "w9"), atol=1e-5, rtol=1e-5)


def test_special_tokens_in_an_item_are_read_as_text(tools):
    assert tools.policy.tokenizer.eos_token_id not in tools.policy.chat.plain("w1 <end> w2")


@pytest.mark.parametrize("pairs", [2, 8])
def test_the_nearest_skills_meet_the_nearest_mistakes_by_rank(tools, pairs):
    groups = tiny_groups(tools.policy, problems=3)
    for group, notes in zip(groups, Nearest()(groups, BANK, tools, pairs), strict=True):
        question = mean_state(tools.policy, group.problem.prompt)
        ranked = []
        for texts in ([i["title"] for i in BANK["skills"]], [i["description"] for i in BANK["mistakes"]]):
            cosines = {t: float(torch.cosine_similarity(question, mean_state(tools.policy, t), dim=0)) for t in texts}
            ranked.append(sorted(cosines.items(), key=lambda pair: -pair[1])[:pairs])
        expected = list(zip(*ranked, strict=False))
        assert [(n.fields["skill"], n.fields["mistake"]) for n in notes] == [(s, m) for (s, _), (m, _) in expected]
        assert [n.score for n in notes] == pytest.approx([(a + b) / 2 for (_, a), (_, b) in expected], abs=1e-5)
        assert len(notes) == min(pairs, 3), "the fourth skill has no mistake beside it"
    assert len({tuple(n.fields["skill"] for n in notes) for notes in Nearest()(groups, BANK, tools, 8)}) > 1, "problems differ in what is near"


def test_an_empty_bank_finds_nothing(tools):
    groups = tiny_groups(tools.policy)
    for retrieval in (Nearest(), RandomPairs()):
        assert retrieval(groups, {"skills": [], "mistakes": BANK["mistakes"], "unparsable": 0}, tools, 8) == [(), ()]


def test_random_pairs_come_again_for_the_same_step_and_not_for_the_next(tools):
    groups = tiny_groups(tools.policy, problems=6)
    first, again = (RandomPairs()(groups, BANK, tools, 2) for _ in range(2))
    assert first == again and {n.score for notes in first for n in notes} == {0.0} and {len(notes) for notes in first} == {2}
    for group in groups:
        group.rollouts = [replace(r, policy_version=1) for r in group.rollouts]
    assert RandomPairs()(groups, BANK, tools, 2) != first
    assert len({n.fields["skill"] for notes in first for n in notes}) == 4, "from the whole bank"


@dataclass(frozen=True)
class Lengths:
    """A user's own embedder."""

    def __call__(self, texts, tools):
        return torch.tensor([[1.0, float(len(t))] for t in texts])


def test_users_own_embedders_rank(tools):
    groups = tiny_groups(tools.policy, problems=1)
    bank = {
        kind: [{**item, "title": item.get("title", ""), "description": item.get("description", "")} for item in BANK[kind]] for kind in ("skills", "mistakes")
    }
    bank["skills"][2]["title"] = groups[0].problem.prompt
    (notes,) = Nearest(Lengths())(groups, bank, tools, 8)
    assert notes[0].fields["skill"] == groups[0].problem.prompt


def test_a_missing_library_is_one_sentence(tools, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"needs its library .*: pip install 'selfdistill\[retrieval\]'; or use StudentStates\(\)"):
        SentenceTransformer("another")(["x"], tools)
