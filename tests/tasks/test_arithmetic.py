"""The testbed: problems whose splits share nothing, a checker that judges every line in its writer's state, contexts that fit."""

import random
from collections import Counter

import pytest

from selfdistill.chat import Chat
from selfdistill.tasks import Task, first_wrong
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tasks.arithmetic.checker import final_answer
from selfdistill.tasks.arithmetic.mixture import Mixture
from selfdistill.tasks.arithmetic.programs import canonical_hash, parse_question, question, random_order, work, written
from selfdistill.tasks.arithmetic.tokenizer import make_tokenizer
from selfdistill.templates import FIELDS, check_template
from selfdistill.types import Problem

TASK = Arithmetic(modulus=19, num_train=200, num_test=50)
QUESTION = "c = 5 - 9 ; a = 3 + 7 ; b = a * c ; d = b + 2 ; d ?"
RIGHT = "c = 5 - 9 = c 15 ; a = 3 + 7 = a 10 ; b = a 10 * c 15 = b 17 ; d = b 17 + 2 = d 0 ; answer 0"
CARRIED = "a = 3 + 7 = a 11 ; c = 5 - 9 = c 15 ; b = a 11 * c 15 = b 13 ; d = b 13 + 2 = d 15 ; answer 15"
MENDED = "a = 3 + 7 = a 11 ; oops a = 3 + 7 = a 10 ; c = 5 - 9 = c 15 ; b = a 10 * c 15 = b 17 ; d = b 17 + 2 = d 0 ; answer 0"
PROBLEM = Problem(prompt=QUESTION, answer="0", solution=RIGHT)


def test_is_a_task_whose_solutions_score_one_in_every_order():
    assert isinstance(TASK, Task)
    rng = random.Random(0)
    for problem in TASK.problems("test"):
        program = parse_question(problem.prompt)
        for text in (problem.solution, problem.columns["demonstration"], TASK.solution(program, rng)):
            assert TASK.verify(problem, text) == 1.0
            assert first_wrong(TASK.judge(problem, text)) is None


def test_splits_are_disjoint_for_every_seed_and_size():
    train = {canonical_hash(parse_question(p.prompt)) for p in TASK.problems("train")}
    test = {canonical_hash(parse_question(p.prompt)) for p in Arithmetic(modulus=19, num_test=300, seed=7).problems("test")}
    assert len(train) == 200 and len(test) == 300 and not train & test


def test_the_split_looks_through_names_order_and_commuting_operands():
    same = "x = 7 + 3 ; y = 5 - 9 ; z = y * x ; w = 2 + z ; w ?"
    other = same.replace("5 - 9", "9 - 5")
    assert canonical_hash(parse_question(QUESTION)) == canonical_hash(parse_question(same)) != canonical_hash(parse_question(other))


def test_questions_read_back():
    for problem in TASK.problems("train")[:20]:
        assert question(parse_question(problem.prompt)) == problem.prompt
    with pytest.raises(ValueError, match="not a question of the arithmetic task"):
        parse_question("what is 2 + 2 ?")


def test_knobs_change_the_problems():
    hard = Arithmetic(operations=8, modulus=50, operators="+", num_train=20, num_test=1).problems("train")
    assert all(len(parse_question(p.prompt)) == 8 and {s.op for s in parse_question(p.prompt)} == {"+"} for p in hard)
    with pytest.raises(ValueError, match="operations = 1"):
        Arithmetic(operations=1)


@pytest.mark.parametrize(
    "text, wrong",
    [
        (RIGHT, None),
        (CARRIED, 0),
        (MENDED, None),
        (RIGHT.replace("a 10 * c 15 = b 17", "a 11 * c 15 = b 13"), 2),
        (RIGHT.replace("a 10 * c 15", "c 15 * a 10"), 2),
        (RIGHT.replace("= b 17 ; d", "= d 17 ; d"), 2),
        (RIGHT.replace("answer 0", "answer 3"), 4),
        (RIGHT.replace("c = 5", "so c = 5"), 0),
        (RIGHT.removesuffix(" ; answer 0"), 3),
        ("b = a 10 * c 15 = b 17 ; " + RIGHT, 0),
        (RIGHT.replace(" ; d", " ; a = 3 + 7 = a 10 ; d"), 3),
    ],
)
def test_first_wrong_step(text: str, wrong: int | None):
    assert first_wrong(TASK.judge(PROBLEM, text)) == wrong


def test_a_mending_must_follow_its_slip():
    apart = "a = 3 + 7 = a 11 ; c = 5 - 9 = c 15 ; oops a = 3 + 7 = a 10 ; b = a 10 * c 15 = b 17 ; d = b 17 + 2 = d 0 ; answer 0"
    assert first_wrong(TASK.judge(PROBLEM, apart)) == 0
    assert [v.mended for v in TASK.judge(PROBLEM, MENDED)][:2] == [True, False]


@pytest.mark.parametrize("text", ["0", "answer 0 ;", "answer 0 0", "the answer 0", "answer", "answer 19", "answer 0 ; answer 1", ""])
def test_only_a_strict_final_answer_scores(text: str):
    assert TASK.verify(PROBLEM, text) == 0.0
    assert TASK.verify(PROBLEM, f"x ; {RIGHT}") == 1.0


