"""The same tensors through TRL 1.16 and through our scoring: divergences, entropies, and gradients of states and head."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stepping import score_tensors

from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TopK, TopKTail
from selfdistill.heads import Head
from selfdistill.methods import opsd

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))

import make_trl  # noqa: E402

CASES = json.loads((FIXTURES / "trl_divergence.json").read_text())
IDS = ["-".join(str(c[k]) for k in ("kind", "beta", "temperature", "head", "tail") if k in c) for c in CASES]


def divergence_of(case: dict):
    """TRL's `beta` (or SDPO's `alpha`): 0 is forward, 1 reverse, between them the Jensen-Shannon divergence."""
    inner = {0.0: ForwardKL(), 1.0: ReverseKL()}.get(case["beta"]) or JSD(case["beta"])
    if case["kind"] in ("chunked", "gkd"):
        return inner
    return TopKTail(inner, make_trl.TOP_K) if case["tail"] else TopK(inner, make_trl.TOP_K, of_student=True)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_divergence_and_gradients_are_trls(case, chunk):
    given = make_trl.tensors()
    options = make_trl.HEADS[case.get("head", "plain")]
    heads = {
        side: Head(
            weight=given[f"{side}_weight"],
            bias=given[f"{side}_bias"] if options["bias"] else None,
            scale=options["scale"],
            softcap=options["softcap"],
        )
        for side in ("student", "teacher")
    }
    hidden, weight = given["student_hidden"].requires_grad_(), heads["student"].weight.requires_grad_()
    method = replace(opsd(), divergence=divergence_of(case), loss_temperature=case.get("temperature", 1.0))
    views = {"teacher": (given["teacher_hidden"], heads["teacher"])}
    token = torch.arange(make_trl.TOKENS)
    signals = score_tensors(method, hidden=hidden, head=heads["student"], views=views, token=token, chunk=chunk)
    torch.testing.assert_close(signals.divergence.detach(), torch.tensor(case["divergence"]), atol=2e-6, rtol=1e-6)
    by_hidden, by_weight = torch.autograd.grad(signals.divergence.sum(), (hidden, weight))
    torch.testing.assert_close(by_hidden, torch.tensor(case["by_hidden"]), atol=2e-6, rtol=1e-5)
    if case["kind"] == "chunked":
        torch.testing.assert_close(signals.entropy, torch.tensor(case["entropy"]), atol=2e-6, rtol=1e-6)
        torch.testing.assert_close(by_weight, torch.tensor(case["by_weight"]), atol=5e-6, rtol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_stored_values_are_what_trl_says_today():
    for stored, live in zip(CASES, make_trl.outputs(), strict=True):
        assert stored.keys() == live.keys()
        for name, value in stored.items():
            if isinstance(value, list):
                torch.testing.assert_close(torch.tensor(live[name]), torch.tensor(value), atol=1e-6, rtol=1e-6)
