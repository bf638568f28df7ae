"""RCSD: a writer of rubrics taught by the reference, then OPSD under a rubric over the teacher's likeliest tokens."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from scene import Scene, kl
from stepping import prepared, request_for, tools_of
from tiny_models import TEMPLATES, tiny_groups, tiny_policy, tiny_problems

from selfdistill.api import assemble
from selfdistill.config import make_settings
from selfdistill.contexts import student_messages
from selfdistill.method import diff
from selfdistill.methods import opsd, rcsd, rcsd_writer
from selfdistill.preflight import check_alignment, prove_alignment
from selfdistill.rubrics import GenericRubric, QuestionRubric, RandomRubric, ReferenceRubric, RubricColumn
from selfdistill.runlog import RunLog
from selfdistill.sources import told
from selfdistill.writers import Student, Teacher

WRITTEN = [{"title": f"t{i}", "description": "holds", "weight": i} for i in range(3)]


@dataclass(frozen=True)
class Says:
    """A writer that answers every chat alike and keeps what it was asked."""

    reply: str
    heard: list

    def __call__(self, chats, tools):
        self.heard.extend(chats)
        return [self.reply] * len(chats)


def shown(method, groups, policy) -> list[str | None]:
    """What each rollout's teacher reads last, in order; None where untaught."""
    prepared(method, groups, policy)
    given = [method.context(r, g) for g in groups for r in g.rollouts]
    return [t[0].views["teacher"].messages[-1]["content"] if t else None for t in given]


@pytest.mark.parametrize("with_reference", [False, True])
def test_equation_of_the_reasoner(with_reference):
    """mean_t sum over v in top20(T) of min(T'(v) (log T'(v) - log S'(v)), clip), T' and S' renormalised over them, temperature 1.2."""
    scene = Scene(rcsd(clip=0.02, with_reference=with_reference))
    prepared(scene.method, scene.groups, scene.policy)
    values, outside = [], 0
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout, 1.2), scene.view(rollout, group, "teacher", 1.2)
        for t in range(len(rollout.completion_ids)):
            top = sorted(range(len(teacher[t])), key=lambda v, row=teacher[t]: -float(row[v]))[:20]
            taught = sum(teacher[t][v].exp() for v in top)
            own = sum(student[t][v].exp() for v in top)
            outside += float(own.detach()) < 0.99
            value = 0
            for v in top:
                p, q = teacher[t][v].exp() / taught, student[t][v].exp() / own
                value = value + torch.clamp(p * (p.log() - q.log()), max=0.02)
            values.append(value)
    assert outside, "every student had all its mass on the teacher's 20: renormalising would not show"
    scene.check(torch.stack(values).mean())


def test_equation_of_the_writer():
    """mean_t KL(T_0(. | q, reference, r_<t) || S(. | q, r_<t)) on rubrics that the student wrote when asked for one."""
    scene = Scene(rcsd_writer())
    sampler = tools_of(scene.policy, scene.method).sampler
    scene.groups = scene.method.source(request_for(sampler, tiny_problems(3), 2))
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout, 1.2), scene.view(rollout, group, "teacher", 1.2)
        values += [kl(teacher[t], student[t]) for t in range(len(rollout.completion_ids))]
    scene.check(torch.stack(values).mean())


def test_the_writer_is_asked_for_a_rubric_and_that_is_what_is_read_and_proved():
    policy, method = tiny_policy(), rcsd_writer()
    problem = replace(tiny_problems(1)[0], prompt=({"role": "system", "content": "w7"}, {"role": "user", "content": "w8 w9"}), solution="w3")
    sampler = tools_of(policy, method).sampler
    (group,) = method.source(request_for(sampler, [problem], 2))
    assert [m["content"] for m in student_messages(group.problem)] == ["w7", "w44 w8 w9"]
    assert group.rollouts[0].prompt_ids == policy.chat.encode(student_messages(group.problem))
    (teaching,) = method.context(group.rollouts[0], group)
    assert [m["content"] for m in teaching.views["teacher"].messages] == ["w7", "w44 w8 w9 w2 w3"]
    check_alignment(policy, method, [group])
    problems, tell = told(method.source, [problem])
    assert tell(sampler, problems, 1)[0].rollouts[0].prompt_ids == group.rollouts[0].prompt_ids
    with pytest.raises(ValueError, match="not what the chat template renders"):
        check_alignment(policy, method, [replace(group, problem=problem)])


