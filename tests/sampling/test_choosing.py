"""From logits to tokens: every token has the share that temperature, top-k and top-p leave it, in vocabularies of any size."""

import math

import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from selfdistill.sampling.choosing import BELOW_ONE, STRETCH, Choice


def logits_of(vocab: int, *, rows: int = 1, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def uniform(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def left(logits: torch.Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """Probabilities by transformers' own processors, in the order in which `generate` applies them."""
    cuts = ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])
    return LogitsProcessorList([TemperatureLogitsWarper(temperature), *cuts])(torch.zeros(len(logits), 1).long(), logits.clone()).softmax(-1)


DECODINGS = [{}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.8}, {"temperature": 1.4, "top_k": 20, "top_p": 0.9}]


@pytest.mark.parametrize("vocab", [40, 256, 700])
@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_tokens_have_the_shares_that_are_left_to_them(vocab, decoding):
    logits, n = logits_of(vocab), 8_000
    tokens, _ = Choice(**decoding)(logits.repeat(n, 1), uniform(n))
    p = left(logits, **decoding)[0].double()
    counts = torch.bincount(tokens, minlength=vocab).double()
    assert not counts[p == 0].any()
    often = p * n > 5
    observed, wanted = (torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, p * n))
    kept = wanted > 0
    assert chisquare(observed[kept].numpy(), (wanted[kept] * n / wanted[kept].sum()).numpy()).pvalue > 0.001


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_the_log_prob_is_that_of_the_tempered_distribution_before_any_cut(decoding):
    logits = logits_of(700, rows=50)
    tokens, logp = Choice(**decoding)(logits.clone(), uniform(50))
    whole = (logits.double() / decoding.get("temperature", 1.0)).log_softmax(-1)
    torch.testing.assert_close(logp.double(), whole.gather(-1, tokens[:, None])[:, 0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("vocab", [5, 256, 257, 1000])
def test_a_uniform_number_falls_on_the_token_of_a_plain_running_sum(vocab):
    logits = logits_of(vocab)
    logits[0, ::3] = -torch.inf
    p = logits[0].double().softmax(-1).tolist()
    for u in (0.0, 0.1, 0.5, 0.9, 0.999, BELOW_ONE):
        token, _ = Choice()(logits.clone(), torch.tensor([u], dtype=torch.float64))
        running = list(torch.tensor(p, dtype=torch.float64).cumsum(0))
        plain = next((i for i, mass in enumerate(running) if mass > u), None)
        near = {i for i, mass in enumerate(running) if abs(mass - u) < 1e-6} | {plain}
        assert p[int(token)] > 0 and (int(token) == plain or near & {int(token), int(token) - 1, int(token) - 2}), (u, plain, int(token))


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    """In fp32 a running sum near 1 no longer moves by 1e-9: 100,000 such tokens would share nothing."""
    logits = torch.full((1, 100_001), math.log(1e-9))
    logits[0, 0] = 0.0
    share, n = 1e-4 / (1 + 1e-4), 200
    u = 1 - share * (1 - (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    tokens, _ = Choice()(logits.repeat(n, 1), u)
    even = 1 + 100_000 * (torch.arange(n) + 0.5) / n
    assert (tokens - even).abs().max() < STRETCH, "spread evenly over the rare ones"


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [0, 30, 400])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_nucleus_is_the_smallest_also_where_it_is_wide(top_p, top_k, spread):
    """A flat distribution needs more tokens than are looked at first."""
    choice, logits = Choice(top_p=top_p, top_k=top_k), logits_of(1000, rows=6, spread=spread)
    kept = choice._kept((logits - logits.max(-1, keepdim=True).values).exp()) > 0
    assert torch.equal(kept, left(logits, top_p=top_p, top_k=top_k) > 0)


def test_tokens_as_likely_as_the_last_kept_are_kept():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for choice in (Choice(top_k=2), Choice(top_p=0.5)):
        assert (choice._kept(logits.exp()) > 0).tolist() == [[True, True, True, True, False]]


def test_greedy_takes_the_likeliest_under_its_log_prob_at_temperature_1():
    logits = logits_of(300, rows=4)
    tokens, logp = Choice(temperature=0.0)(logits.clone(), uniform(4))
    torch.testing.assert_close(logp, logits.log_softmax(-1).max(-1).values)
    assert torch.equal(tokens, logits.argmax(-1))