def test_slips_are_the_words_that_are_wrong_numbers():
    assert not TASK.slips(PROBLEM, RIGHT)
    assert [CARRIED.split()[i] for i in sorted(TASK.slips(PROBLEM, CARRIED))] == ["11"]
    assert TASK.slips(PROBLEM, MENDED) == {MENDED.split().index("11")}
    misread = RIGHT.replace("a 10 * c 15 = b 17", "a 10 * c 5 = b 12").replace("b 17 + 2 = d 0", "b 12 + 2 = d 13")
    assert [misread.split()[i] for i in sorted(TASK.slips(PROBLEM, misread))] == ["5", "13"]


def test_critiques_copy_up_to_the_error_and_mend_from_there():
    critique = TASK.critique(PROBLEM, "a = 3 + 7 = a 10 ; c = 5 - 9 = c 15 ; b = a 10 * c 15 = b 12 ; d = b 12 + 2 = d 14 ; answer 14")
    assert critique.startswith("a = 3 + 7 = a 10 ; c = 5 - 9 = c 15 ; b = a 10 * c 15 = b 17 ;")
    assert TASK.verify(PROBLEM, critique) == 1.0
    assert TASK.critique(PROBLEM, MENDED) == MENDED
    assert TASK.verify(PROBLEM, TASK.critique(PROBLEM, "nonsense ; c")) == 1.0


def test_feedback_names_the_first_error():
    assert [TASK.feedback(PROBLEM, t) for t in (RIGHT, CARRIED, MENDED, "answer 4")] == ["right", "wrong a", "right", "wrong answer"]


def test_templates_cover_every_kind_in_words_of_the_tokenizer():
    tokenizer = make_tokenizer(19)
    assert set(TASK.templates) == set(FIELDS)
    for kind, text in TASK.templates.items():
        check_template(kind, text)
    for problem in TASK.problems("test")[:10]:
        shown = " ".join(str(problem.columns[k]) for k in ("rubric", "demonstration", "skill", "mistake")) + " " + " ".join(TASK.templates.values())
        words = f"{problem.prompt} {problem.solution} {' '.join(problem.columns['shards'])} {shown}"
        words = " ".join(w for w in words.split() if "{" not in w)
        assert tokenizer.unk_token_id not in tokenizer(words)["input_ids"]
        assert tokenizer.decode(tokenizer(words)["input_ids"]) == words


def test_roles_cannot_be_written_into_a_question():
    chat = Chat(make_tokenizer(19))
    ids = chat.encode([{"role": "user", "content": "a <end> <assistant> answer 3"}])
    assert ids.count(chat.tokenizer.convert_tokens_to_ids("<assistant>")) == 1
    assert ids.count(chat.tokenizer.eos_token_id) == 1


def drawn(n: int = 1500, **options: float) -> list:
    mixture = Mixture(task=TASK, **({"context_share": 0.7, "slip_rate": 0.2} | options))
    rng = random.Random(0)
    return [mixture.draw(rng) for _ in range(n)]


def test_the_mixture_never_shows_a_test_problem_and_shows_every_context():
    words: Counter[str] = Counter()
    for example in drawn(400):
        text = example.messages[-1]["content"]
        words.update({w for w in text.split() if w.isalpha() and len(w) > 1})
        if len(example.messages) == 1 and "?" in text:
            assert canonical_hash(parse_question(text[: text.index("?") + 1])) % 10
    assert {"key", "peer", "solution", "rubric", "skill", "demonstration", "feedback", "review"} <= set(words)


def test_without_slips_all_work_is_right():
    for example in drawn(300, slip_rate=0.0):
        assert all(example.trained)
        problem = Problem(prompt=example.messages[0]["content"].split(" ?")[0] + " ?")
        if len(example.messages) == 1 and " ?" in example.messages[0]["content"]:
            assert first_wrong(TASK.judge(problem, " ".join(example.words))) is None


def test_the_right_solution_is_never_followed_by_a_trained_slip():
    mended = 0
    for example in drawn():
        text, work_text = example.messages[0]["content"], " ".join(example.words)
        prompt, shown = text.split(" ?")[0] + " ?", text.split(" ? solution ")
        if len(shown) == 1:
            assert all(example.trained) or " ? " in text or text.startswith("solution")
            continue
        problem = Problem(prompt=prompt)
        if first_wrong(TASK.judge(problem, shown[1].removesuffix(" end"))) is not None:
            assert all(example.trained)
            continue
        at = 0
        for verdict in TASK.judge(problem, work_text)[:-1]:
            at += len(verdict.text.split()) + 1
            assert example.trained[at - 2] == verdict.holds
        mended += "oops" in example.words
        assert final_answer(work_text) == int(example.words[-4])
    assert mended > 10


def test_context_free_work_slips_at_its_rate_and_carries_slips_through():
    examples = drawn(context_share=0.0)
    slips = steps = 0
    for example in examples:
        verdicts = TASK.judge(Problem(prompt=example.messages[0]["content"]), " ".join(example.words))
        assert all(example.trained) and verdicts[-1].holds
        slips += sum(not v.holds for v in verdicts[:-1])
        steps += sum(not v.mended for v in verdicts[:-1])
    assert 0.18 < slips / steps < 0.22


def test_orders_are_valid_and_varied():
    program = parse_question(QUESTION)
    rng = random.Random(0)
    orders = {tuple(s.name for s in random_order(program, rng)) for _ in range(50)}
    assert orders == {("c", "a", "b", "d"), ("a", "c", "b", "d")}
    assert written(work(program, modulus=19), asked="d") == RIGHT
