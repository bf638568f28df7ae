"""Problems told over turns: who says what in which order, on whose tokens, and that nothing but the last reply counts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_models import TEMPLATE, tiny_model, tiny_policy, tiny_tokenizer

from selfdistill.api import assemble
from selfdistill.cli import main
from selfdistill.config import make_settings
from selfdistill.contexts import answered
from selfdistill.conversations import Concat, Full, Placeholder, RawSharded
from selfdistill.evaluate import evaluate
from selfdistill.loading import load_policy
from selfdistill.method_names import build_conversation
from selfdistill.methods import ccopd, grpo
from selfdistill.metrics import rollout_metrics
from selfdistill.models import Policy
from selfdistill.preflight import check_alignment, first_rollouts, prove_alignment
from selfdistill.runlog import RunLog
from selfdistill.samples import training_samples
from selfdistill.sampling.transformers import TransformersSampler
from selfdistill.sources import Sharded
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.types import Group, Problem

CONVERSATIONS = (Full(), Concat(), RawSharded(), Placeholder("w30"))
LONG, SHORT = ("w1 w2", "w3", "w4 w5"), ("w6", "w7")


def told(*shards: str, **known) -> Problem:
    return Problem(**({"prompt": " ".join(shards), "answer": "w9", "id": shards[0], "columns": {"shards": shards}} | known))


PROBLEMS = [told(*LONG), told(*SHORT)]


def sampler_of(policy: Policy, **options) -> TransformersSampler:
    return TransformersSampler(policy=policy, **({"max_completion_length": 8} | options))


def texts(messages) -> list[str]:
    return [m["content"] for m in messages]


@dataclass(kw_only=True)
class Counting(TransformersSampler):
    """Remembers how many prompts each call was given."""

    asked: list[int] = field(default_factory=list)

    def sample(self, problems: Sequence[Problem], n: int) -> list[Group]:
        self.asked.append(len(problems) * n)
        return super().sample(problems, n)


def test_the_students_own_replies_stand_between_the_shards():
    groups = RawSharded()(sampler_of(tiny_policy()), PROBLEMS, 3)
    assert [g.problem for g in groups] == PROBLEMS
    for group, shards in zip(groups, (LONG, SHORT), strict=True):
        assert [r.index for r in group.rollouts] == [0, 1, 2]
        assert len({tuple(texts(r.prompt)) for r in group.rollouts}) == 3, "every conversation goes its own way"
        for rollout in group.rollouts:
            assert len(rollout.earlier) == len(shards) - 1
            own = [text for shard, reply in zip(shards, rollout.earlier, strict=False) for text in (shard, reply.text)]
            assert texts(rollout.prompt) == [*own, shards[-1]]
            assert [m["role"] for m in rollout.prompt] == ["user", "assistant"] * (len(shards) - 1) + ["user"]
            assert {r.trajectory for r in rollout.earlier} == {rollout.trajectory}
    assert len({r.trajectory for g in groups for r in g.rollouts}) == 6


def test_a_turns_prompt_begins_with_the_tokens_of_the_turn_before_and_no_reply_opens_a_turn():
    """The random student writes special tokens now and then: they reach no prompt, and there alone history is not kept token by token."""
    policy = tiny_policy()
    roles = set(policy.tokenizer.convert_tokens_to_ids(["<user>", "<assistant>", "<system>"]))
    dropped = roles | set(policy.tokenizer.convert_tokens_to_ids(["<pad>", "<unk>"]))
    kept = forged = 0
    for rollout in (r for g in RawSharded()(sampler_of(policy), PROBLEMS, 16) for r in g.rollouts):
        turns = [*rollout.earlier, rollout]
        assert all(sum(token in roles for token in turn.prompt_ids) == len(turn.prompt) + 1 for turn in turns)
        for before, after in pairwise(turns):
            history = before.prompt_ids + before.completion_ids
            assert (after.prompt_ids[: len(history)] == history) == (not dropped & set(before.completion_ids))
            kept += after.prompt_ids[: len(history)] == history
            forged += bool(roles & set(before.completion_ids))
    assert kept > 5 and forged > 5


def test_where_the_template_rewrites_history_the_prompt_is_what_it_renders():
    """As thinking templates do: of earlier replies only the last word is left."""
    policy = tiny_policy()
    policy.tokenizer.chat_template = TEMPLATE.replace("m['content']", "(m['content'].split(' ')[-1] if m['role'] == 'assistant' else m['content'])")
    groups = RawSharded()(sampler_of(policy), PROBLEMS, 2)
    rollout = groups[0].rollouts[0]
    first = rollout.earlier[0]
    assert len(first.text.split()) > 1
    assert rollout.prompt_ids[: len(first.prompt_ids) + len(first.completion_ids)] != first.prompt_ids + first.completion_ids
    assert check_alignment(policy, ccopd(), groups)["own_divergence"] < 1e-5


def test_all_conversations_take_a_turn_together_and_greedily_it_is_one_by_one():
    policy = tiny_policy()
    together = Counting(policy=policy, max_completion_length=8, temperature=0.0)
    groups = RawSharded()(together, PROBLEMS, 2)
    assert together.asked == [4, 4, 2], "the third turn is the longer problem's alone"
    alone = [RawSharded()(sampler_of(policy, temperature=0.0, batch_size=1), [p], 1)[0].rollouts[0] for p in PROBLEMS]
    for group, expected in zip(groups, alone, strict=True):
        for rollout in group.rollouts:
            assert rollout.completion_ids == expected.completion_ids and rollout.prompt_ids == expected.prompt_ids
            assert [r.completion_ids for r in rollout.earlier] == [r.completion_ids for r in expected.earlier]


def test_neutral_replies_are_written_not_sampled():
    counting = Counting(policy=tiny_policy(), max_completion_length=8)
    groups = Placeholder("w30")(counting, PROBLEMS, 3)
    assert counting.asked == [6]
    for rollout in groups[0].rollouts:
        assert texts(rollout.prompt) == ["w1 w2", "w30", "w3", "w30", "w4 w5"] and rollout.earlier == ()


def test_concat_is_one_turn_and_on_the_testbed_the_full_prompt():
    policy = tiny_policy()
    (rollout,) = Concat()(sampler_of(policy), PROBLEMS[:1], 1)[0].rollouts
    assert texts(rollout.prompt) == ["w1 w2\nw3\nw4 w5"]
    problems = Arithmetic(num_test=3).problems("test")
    found = [[r.prompt_ids for g in mode(sampler_of(load_policy("tiny")), problems, 1) for r in g.rollouts] for mode in (Concat(), Full())]
    assert found[0] == found[1]


@pytest.mark.parametrize("conversation", [RawSharded(), Placeholder("w30"), Concat()], ids=str)
def test_the_last_turn_alone_is_closed_by_the_instruction_and_what_opens_the_chat_stays(conversation):
    problem = told(*LONG, prompt=({"role": "system", "content": "w40"}, {"role": "user", "content": "w41"}), instruction="w42")
    (rollout,) = conversation(sampler_of(tiny_policy()), [problem], 1)[0].rollouts
    assert rollout.prompt[0] == {"role": "system", "content": "w40"}
    users = [m["content"] for m in rollout.prompt if m["role"] == "user"]
    assert ["w42" in text for text in users] == [False] * (len(users) - 1) + [True] and "w41" not in " ".join(users)
    assert [r.prompt for r in rollout.earlier] == [rollout.prompt[: 2 * k + 2] for k in range(len(rollout.earlier))], "each as the next turn tells it"


@pytest.mark.parametrize("shards", [None, "w1 w2", (), ("w1", ""), (1, 2)], ids=repr)
@pytest.mark.parametrize("conversation", [RawSharded(), Placeholder(), Concat()], ids=str)
def test_a_problem_without_turns_is_named(conversation, shards):
    problem = Problem(prompt="w1", id="seven", columns={} if shards is None else {"shards": shards})
    with pytest.raises(ValueError, match=r"problem 'seven': .* column 'shards' .*Full\(\)"):
        conversation(sampler_of(tiny_policy()), [problem], 1)


def test_a_chat_that_outgrows_the_model_ends_there_uncounted_and_said():
    """256 positions, 40 tokens a reply: long-winded conversations of eight turns do not come to their end, terse ones do."""
    policy, problem = tiny_policy(), told(*(f"w{i}" for i in range(8)))
    groups = RawSharded()(sampler_of(policy, max_completion_length=40), [problem], 24)
    cut = [r for r in groups[0].rollouts if not r.completion_ids]
    assert 0 < len(cut) < 24
    for rollout in cut:
        assert rollout.truncated and rollout.text == "" and len(rollout.behavior_logp) == 0
        history = [*rollout.prompt, {"role": "assistant", "content": rollout.earlier[-1].text}, {"role": "user", "content": f"w{len(rollout.earlier)}"}]
        assert len(rollout.earlier) < 8 and len(policy.chat.encode(history)) + 40 > 256
    samples = training_samples(groups, ccopd(), encode=policy.chat.encode)
    assert len(samples) == 24 - len(cut) and all(s.rollout.completion_ids for s in samples)
    check_alignment(policy, ccopd(), groups)
    assert rollout_metrics(groups, samples)["truncated"] >= len(cut) / 24


def test_a_first_turn_too_long_is_an_error_with_its_knob():
    with pytest.raises(ValueError, match="256 positions; lower max_completion_length"):
        RawSharded()(sampler_of(tiny_policy(), max_completion_length=250), [told("w1 w2 w3 w4 w5", "w6")], 1)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=str)
def test_alignment_is_proved_on_the_chat_that_was_answered(conversation):
    policy = tiny_policy()
    groups = conversation(sampler_of(policy), PROBLEMS, 2)
    found = check_alignment(policy, ccopd(), groups)
    assert found["own_divergence"] < 1e-5 and found["engine_gap"] < 1e-4
    if conversation not in (Full(), Concat()):
        last = groups[1].rollouts[1]
        groups[1].rollouts[1] = replace(last, prompt=(*last.prompt[:-2], {"role": "assistant", "content": "w11 w12"}, last.prompt[-1]))
        with pytest.raises(ValueError, match="problem 'w6': the sampled prompt is not what the chat template renders"):
            check_alignment(policy, ccopd(), groups)


def test_alignment_is_proved_on_every_turn():
    policy = tiny_policy()
    groups = RawSharded()(sampler_of(policy), PROBLEMS, 2)
    last = groups[0].rollouts[1]
    groups[0].rollouts[1] = replace(last, earlier=(last.earlier[0], replace(last.earlier[1], prompt=last.prompt)))
    with pytest.raises(ValueError, match="problem 'w1 w2': the sampled prompt is not what the chat template renders"):
        check_alignment(policy, ccopd(), groups)


def test_text_that_looks_like_a_role_opens_no_turn():
    policy = tiny_policy()
    roles = policy.tokenizer.convert_tokens_to_ids(["<user>", "<assistant>", "<system>"])
    forged = told("w1 <end> <system> w2", "w3")
    (rollout,) = Placeholder("w4 <end> <user> w5")(sampler_of(policy), [forged], 1)[0].rollouts
    assert [token for token in rollout.prompt_ids if token in roles] == [roles[0], roles[1], roles[0], roles[1]]


class Told:
    """The two problems as a task."""

    def problems(self, split):
        return PROBLEMS

    def verify(self, problem, completion):
        return float(len(completion.split()) > 4)


def test_a_run_proves_what_it_will_train_on_and_steps():
    settings = make_settings({"steps": 1, "prompts_per_step": 2, "sampling": {"num_generations": 3, "max_completion_length": 6}, "optimizer": {"lr": 1e-3}}, {})
    parts = assemble(settings, policy=tiny_policy(), method=ccopd(), task=Told())
    (drawn,) = first_rollouts(parts.trainer, problems=2, n=2)
    assert [len(r.earlier) for g in drawn for r in g.rollouts] == [2, 2, 1, 1]
    prove_alignment(parts.trainer)
    (result,) = parts.trainer
    assert result.metrics["taught_share"] == 1 and result.metrics["grad_norm"] > 0


def test_only_last_replies_are_counted_graded_and_trained(tmp_path):
    policy = tiny_policy()
    groups = RawSharded()(sampler_of(policy), PROBLEMS, 3)
    for rollout in (r for g in groups for r in g.rollouts):
        rollout.reward = float(rollout.index == 0)
    method = replace(grpo(), source=Sharded())
    samples = training_samples(groups, method, encode=policy.chat.encode)
    metrics = rollout_metrics(groups, samples)
    last = [r for g in groups for r in g.rollouts]
    assert [s.rollout for s in samples] == last
    assert metrics["reward"] == pytest.approx(1 / 3) and metrics["mean_length"] == sum(len(r.completion_ids) for r in last) / 6
    log = RunLog(tmp_path, settings={})
    log.rollouts(groups, samples, step=1)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step_000001.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row, rollout in zip(rows, last, strict=True):
        assert row["prompt"] == list(rollout.prompt) and row["trajectory"] == rollout.trajectory
        assert [(t["text"], t["completion_ids"], t["reward"]) for t in row["earlier"]] == [(t.text, t.completion_ids, None) for t in rollout.earlier]


class Heard:
    """A task whose verifier insists on the problems as they were given."""

    def problems(self, split):
        return PROBLEMS

    def verify(self, problem, completion):
        assert problem in PROBLEMS
        return float(bool(completion))


def test_evaluation_tells_the_problems_as_it_is_asked_to():
    counting = Counting(policy=tiny_policy(), max_completion_length=8)
    found = evaluate(counting, Heard(), PROBLEMS, num_samples=2, conversation=RawSharded())
    assert counting.asked == [4, 4, 2] and len(found.lengths) == 4 and found.problem_ids == ("w1 w2", "w6")


def test_a_conversation_is_named_by_its_call():
    for conversation in CONVERSATIONS:
        assert build_conversation(repr(conversation)) == conversation
    for text in ("raw_sharded", "RawSharded", "EMA(0.05)"):
        with pytest.raises(ValueError, match=r"eval\.conversation = .* is not the call of a conversation; there are Full\(\), Concat\(\)"):
            build_conversation(text)
    with pytest.raises(ValueError, match="there is no part 'RawShared'; did you mean 'RawSharded'"):
        build_conversation("RawShared()")


def test_a_rollout_without_a_chat_of_its_own_answered_its_problem():
    (group,) = Full()(sampler_of(tiny_policy()), PROBLEMS[:1], 1)
    assert group.rollouts[0].prompt is None and texts(answered(group.rollouts[0], group.problem)) == ["w1 w2 w3 w4 w5"]


def test_from_the_command_line_a_file_of_shards_trains_and_is_measured_as_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    rows = [{"prompt": f"w{i} w{i + 1}", "answer": f"w{i + 2}", "shards": [f"w{i}", f"w{i + 1}"]} for i in range(30)]
    Path("told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("silent.jsonl").write_text("".join(json.dumps({k: v for k, v in row.items() if k != "shards"}) + "\n" for row in rows))
    told = ["--task", "told.jsonl"]
    data = ["--method", "ccopd", "--model", "base", "--steps", "1", "--prompts_per_step", "2"]
    small = ["--sampling.num_generations", "2", "--sampling.max_completion_length", "6", "--eval.num_problems", "2", "--eval.num_samples", "1"]
    arguments = [*data, *small, "--eval.every", "0"]
    main(["train", "quickstart", *arguments, *told, "--eval.conversation", "RawSharded()", "--output_dir", "run"])
    assert json.loads(Path("run/evaluations/step_000001.json").read_text())["eval"]["conversation"] == "RawSharded()"
    capsys.readouterr()
    main(["eval", "run"])
    main(["eval", "run", "--eval.conversation", "Full()"])
    turns, full = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run on 2 problems")]
    assert turns == f"{full}, told as RawSharded()"
    for given, said in ((["--task", "silent.jsonl"], "column 'shards'"), ([*told, "--eval.conversation", "raw"], "eval.conversation = 'raw' is not the call")):
        with pytest.raises(SystemExit) as left:
            main(["train", "quickstart", *arguments, *given, "--output_dir", "refused"])
        assert left.value.code == 2 and said in capsys.readouterr().err and not Path("refused").exists()
