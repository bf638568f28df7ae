"""What each teacher reads: whose text, in which order of preference, and that a rollout never reads itself."""

from dataclasses import replace

import pytest
from stepping import tools_of
from tiny_models import tiny_policy

from selfdistill.contexts import (
    Answer,
    Demonstration,
    FromAnotherProblem,
    FrozenAndLive,
    NoTeacher,
    PeerSolution,
    Privileged,
    SamePrompt,
    Solution,
    SuccessfulPeer,
    ThreeViews,
    Written,
    student_messages,
    without_thinking,
)
from selfdistill.feedback import LendGroups
from selfdistill.method import Method
from selfdistill.methods import sdpo
from selfdistill.peers import First, HighestPerplexity, LowestPerplexity, Shortest, Uniformly
from selfdistill.types import Group, Problem, Rollout

TEMPLATES = {
    "student": "Q {problem}",
    "answer": "Q {problem} A {answer}",
    "solution": "Q {problem} S {solution}",
    "reference": "S {solution}",
    "peer": "Q {problem} A {answer} P {peer}",
    "demonstration": "Q {problem} D {demonstration}",
    "feedback": "Q {problem} F {feedback}",
}


def problem(name: str = "one", **changes) -> Problem:
    known = {"prompt": f"{name}?", "answer": f"{name}-answer", "solution": f"{name}-solution", "id": name, "templates": TEMPLATES}
    return Problem(**(known | changes))


def rollout(index: int, reward: float | None, *, text: str | None = None, logp: tuple[float, ...] = (-1.0, -1.0), **given) -> Rollout:
    ids = list(range(len(logp)))
    return Rollout(prompt_ids=[7, 8, 9], completion_ids=ids, behavior_logp=list(logp), text=text or f"attempt-{index}", index=index, reward=reward, **given)


def group(*rewards: float | None, name: str = "one", **changes) -> Group:
    texts = [f"{name}-attempt-{i}" for i in range(len(rewards))]
    return Group(problem=problem(name, **changes), rollouts=[rollout(i, r, text=t) for i, (r, t) in enumerate(zip(rewards, texts, strict=True))])


def shown(context, of: Rollout, within: Group) -> str | None:
    teachings = context(of, within)
    return teachings[0].views["teacher"].messages[-1]["content"] if teachings else None


def test_sources_find_their_text_or_say_there_is_none():
    full, bare = group(1.0), group(1.0, answer="", solution="")
    texts = {Solution(): "Q one? S one-solution", Answer(): "Q one? A one-answer", Demonstration(): "Q one? D one-solution"}
    for source, text in texts.items():
        assert shown(Privileged((source,)), full.rollouts[0], full) == text
        assert shown(Privileged((source,)), bare.rollouts[0], bare) is None


def test_columns_come_before_their_substitutes():
    rich = group(0.0, columns={"demonstration": "shown"}, privileged_context="hint")
    assert shown(Privileged((Demonstration(),)), rich.rollouts[0], rich) == "Q one? D shown"
    hinted = group(0.0, solution="", privileged_context="hint")
    assert shown(Privileged((Solution(),)), hinted.rollouts[0], hinted) == "Q one? S hint"
    assert shown(Privileged((Demonstration(),)), hinted.rollouts[0], hinted) == "Q one? D hint"


def test_three_views_read_the_same_reference_as_opsd():
    hinted = group(0.0, solution="", privileged_context="hint")
    assert shown(ThreeViews(), hinted.rollouts[0], hinted) == shown(Privileged((Solution(),)), hinted.rollouts[0], hinted)


def test_peer_is_successful_and_never_oneself():
    mine = group(0.0, 1.0, 0.5, None)
    context = Privileged((SuccessfulPeer(First()), Answer()))
    assert [shown(context, r, mine) for r in mine.rollouts] == [
        "Q one? A one-answer P one-attempt-1",
        "Q one? A one-answer",  # the only success falls back to the answer
        "Q one? A one-answer P one-attempt-1",
        "Q one? A one-answer P one-attempt-1",
    ]


def test_peer_of_equal_text_is_still_another_rollout():
    """Two successes that wrote the same words are each other's peers: identity, not equality, is what is excluded."""
    twins = group(1.0, 1.0)
    for r in twins.rollouts:
        r.text, r.completion_ids, r.index = "same", [1], 0
    assert shown(Privileged((SuccessfulPeer(First()),)), twins.rollouts[0], twins) == "Q one? A one-answer P same"


def test_uniform_choice_covers_all_peers_and_repeats_itself():
    mine = group(0.0, 1.0, 1.0, 1.0)
    source = SuccessfulPeer(Uniformly())
    seen = set()
    for version in range(60):
        reader = rollout(0, 0.0, policy_version=version)
        assert source.find(reader, mine) is source.find(reader, mine)
        seen.add(source.find(reader, mine).index)
    assert seen == {1, 2, 3}


def test_choices_by_length_and_perplexity():
    peers = [rollout(0, 1.0, logp=(-1.0, -1.0)), rollout(1, 1.0, logp=(-3.0,)), rollout(2, 1.0, logp=(-0.5, -0.7, -0.6))]
    chosen = {type(c).__name__: c(peers, "seed").index for c in (First(), Shortest(), LowestPerplexity(), HighestPerplexity())}
    assert chosen == {"First": 0, "Shortest": 1, "LowestPerplexity": 2, "HighestPerplexity": 1}


