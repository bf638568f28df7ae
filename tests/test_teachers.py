"""Whose weights teach: frozen ones never move, averages follow at their rate in fp32, a live teacher is the student, with and without LoRA."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from stepping import gradient_of, perturb, step
from tiny_models import full_logp, tiny_groups, tiny_model, tiny_policy, tiny_tokenizer

from selfdistill.loading import save_policy
from selfdistill.methods import hsd, sdpo
from selfdistill.models import Policy
from selfdistill.reading import start_readers
from selfdistill.teachers import EMA, External, Frozen, Live


def lora_policy(*, fresh: bool = True) -> Policy:
    """A LoRA student; not fresh: one that goes on from an adapter that already does something."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    policy = Policy(model, tiny_tokenizer(), fresh_adapter=fresh)
    if not fresh:
        move(policy)
    return policy


def move(policy: Policy, seed: int = 0) -> None:
    """Moves what is trained, as an optimizer would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))


def said(reader_or_policy, rollout) -> torch.Tensor:
    if isinstance(reader_or_policy, Policy):
        return full_logp(reader_or_policy, rollout.prompt_ids, rollout.completion_ids).detach()
    with reader_or_policy.reading() as policy:
        return full_logp(policy, rollout.prompt_ids, rollout.completion_ids).detach()


def without_adapter(name: str) -> str:
    """A LoRA factor's name without its adapter's."""
    head, _, tail = name.partition(".lora_")
    return f"{head}.lora_{tail[0]}" if tail else name


POLICIES = {"full": tiny_policy, "lora": lora_policy, "lora-continued": lambda: lora_policy(fresh=False)}


@pytest.fixture(params=POLICIES)
def policy(request) -> Policy:
    return POLICIES[request.param]()


def test_frozen_reads_as_the_run_began(policy):
    rollout = tiny_groups(policy)[0].rollouts[0]
    began, reader = said(policy, rollout), Frozen().start(policy)
    move(policy)
    reader.update()
    torch.testing.assert_close(said(reader, rollout), began, atol=1e-6, rtol=0)
    assert (said(policy, rollout) - began).abs().max() > 1e-3


def test_live_reads_as_the_student_is(policy):
    rollout = tiny_groups(policy)[0].rollouts[0]
    reader = Live().start(policy)
    move(policy)
    assert torch.equal(said(reader, rollout), said(policy, rollout))


def test_average_follows_at_its_rate(policy):
    reader = EMA(0.25).start(policy)
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    expected = {n: p.detach().clone() for n, p in trained.items()}
    for seed in (1, 2, 3):
        move(policy, seed)
        reader.update()
        expected = {n: 0.75 * e + 0.25 * trained[n].detach() for n, e in expected.items()}
    with reader.reading() as teacher:
        held = {without_adapter(n): p for n, p in teacher.named_parameters() if not policy.lora or (".lora_" in n and ".default." not in n)}
        for name, value in expected.items():
            torch.testing.assert_close(held[without_adapter(name)].detach(), value, atol=1e-6, rtol=0)


def test_average_at_rate_one_is_the_student(policy):
    rollout = tiny_groups(policy)[0].rollouts[0]
    reader = EMA(1.0).start(policy)
    move(policy)
    reader.update()
    torch.testing.assert_close(said(reader, rollout), said(policy, rollout), atol=1e-6, rtol=0)


def test_small_rates_are_not_rounded_away_in_bf16():
    policy = tiny_policy(dtype=torch.bfloat16)
    reader = EMA(1e-3).start(policy)
    name, parameter = next((n, p) for n, p in policy.named_parameters() if "mlp" in n)
    start = parameter.detach().float().clone()
    with torch.no_grad():
        parameter.add_(1.0)
    goal = parameter.detach().float()
    for _ in range(500):
        reader.update()
    with reader.reading() as teacher:
        moved = dict(teacher.named_parameters())[name].detach().float() - start
    expected = (1 - 0.999**500) * (goal - start)
    assert float((moved - expected).abs().max()) < 0.02


@pytest.mark.parametrize("part", [Frozen(), EMA(0.3)], ids=str)
def test_state_restores_into_a_new_run(policy, part):
    rollout = tiny_groups(policy)[0].rollouts[0]
    reader = part.start(policy)
    move(policy)
    reader.update()
    state, spoken = reader.state_dict(), said(reader, rollout)
    fresh = {"full": tiny_policy, True: lora_policy, False: lambda: lora_policy(fresh=False)}["full" if not policy.lora else policy.fresh_adapter]()
    other = part.start(fresh)
    other.load_state_dict(state)
    torch.testing.assert_close(said(other, rollout), spoken, atol=1e-6, rtol=0)


def test_another_models_weights_are_not_taken_for_the_runs_own():
    state = Frozen().start(tiny_policy()).state_dict()
    with pytest.raises(ValueError, match=r"model\.path"):
        Frozen().start(tiny_policy(seed=1)).load_state_dict(state)


def test_external_reads_a_saved_checkpoint_and_demands_one_vocabulary(tmp_path):
    policy, teacher = tiny_policy(), tiny_policy(seed=3)
    save_policy(teacher, tmp_path / "teacher")
    rollout = tiny_groups(policy)[0].rollouts[0]
    reader = External(str(tmp_path / "teacher")).start(policy)
    torch.testing.assert_close(said(reader, rollout), said(teacher, rollout), atol=1e-6, rtol=0)
    policy.tokenizer.add_tokens(["another"])
    with pytest.raises(ValueError, match="vocabulary"):
        External(str(tmp_path / "teacher")).start(policy)
    with pytest.raises(ValueError, match="teacher model"):
        External().start(policy)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_rates_outside_their_range_are_refused(rate):
    with pytest.raises(ValueError, match="rate"):
        EMA(rate)


def test_an_average_and_the_start_are_two_readings(policy):
    """The teacher follows the student while KL to the start stays at the start."""
    rollout = tiny_groups(policy)[0].rollouts[0]
    began = said(policy, rollout)
    readers = start_readers(replace(sdpo(), reference_coef=0.1), policy)
    for _ in range(3):
        move(policy)
        readers["teacher"].update()
        readers["initial"].update()
    torch.testing.assert_close(said(readers["initial"], rollout), began, atol=1e-6, rtol=0)
    assert (said(readers["teacher"], rollout) - began).abs().max() > 1e-4


@pytest.mark.parametrize("teacher", [Live(), Frozen(), EMA(0.1)], ids=str)
def test_only_the_student_is_trained(policy, teacher):
    """After a step with any teacher, gradients are on the student's own parameters and on no teacher's."""
    method = hsd(teacher=teacher)
    trained = [p for p in policy.parameters() if p.requires_grad]
    readers = start_readers(method, policy)
    perturb(policy, size=0.01)
    step(method, policy, tiny_groups(policy), readers=readers)
    assert gradient_of(policy).abs().max() > 0
    ours = {id(p) for p in trained}
    assert all(p.requires_grad for p in trained)
    assert all(p.grad is None and not p.requires_grad for p in policy.parameters() if id(p) not in ours)


def test_offloading_reads_the_same():
    policy = tiny_policy()
    rollout = tiny_groups(policy)[0].rollouts[0]
    for part in (Frozen(), EMA(0.5)):
        kept, offloaded = part.start(policy), part.start(policy, offload=True)
        assert torch.equal(said(kept, rollout), said(offloaded, rollout))