def test_a_run_proves_and_records_the_requests_that_it_samples(tmp_path):
    """The proof before step 1 and the step itself put the same words to the student."""

    class Task:
        def problems(self, split):
            return tiny_problems(4)

        def verify(self, problem, completion):
            return 0.5

    settings = make_settings({"prompts_per_step": 2, "sampling": {"num_generations": 2, "max_completion_length": 6}, "steps": 1}, {})
    trainer = assemble(settings, policy=tiny_policy(), method=rcsd_writer(), task=Task()).trainer
    heard, sample = [], trainer.sampler.sample
    trainer.sampler.sample = lambda problems, n: (heard.extend(student_messages(p)[-1]["content"] for p in problems), sample(problems, n))[1]
    prove_alignment(trainer)
    assert len(heard) == 2 and all(text.startswith("w44 ") for text in heard)
    (result,) = trainer
    assert all(text.startswith("w44 ") for text in heard) and len(heard) == 4
    RunLog(tmp_path, settings={}).rollouts(result.groups, result.samples, step=1)
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step_000001.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["prompt"][-1]["content"].startswith("w44 ") for row in rows)
    assert {row["reward"] for row in rows} == {0.0}, "the verifier of answers has no say about rubrics"
    for row in rows:
        assert row["contexts"][0]["teacher"]["messages"][-1]["content"].startswith(row["prompt"][-1]["content"] + " w2 ")


def test_a_problem_without_reference_teaches_no_writer():
    policy, method = tiny_policy(), rcsd_writer()
    groups = tiny_groups(policy)
    groups[0].problem = replace(groups[0].problem, solution="")
    assert [text is None for text in shown(method, groups, policy)] == [True] * 4 + [False] * 4


def test_the_rubric_writers_reward_is_whether_the_rubric_parses(monkeypatch):
    policy, method = tiny_policy(), rcsd_writer()
    texts = iter([json.dumps(WRITTEN), json.dumps(WRITTEN[:2]), "w1"])
    groups = tiny_groups(policy, problems=1, n=3)
    for rollout in groups[0].rollouts:
        rollout.text, rollout.reward = next(texts), None
    sampler = tools_of(policy, method).sampler
    monkeypatch.setattr(type(sampler), "sample", lambda self, problems, n: groups)
    found = method.source(request_for(sampler, [groups[0].problem], 3))
    assert [r.reward for r in found[0].rollouts] == [1.0, 0.0, 0.0]


def test_default_is_the_formula_and_differs_from_opsd_where_the_paper_does():
    assert set(diff(rcsd(), opsd())) == {"feedback", "context", "divergence", "loss_temperature"}
    assert set(diff(rcsd_writer(), opsd())) == {"source", "context", "divergence", "loss_temperature"}
    assert diff(rcsd(), opsd())["divergence"][0] == "TopK(inner=ForwardKL(clip=0.05), k=20)"
    policy = tiny_policy()
    groups = tiny_groups(policy)
    first = groups[0].problem
    assert shown(rcsd(), groups, policy)[0] == f"{first.prompt} w45 w40 w9", "a rubric of the dataset's goes through unchanged, and alone"


def test_the_reference_stands_beside_the_rubric_where_there_is_one():
    policy = tiny_policy()
    groups = tiny_groups(policy)
    groups[1].problem = replace(groups[1].problem, solution="")
    one, other = (g.problem for g in groups)
    texts = shown(rcsd(with_reference=True), groups, policy)
    assert texts[0] == f"{one.prompt} w2 {one.solution} w45 w40 w9" and texts[-1] == f"{other.prompt} w45 w41 w9"


def test_written_rubrics_are_asked_with_and_without_the_reference_and_shown_as_criteria():
    policy, groups = tiny_policy(), tiny_groups(tiny_policy())
    p = groups[0].problem
    for source, request in ((QuestionRubric, f"w44 {p.prompt}"), (ReferenceRubric, f"w44 {p.prompt} w2 {p.solution}")):
        heard = []
        texts = shown(rcsd(rubrics=source(Says("Here: " + json.dumps(WRITTEN), heard))), groups, policy)
        assert heard[0][-1]["content"] == request and len(heard) == len(groups)
        assert texts[0] == f"{p.prompt} w45 {json.dumps(WRITTEN)}"


