"""What colours a token is what the step's loss saw, under the prompts that were read, by weights the page names."""

import shutil

import pytest
import torch
from report_runs import rewrite, short_run
from tiny_models import full_logp

from selfdistill.loading import load_policy
from selfdistill.report import Selection
from selfdistill.report.selection import pick
from selfdistill.report.signals import decoder, nearest_weights, pieces
from selfdistill.report.tokens import token_view
from selfdistill.runs import open_run


@pytest.fixture
def copied(runs, tmp_path):
    return shutil.copytree(runs["hsd_0"], tmp_path / "hsd_0")


def view_of(folder, *, colourless=None, **selection):
    return token_view(open_run(folder), Selection(**selection), colourless=colourless)


def close(values, expected):
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float32), expected, rtol=6e-3, atol=1e-6)


def spelled(rollout):
    """Its tokens without the special ones."""
    return " ".join(word for word in "".join(rollout["tokens"]).split() if not word.startswith("<"))


def test_values_are_those_of_one_sequence_at_a_time(runs):
    """Step 2 was written by the weights after step 1, which a checkpoint keeps; HSD's teacher is the live student."""
    step = next(s for s in view_of(runs["hsd_0"])["steps"] if s["step"] == 2)
    assert step["weights"] == 1 and step["gap"] < 1e-5
    policy = load_policy(str(runs["hsd_0"] / "checkpoints" / "step_000001"))
    rows = pick(open_run(runs["hsd_0"]), Selection()).steps[2]
    for shown, row in zip(step["problems"][0]["rollouts"], rows[0], strict=True):
        (teacher,) = shown["teachers"]
        own = full_logp(policy, row["prompt_ids"], row["completion_ids"])
        told = full_logp(policy, policy.chat.encode(teacher["views"]["teacher"]["messages"]), row["completion_ids"])
        token = torch.tensor(row["completion_ids"])[:, None]
        values = teacher["values"]
        close(values["log_ratio"], (told - own).gather(-1, token)[:, 0])
        close(values["divergence"], (told.exp() * (told - own)).sum(-1))
        close(values["entropy"], -(own.exp() * own).sum(-1))
        close(values["weight"], torch.ones(len(token)))
        assert shown["advantage"] is None and spelled(shown) == row["text"]


def test_credit_of_a_policy_gradient_is_the_advantage_of_the_whole_group(runs):
    for problem in view_of(runs["grpo_0"])["steps"][0]["problems"]:
        rewards = torch.tensor([r["reward"] for r in problem["rollouts"]])
        for rollout, advantage in zip(problem["rollouts"], (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6), strict=True):
            (teacher,) = rollout["teachers"]
            assert set(teacher["values"]["credit"]) == {rollout["advantage"]} and rollout["advantage"] == pytest.approx(float(advantage), abs=6e-3)
            assert teacher["views"] == {} and "divergence" not in teacher["values"]


def test_every_teacher_of_a_rollout_has_values_of_its_own(base, tmp_path):
    folder = short_run(base, tmp_path / "sgsd", steps=1, method={"name": "sgsd", "extractor": "TaskLessons()", "cold_start": 4, "every": 1})
    rollouts = [r for p in view_of(folder)["steps"][0]["problems"] for r in p["rollouts"]]
    taught = next(r for r in rollouts if len(r["teachers"]) > 1)
    assert taught["teachers"][0]["values"]["log_ratio"] != taught["teachers"][1]["values"]["log_ratio"]
    assert taught["teachers"][0]["values"]["entropy"] == taught["teachers"][1]["values"]["entropy"]


def test_what_the_stages_wrote_is_read_from_the_file_not_written_again(copied):
    """A teacher reads what the run recorded, whatever a method would say today."""
    before = view_of(copied)["steps"][0]["problems"][0]["rollouts"][0]["teachers"][0]

    def other(row):
        for views in row["contexts"]:
            views["teacher"]["messages"] = [{"role": "user", "content": "w7 w8 w9"}]

    rewrite(copied, 1, other)
    after = view_of(copied)["steps"][0]["problems"][0]["rollouts"][0]["teachers"][0]
    assert after["views"]["teacher"]["messages"][0]["content"] == "w7 w8 w9"
    assert after["values"]["log_ratio"] != before["values"]["log_ratio"] and after["values"]["entropy"] == before["values"]["entropy"]


def test_the_thinking_flag_of_a_view_is_kept(runs):
    rows = open_run(runs["hsd_0"]).rows(1)
    assert {view["thinking"] for row in rows for views in row["contexts"] for view in views.values()} == {False}


