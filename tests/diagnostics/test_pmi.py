"""Norms and cosines of the decomposition are those of the models' own log-probs."""

import pytest
import torch
from tiny_models import full_logp, tiny_groups, tiny_model, tiny_policy

from selfdistill.diagnostics.pmi import decomposed, decomposition
from selfdistill.diagnostics.readings import token_readings
from selfdistill.methods import opsd, purified_opsd
from selfdistill.reading import start_readers


def test_decomposition_of_frozen_views_and_a_student_that_moved():
    policy = tiny_policy()
    groups = tiny_groups(policy)
    readers = start_readers(purified_opsd(), policy)
    frozen = tiny_policy()
    policy.model.load_state_dict(tiny_model(seed=3).state_dict())
    parts = decomposed(purified_opsd())
    found = {name: token_readings(groups, policy=policy, readers=readers, method=m, budget=300) for name, m in parts.items()}
    result = decomposition(found, checkpoint=5, steps=(6,))

    def read(model, rollout, text):
        return full_logp(model, model.chat.encode(({"role": "user", "content": text},)), rollout.completion_ids, temperature=1.1).detach()

    rows = []
    for group in groups:
        q, r = group.problem.prompt, group.problem.solution
        for rollout in group.rollouts:
            rows += zip(read(frozen, rollout, f"{q} w2 {r}"), read(frozen, rollout, f"w2 {r}"), read(policy, rollout, q), strict=True)
    total, reference = [t - s for t, _, s in rows], [r - s for _, r, s in rows]
    interaction = [t - r for t, r, _ in rows]
    cosine = torch.nn.functional.cosine_similarity
    assert result.tokens == len(rows)
    for value, part in ((result.total, total), (result.reference, reference), (result.interaction, interaction)):
        assert value == pytest.approx(sum(float(d.norm()) for d in part) / len(rows), rel=1e-4)
    assert result.ratio == pytest.approx(result.reference / result.total)
    for value, part in ((result.cosine_reference, reference), (result.cosine_interaction, interaction)):
        assert value == pytest.approx(sum(float(cosine(d, e, dim=0)) for d, e in zip(total, part, strict=True)) / len(rows), abs=1e-3)


def test_a_method_without_the_reference_alone_is_refused_by_the_first_part():
    policy, part = tiny_policy(), decomposed(opsd())["total"]
    with pytest.raises(ValueError, match=r"does not read the reference alone.*choose --method purified_opsd"):
        token_readings(tiny_groups(policy), policy=policy, readers=start_readers(part, policy), method=part, budget=300)
