"""Feedback by the other model: whose is used, what of it is shown, and how often it leads astray."""

import re
from dataclasses import dataclass, replace

import pytest
import torch
from stepping import tools_of
from tiny_models import tiny_groups, tiny_policy

from selfdistill.method import Method
from selfdistill.tasks.answers import in_words
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.tutoring import Anchored, AsWritten, BreakRates, Cognizance, PeerFeedback, concepts, without_answer
from selfdistill.types import Group, Problem, Rollout
from selfdistill.writers import Peer, Student, peer_of


def rewarded(*rewards):
    return Group(problem=Problem(prompt="q"), rollouts=[Rollout(prompt_ids=[], completion_ids=[], behavior_logp=[], text="", reward=r) for r in rewards])


@pytest.mark.parametrize(
    ("rewards", "threshold", "admitted"),
    [((1, 0), 0.5, True), ((1, 0, 0), 0.5, False), ((1, None, None), 0.5, True), ((None, None), 0.5, False), ((0, 0), 0.0, True), ((0.9, 0.9), 0.5, False)],
)
def test_a_tutor_is_admitted_by_its_own_share_of_right_rollouts(rewards, threshold, admitted):
    assert Cognizance(threshold)(rewarded(*rewards)) == admitted


def test_a_threshold_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"Cognizance\(threshold=50\).*0\.\.1"):
        Cognizance(50)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("The answer is 7.", "The ."),
        ("so \\boxed{ 7 } follows", "so follows"),
        ("#### 7", ""),
        ("Final answer: 7", ""),
        ("17, 3.7, 7.5, x7 and 71 stay, 7 goes", "17, 3.7, 7.5, x7 and 71 stay, goes"),
        ("a = 3 + 4 = a 7 ; b = a 7 * 2 = b 14 ; answer 7", "a = 3 + 4 = a ; b = a * 2 = b 14 ;"),
        ("the last step slips", "the last step slips"),
    ],
)
def test_the_answer_is_taken_out_wherever_it_stands_alone(text, kept):
    assert without_answer(text, "7") == kept


@pytest.mark.parametrize(
    ("text", "answer", "kept"),
    [
        ("it is 7.0, or seven, or 07, and 14/2", "7", "it is , or , or , and"),
        ("the answer is 7.00; Seven! seventy-seven, seven-sided, 7/8 and -7 stay", "7", "the ; ! seventy-seven, seven-sided, 7/8 and -7 stay"),
        ("\\boxed{7.0} but \\boxed{7 + 1} and \\boxed{8}", "7", "but \\boxed{ + 1} and \\boxed{8}"),
        ("0.5, .5, 1/2 and \\dfrac{1}{2}, 50 stays", "\\frac{1}{2}", ", , and , 50 stays"),
        ("minus seven, -7.0, \u22127; 7 stays", "-7", ", , ; 7 stays"),
        ("one hundred and twenty-one, One Hundred Twenty One, 121.0", "121", ", ,"),
        ("1000.50 and 1,000.5", "$1,000.50", "and"),
        ("PARIS, paris", "Paris", ","),
        ("it is 3, 4 here, 34 stays", "3, 4", "it is here, 34 stays"),
    ],
)
def test_the_answer_is_taken_out_however_it_is_spelled(text, answer, kept):
    assert without_answer(text, answer) == kept


@dataclass(frozen=True)
class Roughly:
    """A task that takes what is within a tenth, in a box."""

    isolated: bool = False

    def problems(self, split):
        return []

    def verify(self, problem, completion):
        if "?" in completion:
            raise KeyError(completion)
        found = re.search(r"boxed\{(.*)\}", completion)
        return float(found is not None and abs(float(found[1]) - float(problem.answer)) < 0.1)


@pytest.mark.parametrize("isolated", [False, True])
def test_what_the_task_calls_right_is_the_answer(isolated):
    """A tolerance that no rule knows; a verifier that cannot read one of the words costs nothing but that."""
    problem = Problem(prompt="How wide is the circle?", answer="3.14159")
    told = "The circle is 3.14 wide, \\boxed{3.1} at most, not 3.4."
    assert Anchored()(told, problem, Roughly(isolated=isolated)) == "The circle is wide, at most, not 3.4."
    assert Anchored()("The circle: \\boxed{?}, 3.14159", problem, Roughly()) == "The circle: \\boxed{?},"


@pytest.mark.parametrize(("value", "words"), [(0, "zero"), (13, "thirteen"), (40, "forty"), (-215, "minus two hundred fifteen"), (12_000, "twelve thousand")])
def test_whole_numbers_have_words(value, words):
    assert " ".join(in_words(value)) == words and in_words(10**6) == in_words(-(10**6)) == []


def test_an_answer_of_signs_is_taken_out_and_none_changes_nothing():
    assert without_answer("it is (1+x)^2, no less", "(1+x)^2") == "it is , no less"
    assert without_answer("the 7", "") == "the 7"


