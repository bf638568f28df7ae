"""The skill bank: what is read out of replies, merging, the cold start, what is added on the way, and files."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from serving import serving
from stepping import SKILLS, Bare, ScriptedSampler, breaking, tools_of
from tiny_models import tiny_policy

from selfdistill import checkpoint
from selfdistill.api import assemble, train
from selfdistill.cli.main import main
from selfdistill.config import make_settings
from selfdistill.feedback import KeepSkills, MarkContent
from selfdistill.loading import load_policy
from selfdistill.method import Method
from selfdistill.method_names import build_method
from selfdistill.skills import FIELDS, LONGEST, TaskLessons, WrittenLessons, cold_bank, extend, items_in, merged, read_bank, whole_list_in
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.types import Group, Problem, Rollout
from selfdistill.writers import Endpoint, Student

TASK = Arithmetic(num_train=40, num_test=5)
QUESTION = "c = 5 - 9 ; a = 3 + 7 ; b = a * c ; d = b + 2 ; d ?"
RIGHT = "c = 5 - 9 = c 15 ; a = 3 + 7 = a 10 ; b = a 10 * c 15 = b 17 ; d = b 17 + 2 = d 0 ; answer 0"
CARRIED = "a = 3 + 7 = a 11 ; c = 5 - 9 = c 15 ; b = a 11 * c 15 = b 13 ; d = b 13 + 2 = d 15 ; answer 15"
PROBLEM = Problem(prompt=QUESTION, answer="0", id="q")


def skill(name: str) -> dict[str, str]:
    return {"title": name, "principle": "Do it.", "when": "Always."}


def mistake(name: str) -> dict[str, str]:
    return {"description": name, "why": "Haste.", "avoid": "Rest."}


def group(*rewards: float | None, text: str = "w1", version: int = 0, problem: Problem = PROBLEM) -> Group:
    rollouts = [
        Rollout(prompt_ids=[1], completion_ids=[2], behavior_logp=[0.0], text=text, reward=reward, index=i, policy_version=version)
        for i, reward in enumerate(rewards)
    ]
    return Group(problem=problem, rollouts=rollouts)


@dataclass(frozen=True)
class Listed:
    """An extractor whose items are written down: one list for each reward."""

    right: tuple = ()
    wrong: tuple = ()

    def extract(self, attempts, tools, *, most):
        return [list((self.right if rollout.reward == 1 else self.wrong)[:most]) for rollout, _ in attempts]

    def merge(self, kind, groups, tools):
        return [list(group) for group in groups]


@pytest.fixture(scope="module")
def tools():
    return replace(tools_of(tiny_policy(), Method()), task=TASK, problems=TASK.problems("train"))


def test_items_are_found_whatever_stands_around_them():
    listed = json.dumps([skill("one"), skill("two") | {"weight": 3}])
    assert [i["title"] for i in items_in(f"Sure!\n```json\n{listed}\n``` I hope [this] {{helps}}.")] == ["one", "two"]
    assert [i["title"] for i in items_in(json.dumps({"skills": [skill("inside")], "n": 1}))] == ["inside"]
    assert [i["title"] for i in items_in(listed[: listed.index('"two"') + 8])] == ["one"], "a list that breaks off"
    assert items_in(json.dumps(skill("a\n  b")))[0]["title"] == "a b", "an item stays on its line"
    assert items_in('{"title": "\\ud800", "principle": "x", "when": "y"}')[0]["title"] == "?"
    assert items_in(json.dumps([mistake("m"), skill("s")])) == [mistake("m"), skill("s")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON at all",
        "[" * 100_000,
        json.dumps({"title": "t", "principle": "p"}),
        json.dumps(skill(" ")),
        json.dumps(skill("x" * (LONGEST + 1))),
        json.dumps(skill("t") | {"when": 5}),
    ],
    ids=["empty", "prose", "deep", "field missing", "blank", "too long", "a number"],
)
def test_what_is_no_item_is_none(text):
    assert items_in(text) == []


def test_a_merged_list_is_read_whole_or_not_at_all():
    """A reply that breaks off would lose what it has not come to."""
    text = "[1] Here: " + json.dumps([skill("one"), skill("two")])
    assert whole_list_in(text, "skills") == [skill("one"), skill("two")]
    assert whole_list_in(text[:-3], "skills") is None
    assert whole_list_in(text, "mistakes") is None
    assert whole_list_in(json.dumps([skill("one"), {"title": "x"}]), "skills") is None


def test_the_testbed_knows_which_rule_was_used_and_which_was_broken(tools):
    attempts = [(r, g) for g, text in ((group(1.0, text=RIGHT), RIGHT), (group(0.0, text=CARRIED), CARRIED)) for r in g.rollouts]
    right, wrong = TaskLessons().extract(attempts, tools, most=3)
    assert [i["title"] for i in right] == ["check -", "check +", "check *"]
    assert [i["description"] for i in wrong] == ["careless +"], "the steps after the slip hold in their writer's state"
    assert [len(items) for items in TaskLessons().extract(attempts, tools, most=1)] == [1, 1]
    for items, kind in ((right, "skill_item"), (wrong, "mistake_item")):
        shown = [TASK.templates[kind].format(**item) for item in items]
        assert load_policy("tiny").tokenizer.unk_token_id not in load_policy("tiny").chat.plain(" ".join(shown))


def test_a_task_without_lessons_or_with_none_to_read_is_one_sentence(tools):
    class Odd(Bare):
        def lessons(self, problem, completion):
            return [{"title": "t"}]

    with pytest.raises(ValueError, match=r'Bare has no lessons.*--method.extractor "WrittenLessons\(Student\(\)\)"'):
        cold_bank(TaskLessons(), replace(tools, task=Bare(), sampler=ScriptedSampler()), problems=4, most=3)
    attempts = [(group(1.0).rollouts[0], group(1.0))]
    with pytest.raises(ValueError, match="lessons of Breaks raised KeyError: 'gold'"):
        TaskLessons().extract(attempts, replace(tools, task=breaking("lessons")), most=3)
    with pytest.raises(ValueError, match=r"a lesson of Odd is .*; it must hold title, principle, when or description, why, avoid"):
        TaskLessons().extract(attempts, replace(tools, task=Odd()), most=3)


def test_a_cold_start_on_the_testbed_finds_every_rule_once():
    policy = load_policy("tiny")
    settings = make_settings({"method": "hsd", "task": "arithmetic", "sampling": {"max_completion_length": 112}}, {})
    parts = assemble(settings, policy=policy, method=build_method("sgsd", {}, max_completion_length=112), task=TASK)
    bank = cold_bank(TaskLessons(), parts.trainer.tools, problems=40, most=3)
    assert sorted(i["title"] for i in bank["skills"]) == ["check *", "check +", "check -"]
    assert {i["description"] for i in bank["mistakes"]} <= {"careless *", "careless +", "careless -"} and bank["mistakes"]
    assert {i["added"] for kind in FIELDS for i in bank[kind]} == {0} and json.loads(json.dumps(bank)) == bank


@dataclass(frozen=True)
class Halving(Listed):
    """Merges neighbours until nobody shares a first letter."""

    rounds: list = ()

    def merge(self, kind, groups, tools):
        self.rounds.append([len(g) for g in groups])
        return [list({item["title"][0]: item for item in group}.values()) for group in groups]


def test_merging_goes_on_in_groups_of_32_until_three_rounds_bring_nothing(tools):
    rounds: list = []
    items = [skill(f"{letter}{n}") for letter in "abcdefgh" for n in range(9)]
    left, unread = merged("skills", items, Halving(rounds=rounds), tools)
    assert sorted(i["title"][0] for i in left) == list("abcdefgh") and unread == 0
    assert rounds[0] == [32, 32, 8] and [sum(r) for r in rounds][-4:] == [rounds[-4][0], 8, 8, 8]
    assert sum(sum(r) == 8 for r in rounds) == 3
    assert merged("skills", [skill("same"), skill("SAME")], Halving(rounds=rounds), tools)[0] == [skill("same")]


def test_a_group_whose_answer_cannot_be_read_stays(tools):
    @dataclass(frozen=True)
    class Unread(Listed):
        def merge(self, kind, groups, tools):
            return [None for _ in groups]

    items = [skill(f"s{i}") for i in range(40)]
    left, unread = merged("skills", items, Unread(), tools)
    assert sorted(i["title"] for i in left) == sorted(i["title"] for i in items) and unread == 6, "two groups in each of three rounds"


def test_a_model_that_writes_no_json_is_counted_and_dropped(tools, caplog):
    """The tiny model itself, for real."""
    stage = KeepSkills(extractor=WrittenLessons(Student()), cold_start=3)
    tools = replace(tools, memory={}, metrics={}, problems=[replace(p, prompt=f"w{i}", templates={}) for i, p in enumerate(TASK.problems("train")[:3])])
    stage([group(1.0)], tools)
    assert tools.memory["skills"] == {"skills": [], "mistakes": [], "unparsable": 3}
    assert tools.metrics["bank_unparsable"] == 3 and "no pair to teach from" in caplog.text and "method.bank" in caplog.text


def writing(text: str) -> str:
    """A model behind a URL: names what it is asked for, and merges by dropping all but the first."""
    if "=== skills begin ===" in text or "=== mistakes begin ===" in text:
        return json.dumps([json.loads(line) for line in text.splitlines() if line.startswith("{")][:1])
    assert ("right answer" in text) != ("wrong answer" in text) and "at most 3" in text and "=== attempt begins ===" in text
    return "Here you are: " + json.dumps([skill("s1"), skill("s2")] if "right answer" in text else [mistake("m1"), mistake("m2")])


def test_a_model_behind_a_url_writes_and_merges(tools):
    """One request an attempt in English words, without the gold answer."""
    problem = Problem(prompt="What is 6 * 7?", answer="the answer is secret")
    with serving(writing) as server:
        extractor = WrittenLessons(Endpoint(server.url, "writer"))
        groups = [group(1.0, 0.0, None, problem=problem, text="<think>long</think> 6 * 7 = 42")]
        bank = {"skills": [], "mistakes": [], "unparsable": 0}
        extend(bank, groups, extractor, tools, added=25, add=5, most=3, capacity=30)
        assert len(server.asked) == 2, "a rollout without a reward teaches nothing"
        assert all("secret" not in str(sent) and "long" not in str(sent) and "6 * 7 = 42" in str(sent) for sent in server.asked)
        left, unread = merged("skills", [skill("s1"), skill("s2")], extractor, replace(tools, problems=[]))
    assert bank["skills"] == [skill("s1") | {"added": 25}, skill("s2") | {"added": 25}]
    assert bank["mistakes"] == [mistake("m1") | {"added": 25}, mistake("m2") | {"added": 25}]
    assert len(left) == 1 and unread == 0


def test_a_failing_model_adds_at_most_five_items_and_the_oldest_added_leave(tools):
    tools = replace(tools, memory={}, metrics={})
    tools.memory["skills"] = {"skills": [skill("cold") | {"added": 0}], "mistakes": [mistake("cold") | {"added": 0}], "unparsable": 0}

    def at(version: int, *rewards: float | None) -> list[str]:
        new = Listed(
            right=(skill(f"s{version}"), skill(f"t{version}"), skill(f"u{version}")), wrong=(mistake(f"m{version}"), mistake("Cold"), mistake(f"n{version}"))
        )
        KeepSkills(extractor=new, capacity=7)([group(*rewards, version=version)], tools)
        bank = tools.memory["skills"]
        return [i["description"] for i in bank["mistakes"]] + [i["title"] for i in bank["skills"]]

    assert at(0, 0.0, 1.0) == at(24, 0.0, 1.0) == at(26, 0.0, 1.0) == ["cold", "cold"]
    assert at(25, 1.0, 1.0, 1.0, 1.0, 0.0) == ["cold", "cold"], "0.8 is not below 0.8"
    assert at(25, None) == ["cold", "cold"], "nothing is known of this step"
    assert at(25, 1.0, 0.0, None) == ["cold", "m25", "n25", "cold", "s25", "t25", "u25"], "in turns: m, s, n, t, u; Cold is known"
    assert at(50, 1.0, 0.0) == ["cold", "m25", "n25", "m50", "n50", "cold", "s50", "t50", "u50"], "of ten the three oldest left"
    bank = tools.memory["skills"]
    assert sum(bool(i["added"]) for k in FIELDS for i in bank[k]) == 7 == tools.metrics["bank_added"]
    assert {i["added"] for k in FIELDS for i in bank[k]} == {0, 25, 50}


def test_a_bank_comes_from_a_file_or_a_checkpoints_memory(tmp_path, tools):
    bank = read_bank(SKILLS)
    assert (len(bank["skills"]), len(bank["mistakes"])) == (4, 3)
    memory = tmp_path / "memory.json"
    memory.write_text(json.dumps({"skills": {"skills": [skill("s") | {"added": 50}], "mistakes": [mistake("m")], "unparsable": 9}, "other": 1}))
    assert read_bank(str(memory)) == {"skills": [skill("s") | {"added": 0}], "mistakes": [mistake("m") | {"added": 0}], "unparsable": 0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", r'must be \{"skills"'),
        (json.dumps({"skills": [skill("s")], "mistakes": []}), "at least one item each"),
        (json.dumps({"skills": [mistake("m")], "mistakes": [mistake("m")]}), "an item is .*; it must hold title, principle, when, text"),
        (json.dumps({"skills": [{"title": "t"}], "mistakes": [mistake("m")]}), "it must hold title"),
    ],
)
def test_a_bad_bank_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "bank.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_bank(str(path))
    assert "bank.json" in str(caught.value) and "\n" not in str(caught.value)


RUN = ["--steps", "2", "--prompts_per_step", "2", "--sampling.num_generations", "2", "--eval.at_end", "false", "--eval.every", "0"]
SGSD = ["--method", "sgsd", "--method.extractor", "TaskLessons()", "--method.cold_start", "12"]


def test_a_run_keeps_its_bank_and_says_what_its_gate_did(tmp_path):
    """The bank of the alignment proof is the run's: the step itself rolls out nothing more."""
    main(["train", "quickstart", *RUN, *SGSD, "--output_dir", str(tmp_path / "run")])
    (folder,) = checkpoint.checkpoints(tmp_path / "run")
    bank = json.loads((folder / "memory.json").read_text())["skills"]
    assert bank["skills"] and bank["mistakes"] and all(set(i) == {*FIELDS["skills"], "added"} for i in bank["skills"])
    first, last = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert first["taught_share"] == 1.0 and last["bank_skills"] == len(bank["skills"])
    assert last["helpful_share"] + last["harmful_share"] + last["neutral_share"] == pytest.approx(1.0)
    assert {"support", "support_clip_share"} <= last.keys()


