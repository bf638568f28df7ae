"""The same logits through the code that papers published and through our methods; where the two differ, both numbers."""

import math
from dataclasses import replace

import pytest
import torch
from official import INPUTS, Found, agrees, official, official_groups, ours
from stepping import tools_of
from tiny_models import tiny_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TopK, TopKTail
from selfdistill.feedback import MarkContent
from selfdistill.method import Method
from selfdistill.methods import eopd, exprl, exprl_process, opsd, pw_opsd, rcsd, rlsd, sdft, sdpo, sdpo_trust_region, sgsd
from selfdistill.models import Policy
from selfdistill.policy_losses import ClippedRatio
from selfdistill.reductions import SequenceMean, TokenMean
from selfdistill.steps import ClosedBy
from selfdistill.teachers import Frozen
from selfdistill.token_weights import PolarityGate
from selfdistill.tools import Tools
from selfdistill.types import Note

TEACHERS = ("teacher", "second", "third")


def cases(name: str, key: str = "cases") -> list:
    return [pytest.param(case, id="-".join(str(v) for v in case.values() if isinstance(v, str | int | float))[:40]) for case in official(name)[key]]


def clip_of(case: dict) -> float:
    return math.inf if case["clip"] is None else case["clip"]


@pytest.mark.parametrize("case", [*cases("opsd"), *cases("opsd_clipped")])
def test_opsd(case):
    """Per-entry clip, both sides at 1.1, mean over all tokens. The first release ran JSD(0.5) without a clip; its top k is the teacher's."""
    inner = JSD(case["beta"]) if case.get("beta") else ForwardKL(clip_of(case))
    method = replace(opsd(), divergence=TopK(inner, case["top_k"]) if case.get("top_k") else inner)
    assert method == opsd() or case["clip"] != 0.05
    agrees(ours(method, official_groups()), case)


@pytest.mark.parametrize("case", cases("pw_opsd"))
def test_pw_opsd(case):
    floor, center, width = case["schedule"]
    method = replace(pw_opsd(floor=floor, center=center, width=width), divergence=ForwardKL(clip_of(case)))
    agrees(ours(replace(method, reduction=TokenMean()) if case["global_mean"] else method, official_groups()), case)


@pytest.mark.parametrize("case", cases("rcsd"))
def test_rcsd(case):
    method = replace(rcsd(clip=clip_of(case), top_k=case["top_k"]))
    groups = official_groups()
    for group in groups:
        group.notes["rubric"] = (Note(fields={"rubric": "w9"}),)
    agrees(ours(method, groups), case)


@pytest.mark.parametrize("case", cases("eopd"))
def test_eopd(case):
    method = eopd(threshold=case["threshold"], top_k=case["top_k"], teacher=Frozen())
    found = ours(method, official_groups())
    agrees(found, case)
    gate = method.token_weight(found.signals)
    assert 0 < float(gate.mean()) < 1


@pytest.mark.parametrize("case", cases("sdft"))
def test_sdft(case):
    """A mean over rollouts of the mean over what is not skipped; a rollout of skipped tokens alone counts as zero in the code, not at all here."""
    method = replace(sdft(skip_first=case["skip_first"]), divergence=ReverseKL() if case["alpha"] else ForwardKL())
    found = ours(method, official_groups(skip_first=case["skip_first"]))
    counted = sum(len(ids) > case["skip_first"] for ids in INPUTS["token"])
    agrees(scaled(found, counted / len(INPUTS["token"])), case)


def scaled(found: Found, factor: float) -> Found:
    return replace(found, loss=found.loss * factor, gradient=[g * factor for g in found.gradient])


def tools_with(words: list[str], method: Method) -> Tools:
    """A tokenizer of one word a token, as the published code was given it."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    return tools_of(Policy(tiny_model(vocab=len(words)), fast), method)


@pytest.mark.parametrize("case", cases("sgsd"))
def test_sgsd(case):
    """Shares of the teachers, tokens that count, polarity, and the gated loss."""
    method, groups = sgsd(gate=PolarityGate(case["clip"], case["threshold"])), official_groups()
    MarkContent()(groups, tools_with(INPUTS["vocabulary"], method))
    for group in groups:
        group.notes["skill"] = tuple(Note(fields={"skill": "w3", "mistake": "w9"}, score=s) for s in case["scores"])
    for rollout in (r for g in groups for r in g.rollouts):
        assert rollout.annotations["content"] == tuple(float(t not in case["masked_tokens"]) for t in rollout.completion_ids)
    found = ours(method, groups, views={"teacher": TEACHERS})
    shares = [t.weight for t in method.context(groups[0].rollouts[0], groups[0])]
    torch.testing.assert_close(torch.tensor(shares), torch.tensor(case["weights"]))
    agrees(found, case)
    means = {name: float(total / count) for name, (total, count) in method.token_weight.means(found.signals).items()}
    for mine, theirs in (
        ("support", "sgsd_support_score"),
        ("helpful_share", "sgsd_helpful_fraction"),
        ("harmful_share", "sgsd_harmful_fraction"),
        ("neutral_share", "sgsd_neutral_fraction"),
        ("support_clip_share", "sgsd_clipped_token_fraction"),
    ):
        assert means[mine] == pytest.approx(case["metrics"][theirs], abs=1e-6)


def sdpo_of(case: dict) -> Method:
    inner = JSD(case["alpha"]) if case["alpha"] < 1 else ReverseKL()
    base = sdpo() if case["trust"] is None else sdpo_trust_region(mix=case["trust"])
    return replace(base, divergence=TopKTail(inner, case["top_k"]))


def corrected_twice(signals):
    """The code's two factors at a later update: to the trainer's weights before the first one, and from there to the engine's; each capped at 2."""
    now, engine = signals.policy_logp.detach(), signals.batch.behavior_logp
    old = signals.batch.proximal_logp
    return (now - old).exp().clamp(max=2.0) * (old - engine).exp().clamp(max=2.0)


