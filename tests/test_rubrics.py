"""Rubrics: what a model may write as one, where they come from, and what is refused."""

import json
from dataclasses import replace

import pytest
from stepping import tools_of
from tiny_models import tiny_groups, tiny_model, tiny_policy, tiny_problems, tiny_tokenizer

from selfdistill.method_names import build_method
from selfdistill.methods import rcsd, shuffled_context
from selfdistill.rubrics import (
    FirstRubric,
    GenericRubric,
    QuestionRubric,
    RandomRubric,
    ReferenceRubric,
    RubricColumn,
    RubricFile,
    SomeCriteria,
    parse_rubric,
)
from selfdistill.types import Group
from selfdistill.writers import Checkpoint, Student, Teacher


def criteria(n: int, **changes) -> list[dict]:
    return [{"title": f"t{i}", "description": f"d{i}", "weight": i} | changes for i in range(n)]


@pytest.fixture
def tools():
    return tools_of(tiny_policy(), rcsd(), problems=tiny_problems())


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "As in [1], the rubric:\n{}\nThat is all [of it].", '{{"rubric": {}}}'])
def test_a_rubric_is_found_in_what_stands_around_it(around):
    assert json.loads(parse_rubric(around.format(json.dumps(criteria(4))))) == criteria(4)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 25, 26])
def test_three_to_twenty_five_criteria(n):
    assert (parse_rubric(json.dumps(criteria(n))) is not None) == (3 <= n <= 25)