def test_python_builds_the_bank_once():
    asked = []

    class Counted(Arithmetic):
        def lessons(self, problem, completion):
            asked.append(completion)
            return super().lessons(problem, completion)

    method = build_method("sgsd", {"extractor": "TaskLessons()", "cold_start": 12}, max_completion_length=112)
    run = train(method=method, dataset=Counted(num_train=40), steps=2, prompts_per_step=2, sampling={"num_generations": 1, "max_completion_length": 112})
    assert [result.metrics["taught_share"] for result in run] == [1.0, 1.0] and len(asked) == 12


def test_content_is_what_says_something():
    """Special tokens, think tags and tokens of newlines only are none; words and blanks between them are."""
    policy = tiny_policy()
    policy.tokenizer.add_tokens(["<think>", "</think>", "\n", "\n\n"])
    ids = policy.tokenizer.convert_tokens_to_ids(["<think>", "w1", "\n", "\n\n", "</think>", "w2", "<unk>", "<end>", "<user>"])
    rollout = Rollout(prompt_ids=[1], completion_ids=ids, behavior_logp=[0.0] * len(ids), text="")
    MarkContent()([Group(problem=PROBLEM, rollouts=[rollout])], tools_of(policy, Method()))
    assert rollout.annotations["content"] == (0, 1, 0, 0, 0, 1, 1, 0, 0)
    assert torch.tensor(ids).ge(0).all()