def test_weights_are_the_nearest_that_are_kept(copied):
    run = open_run(copied)
    assert [nearest_weights(run, step) for step in (1, 2, 3, 9)] == [0, 1, 2, 2]
    shutil.rmtree(copied / "checkpoints" / "step_000001")
    assert [nearest_weights(run, step) for step in (2, 3)] == [0, 2]
    assert [s["weights"] for s in view_of(copied)["steps"]] == [0, 0]
    shutil.rmtree(copied / "checkpoints")
    assert view_of(copied)["steps"][1]["gap"] > 0.01, "weights of another step write otherwise, and the page says how far"


def test_a_model_that_is_gone_leaves_texts_and_says_why(copied, base, tmp_path):
    moved = copied / "settings.json"
    moved.write_text(moved.read_text().replace(str(base), str(tmp_path / "gone")))
    view = view_of(copied)
    assert "cannot be loaded again" in view["note"] and "gone" in view["note"]
    rollout = view["steps"][0]["problems"][0]["rollouts"][0]
    assert rollout["teachers"][0]["values"] == {} and rollout["teachers"][0]["views"] and view["quantities"] == []
    assert "".join(rollout["tokens"]) in [row["text"] for row in open_run(copied).rows(1)]


def test_rollouts_of_another_tokenizer_are_a_sentence(copied):
    rewrite(copied, 1, lambda row: row | {"completion_ids": [(i + 1) % 50 + 6 for i in row["completion_ids"]]})
    with pytest.raises(ValueError, match="another tokenizer"):
        view_of(copied)


def test_a_checkpoint_of_an_unknown_format_is_a_sentence(copied):
    path = copied / "checkpoints" / "step_000001" / "trainer_state.pt"
    torch.save(torch.load(path, weights_only=True) | {"format": 9}, path)
    with pytest.raises(ValueError, match="checkpoint format 9, this version reads 1"):
        view_of(copied)


def test_a_run_without_rollouts_says_so(copied):
    shutil.rmtree(copied / "rollouts")
    assert view_of(copied)["note"] == "This run keeps no rollouts."


def test_the_selection_is_first_middle_last_with_contrast_first_and_bounded(copied):
    for step in range(3, 8):
        shutil.copy(copied / "rollouts" / "step_000001.jsonl", copied / "rollouts" / f"step_{step:06d}.jsonl")
    run = open_run(copied)
    picked = pick(run, Selection(problems=2))
    assert list(picked.steps) == [1, 4, 7] and {len(groups) for groups in picked.steps.values()} == {2} and picked.left_out == 0
    contrast = [len({row["reward"] for row in group}) > 1 for group in pick(run, Selection(problems=3)).steps[1]]
    assert contrast == sorted(contrast, reverse=True)
    size = sum(len(row["completion_ids"]) for row in picked.steps[1][0])
    bounded = pick(run, Selection(problems=2, tokens=size * 3))
    assert bounded.left_out > 0 and sum(len(row["completion_ids"]) for groups in bounded.steps.values() for g in groups for row in g) <= size * 3
    assert all(groups for groups in bounded.steps.values())


def test_the_peer_is_the_one_the_teacher_read(runs):
    rollouts = [(p, r) for s in view_of(runs["hsd_0"])["steps"] for p in s["problems"] for r in p["rollouts"]]
    shown = [(p, r) for p, r in rollouts if r["peer"] and r["peer"]["shown"]]
    assert shown, "some rollout has a successful peer"
    for problem, rollout in shown:
        peer = problem["rollouts"][rollout["peer"]["place"]]
        assert peer is not rollout and peer["reward"] >= 1
        assert spelled(peer) in rollout["teachers"][0]["views"]["teacher"]["messages"][0]["content"]


def test_pieces_join_to_the_text_where_letters_span_tokens(base):
    """Of bytes, as byte-level tokenizers make them, the last one of a letter shows it."""
    found = pieces(list("aé€ b𝛥".encode()), decode=lambda ids: bytes(ids).decode(errors="replace"))
    assert "".join(found) == "aé€ b𝛥" and found[:3] == ["a", "", "é"]
    policy = load_policy(str(base))
    ids = policy.chat.plain("w1 w2 w3")
    assert "".join(pieces(ids, decode=decoder(policy))) == "w1 w2 w3"


def test_untrained_tokens_have_no_value(copied):
    rewrite(copied, 1, lambda row: row | {"trained": list(range(1, len(row["completion_ids"])))})
    rollout = next(r for p in view_of(copied)["steps"][0]["problems"] for r in p["rollouts"] if r["length"] > 1)
    values = rollout["teachers"][0]["values"]["entropy"]
    assert values[0] is None and None not in values[1:]


def test_reading_leaves_the_run_as_it_was(runs):
    before = {path: path.stat().st_mtime_ns for path in runs["hsd_0"].rglob("*")}
    view_of(runs["hsd_0"])
    assert {path: path.stat().st_mtime_ns for path in runs["hsd_0"].rglob("*")} == before