def test_concepts_are_the_tasks_else_the_columns_else_the_questions_words():
    task, plain = Arithmetic(), tools_of(tiny_policy(), Method()).task
    problem = task.problems("test")[0]
    assert concepts(problem, task) == [statement.split()[0] for statement in str(problem.prompt).split(" ; ")[:-1]]
    asked = Problem(prompt="Find the area of the triangle with sides 3 and 4, whose legs meet.")
    assert concepts(asked, plain) == ["area", "triangle", "sides", "legs", "meet"]
    assert concepts(replace(asked, columns={"concepts": ["Pythagoras"]}), plain) == ["Pythagoras"]


def test_concepts_that_cannot_be_told_are_one_sentence():
    with pytest.raises(ValueError, match="the concepts of Breaks raised KeyError"):
        concepts(Problem(prompt="q"), type("Breaks", (Roughly,), {"concepts": lambda self, problem: {}["gold"]})())


def test_feedback_that_names_no_concept_is_dropped():
    problem = Problem(prompt="q", answer="5", columns={"concepts": ["right angle", "leg"]})
    task = tools_of(tiny_policy(), Method()).task
    assert Anchored()("The Right Angle is missed, so 5 is wrong.", problem, task) == "The Right Angle is missed, so is wrong."
    assert Anchored()("Its legacy is fine.", problem, task) is None and Anchored()("5", problem, task) is None
    assert AsWritten()("5", problem, task) == "5"


class Pair:
    """A student and its peer, their groups on the same problems, and a writer that notes what it was shown."""

    def __init__(self, *, text: str = "w1 w2") -> None:
        one, other = tiny_policy(), tiny_policy(seed=3)
        self.groups, self.peers, self.asked = tiny_groups(one), tiny_groups(other, seed=5), []
        for group, peer in zip(self.groups, self.peers, strict=True):
            group.peer = peer
        for rollout in self.peers[1].rollouts:
            rollout.reward = 0.0
        self.tools = replace(tools_of(one, Method()), peer=tools_of(other, Method()))
        self.stage = PeerFeedback(gate=Cognizance(0.5), anchor=AsWritten(), writer=self.write)
        self.text = text

    def write(self, chats, tools):
        self.asked += [chat[-1]["content"] for chat in chats]
        return [self.text for _ in chats]


def test_the_peer_is_shown_its_own_best_rollout_and_the_attempt_where_it_is_admitted():
    pair = Pair()
    pair.stage(pair.groups, pair.tools)
    group, best = pair.groups[0], pair.peers[0].rollouts[1].text
    assert pair.asked == [f"{group.problem.prompt} w2 {best} w49 {r.text} w41" for r in group.rollouts]
    assert [r.feedback for g in pair.groups for r in g.rollouts] == [{"peer": "w1 w2"}] * 4 + [{}] * 4
    assert pair.tools.metrics == {"peer_accuracy": 0.25, "admitted_share": 0.5, "unanchored_share": 0.0, "edited_share": 0.0}


def test_what_the_anchor_drops_or_changes_is_counted():
    pair = Pair()
    heard = iter(["w1", None, "w1 w2", "w9"])
    replace(pair.stage, anchor=lambda text, problem, task: next(heard))(pair.groups, pair.tools)
    assert [r.feedback.get("peer") for r in pair.groups[0].rollouts] == ["w1", None, "w1 w2", "w9"]
    assert (pair.tools.metrics["unanchored_share"], pair.tools.metrics["edited_share"]) == (0.25, 0.5)


def test_the_peers_own_weights_write():
    pair = Pair()
    chats = [({"role": "user", "content": "w4 w5"},)]
    said, own = Peer(Student(max_completion_length=5))(chats, pair.tools), Student(max_completion_length=5)
    assert said == own(chats, peer_of(pair.tools)) != own(chats, pair.tools)


def test_break_rates_count_right_rollouts_that_turn_wrong_and_leave_no_trace():
    pair = Pair()
    wrong = iter([1.0, 0.0, 0.0, 0.0])

    def grade(groups):
        for rollout in (r for g in groups for r in g.rollouts):
            rollout.reward = next(wrong)

    tools = replace(pair.tools, grade=grade)
    pair.stage(pair.groups, tools)
    before, rng = len(pair.asked), torch.get_rng_state()
    BreakRates(feedback=pair.stage, every=1)(pair.groups, tools)
    # two of four rollouts are right on each problem; only the excluded tutor had not written yet
    assert len(pair.asked) - before == 2
    assert (tools.metrics["break_rate_admitted"], tools.metrics["break_rate_excluded"]) == (0.5, 1.0)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(r.feedback == {} for r in pair.groups[1].rollouts)


def test_break_rates_are_measured_at_their_own_pace():
    pair = Pair()
    for group in pair.groups:
        for rollout in group.rollouts:
            rollout.policy_version = 3
    for every, measured in ((0, False), (2, False), (3, True)):
        pair.tools.metrics.clear()
        BreakRates(feedback=pair.stage, every=every)(pair.groups, pair.tools)
        assert ("break_rate_excluded" in pair.tools.metrics) == measured


def test_a_rate_of_nobody_is_left_out():
    pair = Pair()
    for rollout in (r for g in pair.groups for r in g.rollouts):
        rollout.reward = 0.0
    BreakRates(feedback=pair.stage, every=1)(pair.groups, pair.tools)
    assert pair.tools.metrics == {} and pair.asked == []