@pytest.mark.parametrize("case", cases("sdpo"))
def test_sdpo(case):
    """Who is taught, the student's top k and a tail bucket, capped importance; mean over taught tokens of what is averaged at once.

    The released run averages one rollout at a time, which makes it a mean over rollouts, untaught ones as zeros. At later updates on the
    same rollouts it caps two factors where the paper has one.
    """
    method, views = sdpo_of(case), {"teacher": ("teacher",)} | ({"live": ("second",)} if case["trust"] is not None else {})
    groups = official_groups(engine_gap="behavior_gap")
    taught = [bool(method.context(r, g)) for g in groups for r in g.rollouts]
    assert taught == [peer is not None for peer in case["peers"]] and len(set(taught)) == 2
    found = ours(method, groups, views=views, proximal=case["later_update"])
    if len(case["micro_batches"]) > 1:
        assert abs(found.loss - case["loss"]) > 0.01
        found = ours(replace(method, reduction=SequenceMean(over="all")), groups, views=views)
    elif case["later_update"]:
        assert abs(found.loss - case["loss"]) > 0.01
        found = ours(replace(method, token_weight=corrected_twice), groups, views=views, proximal=True)
    agrees(found, case)


def sample_deviation(rewards):
    """The division verl makes, by the sample's deviation; ours is the population's, as in GRPO."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-6)


def test_rlsd_is_the_papers_credit_and_the_code_mixes_half_of_it_with_the_plain_one():
    whole, half = official("rlsd")["cases"]
    groups = official_groups(rewards=whole["reward"])
    method = replace(rlsd(clip=whole["clip"]), advantage=sample_deviation, reduction=TokenMean(), policy_loss=ClippedRatio(clip_high=0.28))
    found = ours(method, groups)
    agrees(found, whole)
    credit = method.credit(found.signals).tolist()
    at = [(i, int(t)) for i, t in zip([found.order[s] for s in found.signals.batch.sample], found.signals.batch.position, strict=True)]
    assert credit == pytest.approx([whole["credit"][i][t] for i, t in at], abs=1e-5)
    mixed = [0.5 * found.signals.advantage[n].item() + 0.5 * credit[n] for n in range(len(at))]
    assert mixed == pytest.approx([half["credit"][i][t] for i, t in at], abs=1e-5)


def test_exprl_outcome():
    """The code divides by the sample's deviation and averages over tokens; the rest of a later update is ours."""
    case = official("exprl")["outcome"]
    method = replace(exprl(reference_coef=0.0), advantage=sample_deviation, reduction=TokenMean())
    found = ours(method, official_groups(rewards=case["reward"], engine_gap="later_gap"), proximal=True)
    agrees(found, case)
    _, clipped = method.policy_loss(found.signals, method.credit(found.signals))
    assert 0 < clipped.float().mean() == pytest.approx(case["clipped_share"])


def step_credits(case: dict) -> list[list[float]]:
    """Our credits where the judge's answers are the case's, one word a token; empty where the rollout is not trained."""
    words = ["<pad>", "<end>", "<unk>", "word", "###"]
    proto = official_groups()[0]
    rollouts, scores = [], []
    for steps, grades in zip(case["words"], case["grades"], strict=True):
        ids = [t for k, n in enumerate(steps) for t in [3] * n + [4] * (k < len(steps) - 1)]
        text, truncated = " ".join(words[t] for t in ids), len(ids) == case["longest"]
        rollouts.append(replace(proto.rollouts[0], completion_ids=ids, behavior_logp=[0.0] * len(ids), text=text, truncated=truncated, annotations={}))
        scores += [] if truncated or len(steps) == 1 else [None if g is None else (g - 1) / 4 for g in grades]
    method = exprl_process(judge=lambda attempts, tools: scores if len(attempts) == len(scores) else [], steps=ClosedBy("###"))
    (stage,) = method.feedback
    stage([replace(proto, rollouts=rollouts)], tools_with(words, method))
    return [list(r.annotations["step_delta"]) if r.positions else [] for r in rollouts]


@pytest.mark.parametrize("case", cases("exprl", "process"))
def test_exprl_process(case):
    """A_t = s_t - s_(t-1), A_1 = s_1 - s_T, nothing over length. Two rollouts differ: the code gives a single step its own score for credit,
    and trains one whose first judgement cannot be read, with a credit near -100 on that step.
    """
    found = step_credits(case)
    theirs = [credit if kept else [] for credit, kept in zip(case["credit"], case["kept"], strict=True)]
    if case["case"] == "single step":
        assert (found[0], theirs[0]) == ([0.0] * 3, [0.75] * 3)
    elif case["case"] == "unparsable first step":
        assert (found[0], theirs[0][0]) == ([], -101.0)
    else:
        assert found[0] == theirs[0]
    assert found[1:] == theirs[1:]