def test_sdpo_prefers_a_peer_then_feedback_then_nothing():
    context = sdpo().context
    peers, lonely = group(0.0, 0.5), group(0.0, 0.4)
    assert shown(context, peers.rollouts[0], peers) == "Q one? S one-attempt-1", "reward >= 0.5, and no gold answer"
    assert shown(context, lonely.rollouts[0], lonely) is None
    lonely.rollouts[0].feedback["environment"] = "line 2 fails"
    assert shown(context, lonely.rollouts[0], lonely) == "Q one? F line 2 fails"


def test_thinking_of_a_peer_is_not_shown():
    assert without_thinking("<think>\nno wait\n</think>\n\nso 4") == "so 4"
    thinker = group(0.0, 1.0)
    thinker.rollouts[1].text = "<think> secret </think> so 4"
    assert shown(Privileged((PeerSolution(First()),)), thinker.rollouts[0], thinker) == "Q one? S so 4"


def test_failed_only_leaves_successes_untaught():
    mine = group(0.0, 1.0, 0.5)
    taught = [bool(Privileged((Answer(),), failed_only=True)(r, mine)) for r in mine.rollouts]
    assert taught == [True, False, True]


def test_three_views_of_purified_opsd():
    mine = group(0.0, prompt=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "one?"}))
    (teaching,) = ThreeViews(thinking=True)(mine.rollouts[0], mine)
    said = {role: [m["content"] for m in view.messages] for role, view in teaching.views.items()}
    assert said["teacher"] == ["Be brief.", "Q one? S one-solution"]
    assert said["reference"] == ["Be brief.", "S one-solution"], "the reference view does not see the question"
    assert teaching.views["base"].prompt_ids == (7, 8, 9), "the base view is the student's prompt, byte for byte"
    assert [teaching.views[r].thinking for r in ("teacher", "reference")] == [True, True]


def test_trust_region_reads_one_prompt_twice():
    mine = group(0.0)
    (teaching,) = FrozenAndLive(Privileged((Answer(),)))(mine.rollouts[0], mine)
    assert {role: v.weights for role, v in teaching.views.items()} == {"teacher": "teacher", "live": "student"}
    assert teaching.views["teacher"].messages == teaching.views["live"].messages


def test_same_prompt_is_what_was_sampled_from():
    mine = group(0.0)
    (teaching,) = SamePrompt()(mine.rollouts[0], mine)
    assert teaching.views["teacher"].prompt_ids == (7, 8, 9)
    assert NoTeacher()(mine.rollouts[0], mine) == []


def test_earlier_turns_are_left_alone_and_the_instruction_closes_the_last():
    chat = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    asked = Problem(prompt=chat, instruction="Box it.", templates={"student": "{problem} | {instruction}"})
    assert [m["content"] for m in student_messages(asked)] == ["a", "b", "c | Box it."]


def test_a_prompt_without_words_of_its_own_is_never_altered():
    assert student_messages(Problem(prompt="  keep {braces} and space  \n"))[-1]["content"] == "  keep {braces} and space  \n"


def test_braces_in_privileged_text_are_text():
    mine = group(0.0, solution="{problem} {0} {{x}}")
    assert shown(Privileged((Solution(),)), mine.rollouts[0], mine) == "Q one? S {problem} {0} {{x}}"


def lent(*groups: Group) -> list[Group]:
    LendGroups()(list(groups), tools_of(tiny_policy(), Method()))
    return list(groups)


def test_shuffled_context_shows_only_what_is_the_donors():
    own, _ = lent(group(0.0, 1.0, name="own"), group(0.0, 1.0, name="other"))
    context = FromAnotherProblem(Privileged((SuccessfulPeer(First()), Solution(), Answer())))
    assert shown(context, own.rollouts[0], own) == "Q own? A other-answer P other-attempt-1"
    assert shown(FromAnotherProblem(Privileged((Solution(),))), own.rollouts[0], own) == "Q own? S other-solution"


def test_shuffled_peers_keep_the_problems_own_answer():
    own, other = lent(group(0.0, 1.0, name="own"), group(0.0, 0.0, 1.0, name="other"))
    context = FromAnotherProblem(Privileged((SuccessfulPeer(First()), Answer())), keep_answer=True)
    assert shown(context, own.rollouts[0], own) == "Q own? A own-answer P other-attempt-2"
    assert shown(context, other.rollouts[0], other) == "Q other? A other-answer P own-attempt-1"


def test_shuffled_context_does_not_show_the_rollouts_own_feedback():
    """A control whose teacher reads what was written about this very rollout is no control."""
    own, other = lent(group(0.0, name="own"), group(0.0, name="other"))
    own.rollouts[0].feedback["environment"] = "mine"
    context = FromAnotherProblem(Privileged((Written(),)))
    assert shown(context, own.rollouts[0], own) is None
    assert shown(context, other.rollouts[0], other) == "Q other? F mine"


def test_nobody_to_borrow_from_is_an_error_that_names_the_knob():
    for groups in ([group(0.0)], [group(0.0), group(1.0)]):
        with pytest.raises(ValueError, match="prompts_per_step"):
            LendGroups()(groups, tools_of(tiny_policy(), Method()))


def test_a_problem_that_a_step_holds_twice_does_not_lend_to_itself():
    """A batch larger than the data, or one over the end of an epoch, repeats problems."""
    first, again, other = lent(group(0.0, name="own"), group(1.0, name="own"), group(0.0, name="other"))
    assert first.donor is again.donor is other and other.donor is first


def test_contexts_change_nothing_they_read():
    mine = group(0.0, 1.0)
    before = replace(mine.problem), [replace(r) for r in mine.rollouts]
    for source in (SuccessfulPeer(), Solution(), Answer()):
        shown(Privileged((source,)), mine.rollouts[0], mine)
    assert (mine.problem, mine.rollouts) == before