@pytest.mark.parametrize(
    "text",
    [
        "a 5 ; c 12", "", "[", "[" * 5000, json.dumps(criteria(3))[:-1], json.dumps(criteria(3, weight="2")), json.dumps(criteria(3, weight=True)),
        json.dumps(criteria(3, weight=float("nan"))), json.dumps(criteria(3, title=" ")), json.dumps(criteria(3, description=None)), '["a", "b", "c"]',
        json.dumps([{"title": "t", "description": "d"}] * 3), str(criteria(3)),
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_what_is_no_rubric(text):
    assert parse_rubric(text) is None


def test_only_the_criteria_reach_the_teacher():
    found = parse_rubric("[[2]] " + json.dumps(criteria(3, note="ignore all that", title="größer \ud800")))
    assert json.loads(found) == criteria(3, title="größer ?") and "größer" in found
    found.encode()


def test_columns_go_through_unchanged_and_lists_become_json(tools):
    groups = tiny_groups(tools.policy, problems=3)
    for group, value in zip(groups, ("a 5 ; c 12", criteria(2), None), strict=True):
        group.problem.columns["rubric"] = value
    assert RubricColumn()(groups, tools) == ["a 5 ; c 12", json.dumps(criteria(2)), None]


@pytest.mark.parametrize("name", ["map.json", "rows.json", "rows.jsonl"])
def test_a_cache_is_read_by_problem_id(tools, tmp_path, name):
    known = {"p1": "w3 w4", "other": "w5"}
    rows = [{"id": i, "rubric": r} for i, r in known.items()]
    text = {"map.json": json.dumps(known), "rows.json": json.dumps(rows), "rows.jsonl": "\n".join(map(json.dumps, rows))}[name]
    (tmp_path / name).write_text(text)
    assert RubricFile(str(tmp_path / name))(tiny_groups(tools.policy), tools) == [None, "w3 w4"]


@pytest.mark.parametrize(
    ("text", "said"), [(None, "cannot be read"), ("{", "cannot be read"), ("[1]", 'rows with "id"'), ('{"q0": "w1"}', "for other problems than these 2")]
)
def test_a_cache_that_cannot_help_is_refused(tools, tmp_path, text, said):
    path = tmp_path / "rubrics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said):
        RubricFile(str(path))(tiny_groups(tools.policy), tools)


def test_a_generic_rubric_may_be_ones_own_and_the_shipped_one_is_a_rubric(tools, tmp_path):
    groups = tiny_groups(tools.policy)
    (tmp_path / "mine.txt").write_text("w1 ; w2\n")
    assert GenericRubric(str(tmp_path / "mine.txt"))(groups, tools) == ["w1 ; w2"] * 2
    assert {len(json.loads(parse_rubric(text))) for text in GenericRubric()(groups, tools)} == {6}
    with pytest.raises(ValueError, match="nowhere"):
        GenericRubric(str(tmp_path / "nowhere"))(groups, tools)


def test_later_sources_are_asked_only_for_what_is_lacking(tools):
    groups = tiny_groups(tools.policy, problems=3)
    groups[1].problem.columns["rubric"] = None
    asked = []

    def writer(chats, tools):
        asked.extend(chat[-1]["content"] for chat in chats)
        return [json.dumps(criteria(3))] * len(chats)

    found = FirstRubric((RubricColumn(), QuestionRubric(writer), GenericRubric("never read")))(groups, tools)
    assert found == ["w40 w9", json.dumps(criteria(3)), "w42 w9"] and asked == [f"w44 {groups[1].problem.prompt}"]


def test_ground_truth_needs_a_reference(tools):
    groups = tiny_groups(tools.policy)
    object.__setattr__(groups[0].problem, "solution", "")
    found = ReferenceRubric(lambda chats, tools: [json.dumps(criteria(3))] * len(chats))(groups, tools)
    assert found == [None, json.dumps(criteria(3))]


@pytest.mark.parametrize("source", [ReferenceRubric, QuestionRubric])
def test_replies_without_a_rubric_are_counted(tools, caplog, source):
    said = [json.dumps(criteria(3)), "the answer is 5", "[1"]
    groups = tiny_groups(tools.policy, problems=3)
    found = source(lambda chats, tools: said)(groups, tools)
    assert [rubric is not None for rubric in found] == [True, False, False]
    assert "2 of 3 replies hold no rubric of 3 to 25 criteria: 'the answer is 5'" in caplog.text
    caplog.clear()
    source(lambda chats, tools: said[:1] * 3)(groups, tools)
    assert not caplog.text


def test_another_problems_context_brings_its_rubric_too(tools):
    """The general null control swaps what stages noted, as it swaps answers and solutions."""
    method = shuffled_context(rcsd())
    groups = tiny_groups(tools.policy)
    for write in method.feedback:
        write(groups, tools)
    texts = [method.context(g.rollouts[0], g)[0].views["teacher"].messages[-1]["content"] for g in groups]
    assert texts == [f"{g.problem.prompt} w45 w4{1 - i} w9" for i, g in enumerate(groups)]


def test_a_checkpoint_writes_what_its_weights_say(tools, tmp_path):
    """Stage 1's folder as stage 2's writer: other weights than the student's, in the student's engine."""
    tiny_model(seed=5).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    chat = ({"role": "user", "content": "w1 w2"},)
    found = Checkpoint(str(tmp_path), max_completion_length=6)([chat], tools)
    other = tools_of(tiny_policy(seed=5), rcsd())
    assert found == Student(max_completion_length=6)([chat], other) != Student(max_completion_length=6)([chat], tools)


@pytest.mark.parametrize(("share", "kept"), [(0.5, 4), (0.25, 2), (0.01, 1), (0.99, 8), (1.0, 8)])
def test_some_criteria_are_a_part_of_each_rubric_in_its_order(tools, share, kept):
    groups = tiny_groups(tools.policy, problems=3)
    lines = [f"w{i} w{i + 1}" for i in range(8)]
    for group, value in zip(groups, (criteria(8), "\n".join(lines), None), strict=True):
        group.problem.columns["rubric"] = value
    listed, written, nothing = SomeCriteria(RubricColumn(), share)(groups, tools)
    for found, every in ((json.loads(listed), criteria(8)), (written.split("\n"), lines)):
        places = [every.index(c) for c in found]
        assert len(places) == kept and places == sorted(set(places))
    assert nothing is None


def test_some_criteria_are_the_same_for_a_problem_at_every_step_and_others_for_another(tools):
    groups = tiny_groups(tools.policy, problems=12)
    for group in groups:
        group.problem.columns["rubric"] = "w1 ; w2 ; w3 ; w4 ; w5 ; w6"
    source = SomeCriteria(RubricColumn(), separator=" ; ")
    first = source(groups, tools)
    assert source(groups[::-1], tools)[::-1] == first and len(set(first)) > 5 and all(len(text.split(" ; ")) == 3 for text in first)
    assert first != SomeCriteria(RubricColumn(), separator=" ; ", seed=1)(groups, tools)


@pytest.mark.parametrize("arguments", [{"share": 0.0}, {"share": 1.5}, {"separator": ""}], ids=str)
def test_no_criteria_at_all_are_refused(arguments):
    with pytest.raises(ValueError, match=r"SomeCriteria\(share=.*\(0, 1\]"):
        SomeCriteria(RubricColumn(), **arguments)


def test_recipes_name_sources_and_writers():
    written = "FirstRubric((QuestionRubric(Checkpoint('runs/rcsd_writer')), RubricColumn()))"
    method = build_method("rcsd", {"rubrics": written, "reason_first": "Teacher(max_completion_length=64)"}, max_completion_length=8)
    source = FirstRubric((QuestionRubric(Checkpoint("runs/rcsd_writer")), RubricColumn()))
    assert method == rcsd(rubrics=source, reason_first=Teacher(max_completion_length=64))
    assert build_method("rcsd", {"rubrics": "RandomRubric(RubricColumn())"}, max_completion_length=8) == rcsd(rubrics=RandomRubric(RubricColumn()))
    some = build_method("rcsd", {"rubrics": "SomeCriteria(RubricColumn(), 0.25, separator=' ; ')"}, max_completion_length=8)
    assert some == rcsd(rubrics=SomeCriteria(RubricColumn(), 0.25, " ; "))


def test_a_random_rubric_is_anothers_where_a_step_holds_a_problem_twice(tools):
    one, other = (Group(problem=p, rollouts=[]) for p in tiny_problems())
    texts = [g.problem.columns["rubric"] for g in (one, other)]
    assert RandomRubric(RubricColumn())([one, replace(one), other], tools) == [texts[1], texts[1], texts[0]]
    with pytest.raises(ValueError, match="prompts_per_step"):
        RandomRubric(RubricColumn())([one, replace(one)], tools)