def test_a_rubric_that_does_not_parse_leaves_its_rollouts_untaught():
    policy, groups = tiny_policy(), tiny_groups(tiny_policy())
    assert set(shown(rcsd(rubrics=QuestionRubric(Says("be right", []))), groups, policy)) == {None}


def test_random_rubrics_are_the_next_problems_and_everything_else_is_its_own():
    policy = tiny_policy()
    groups = tiny_groups(policy, problems=3)
    texts = shown(rcsd(rubrics=RandomRubric(RubricColumn()), with_reference=True), groups, policy)[::4]
    assert texts == [f"{g.problem.prompt} w2 {g.problem.solution} w45 w4{(i + 1) % 3} w9" for i, g in enumerate(groups)]
    with pytest.raises(ValueError, match="raise prompts_per_step"):
        shown(rcsd(rubrics=RandomRubric(RubricColumn())), groups[:1], policy)


def test_generic_rubric_is_the_same_for_all():
    policy, groups = tiny_policy(), tiny_groups(tiny_policy())
    texts = shown(rcsd(rubrics=GenericRubric()), groups, policy)
    assert len({text.split(" w45 ")[1] for text in texts}) == 1


def test_reason_first_puts_one_note_a_prompt_before_the_completion_is_scored():
    """The request shows the rubric without the answer format; what is scored shows it too, then the note, then the format once."""
    policy, heard = tiny_policy(), []
    groups = tiny_groups(policy)
    formatted = {**TEMPLATES, "rubric": "{problem} w45 {rubric} {instruction}", "noted": "{problem} w42 {note} {instruction}"}
    for group in groups:
        group.problem = replace(group.problem, instruction="w33", templates=formatted)
    texts = shown(rcsd(reason_first=Says("w11 w12", heard)), groups, policy)
    p = groups[0].problem
    assert [chat[-1]["content"] for chat in heard] == [f"{g.problem.prompt} w45 w4{i} w9 w43" for i, g in enumerate(groups)]
    assert texts[0] == f"{p.prompt} w45 w40 w9 w42 w11 w12 w33"
    assert shown(rcsd(reason_first=Says("", [])), groups, policy)[0] == f"{p.prompt} w45 w40 w9 w33", "no note, no words around it"


@pytest.mark.parametrize("writer", [Student(max_completion_length=5), Teacher(max_completion_length=5)], ids=["student", "teacher"])
def test_equation_holds_under_a_note_that_a_model_wrote(writer):
    scene = Scene(rcsd(reason_first=writer, clip=float("inf"), top_k=56))
    tools = replace(tools_of(scene.policy, scene.method), readers=scene.readers)
    for write in scene.method.feedback:
        write(scene.groups, tools)
    notes = {r.feedback["note"] for r, _ in scene.rollouts()}
    assert len(notes) == len(scene.groups) and all(0 < len(note.split()) <= 5 for note in notes)
    values = []
    for rollout, group in scene.rollouts():
        student, teacher = scene.student(rollout, 1.2), scene.view(rollout, group, "teacher", 1.2)
        values += [kl(teacher[t], student[t]) for t in range(len(rollout.completion_ids))]
    scene.check(torch.stack(values).mean())


def test_the_teachers_note_is_the_frozen_weights_own():
    """After the student has moved its note is another, the teacher's the same."""
    found = {}
    for moved in (False, True):
        scene = Scene(rcsd())
        policy = scene.policy if moved else tiny_policy()
        tools = replace(tools_of(policy, scene.method), readers={**scene.readers})
        chat = ({"role": "user", "content": "w1 w2 w3"},)
        found[moved] = [w([chat], tools)[0] for w in (Student(max_completion_length=8), Teacher(max_completion_length=8))]
        assert tools.sampler.policy is policy, "the run's own sampler keeps the student"
    assert found[False][1] == found[True][1] == found[False][0] != found[True][0]
