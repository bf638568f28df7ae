"""What a token counts: the factor times every token's count must give each average its name promises."""

import pytest
import torch

from selfdistill.reductions import Constant, Reduction, SequenceMean, TokenMean

LENGTHS = (3, 1, 8)
VALUES = torch.split(torch.arange(12, dtype=torch.float64), LENGTHS)


def reduced(reduction: Reduction) -> float:
    return sum(reduction(n, sum(LENGTHS), len(LENGTHS)) * float(v.sum()) for n, v in zip(LENGTHS, VALUES, strict=True))


def test_token_mean():
    assert reduced(TokenMean()) == pytest.approx(float(torch.cat(VALUES).mean()))


def test_sequence_mean():
    assert reduced(SequenceMean()) == pytest.approx(sum(float(v.mean()) for v in VALUES) / 3)


def test_constant():
    assert reduced(Constant(10)) == pytest.approx(sum(float(v.sum()) for v in VALUES) / 10 / 3)


@pytest.mark.parametrize("part", [TokenMean, SequenceMean, lambda **k: Constant(4, **k)])
def test_over_is_part_of_the_value(part):
    assert part().over == "taught" and part(over="all") != part()
