"""Steps of a text, and which token belongs to which: whatever the tokenizer, the pieces join to the text and the tokens to the pieces."""

import random

import pytest
from tiny_models import tiny_policy

from selfdistill.steps import ClosedBy, OpenedBy, step_of_token


@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        (OpenedBy("###"), "Let us see. ### 1 a ### 2 b", ["Let us see. ", "### 1 a ", "### 2 b"]),
        (OpenedBy("###"), "### 1 a ### 2 b #### 7", ["### 1 a ", "### 2 b ", "#### 7"]),
        (OpenedBy("###"), "\n ### a", ["\n ### a"]),
        (OpenedBy("###"), "no marker", ["no marker"]),
        (OpenedBy("###"), "", [""]),
        (ClosedBy(";"), "a = 1 ; b = 2 ; answer 2", ["a = 1 ;", " b = 2 ;", " answer 2"]),
        (ClosedBy(";"), "a = 1 ; ", ["a = 1 ; "]),
        (ClosedBy(), "one\n\n\n\ntwo\n\n", ["one\n\n", "\n\ntwo\n\n"]),
        (ClosedBy(), "\n\n", ["\n\n"]),
    ],
)
def test_pieces(split, text, pieces):
    assert split(text) == pieces and "".join(pieces) == text


@pytest.mark.parametrize("seed", range(20))
def test_tokens_of_any_length_belong_to_the_step_they_end_in(seed):
    """Tokens are cut anywhere in the text, over borders too; some are special and have no text."""
    rng = random.Random(seed)
    text = "".join(rng.choice(["a", " ", "###", "\n", "é"]) for _ in range(60))
    cuts = sorted(rng.sample(range(1, len(text)), 25))
    tokens = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)] + [""]
    tokens.insert(5, "")

    def decode(ids):
        return "".join(tokens[i] for i in ids)

    pieces = OpenedBy("###")(text)
    place = {end: i for i, piece in enumerate(pieces) for end in range(sum(map(len, pieces[:i])) + 1, sum(map(len, pieces[: i + 1])) + 1)}
    found = step_of_token(range(len(tokens)), pieces, decode)
    at = 0
    for token, index in zip(tokens, found, strict=True):
        at += len(token)
        assert index == place.get(at, 0) or not token
    assert found == sorted(found) and found[-1] == len(pieces) - 1


def test_words_of_a_tokenizer_that_puts_spaces_between_them():
    policy = tiny_policy()
    ids = [*policy.tokenizer.convert_tokens_to_ids(["w1", "w2", "w9", "w3", "w9", "w4"]), policy.chat.end_id]
    pieces = ClosedBy("w9")(policy.chat.decode(ids))
    assert step_of_token(ids, pieces, policy.chat.decode) == [0, 0, 0, 1, 1, 2, 2]
