"""`score_piece` with its sums over the vocabulary in Triton programs: head products in, the same signals and gradients out."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.divergences import JSD, ForwardKL, ReverseKL, TeacherTopK, TopK, TopKTail, Welsch
from selfdistill.heads import Head, Product
from selfdistill.method import Method
from selfdistill.scoring import Piece, Scorer, label_divergence, score_logits
from selfdistill.targets import PMI, TeacherDistribution, TrustRegion

log = logging.getLogger(__name__)
ROLES = {TeacherDistribution: ("teacher",), PMI: ("teacher", "reference", "base"), TrustRegion: ("teacher", "live")}
SUMMED = (ForwardKL, ReverseKL, JSD)
OF_FEW = (TopK, TopKTail, TeacherTopK)


def supported(method: Method, head: Head, others: Sequence[Head]) -> bool:
    """Whether the programs know a method's target and divergence, and all its heads scale and cap alike.

    The k likeliest tokens of a target that is no view itself cannot be found without writing it out.
    """
    target, divergence = type(method.target), method.divergence
    if isinstance(divergence, OF_FEW):
        known = divergence.k < head.vocab_size and (target is TeacherDistribution or _of_student(divergence))
    else:
        known = type(divergence) in (*SUMMED, Welsch)
    alike = all((other.scale, other.softcap) == (head.scale, head.softcap) for other in others)
    return alike and target in ROLES and (known or not method.distill_coef)


@cache
def runs(device: torch.device) -> bool:
    """Whether the programs run there: tried once, beside the torch blocks; where they do not, why is said, and the blocks do the work."""
    try:
        found, expected = (_tried(score, device) for score in (score_products, score_logits))
        if all(torch.allclose(one, other, atol=1e-3, rtol=1e-3) for one, other in zip(found, expected, strict=True)):
            return True
        reason = "its numbers are not those of the torch blocks"
    except Exception as error:  # a missing package or compiler, a card that it does not know
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    log.warning("losses are scored without Triton's programs, more slowly: %s", reason)
    return False


def _tried(score: Scorer, device: torch.device) -> list[Tensor]:
    """Signals of three tokens of five words, and the gradient by their product."""
    values = torch.arange(15.0, device=device).view(3, 5).sin()
    token, head = torch.arange(3, device=device), Head(weight=values.new_zeros(5, 1))
    piece = Piece(token=token, label_token=token[:, None], label_share=values.new_ones(3, 1), student=None)
    student, teacher = Product(head=head, values=values.clone().requires_grad_()), Product(head=head, values=values.flip(0))
    with torch.enable_grad():
        unique, pairs = score(Method(divergence=JSD()), piece, 1.0, student, {"teacher": teacher}, None)
        (gradient,) = torch.autograd.grad(unique[0].sum() + pairs[2].sum(), student.values)
    return [unique.detach(), pairs.detach(), gradient]


def score_products(
    method: Method, piece: Piece, temperature: float, student: Product, views: Mapping[str, Product], initial: Product | None
) -> tuple[Float[Tensor, "5 chunk"], Float[Tensor, "3 pairs"]]:
    """What `score_piece` returns. Backward is for once: it writes the gradient where `student.values` were."""
    from selfdistill.kernels.triton_sweeps import Sweep, Work

    loss_temperature = method.loss_temperature or temperature
    rows = torch.arange(len(piece.token), device=piece.token.device)
    student_of = (rows if piece.student is None else piece.student) if views else rows[:0]
    labels = piece.label_token if method.label_coef else piece.label_token[:, :0]
    keep = _keep(method, student, views, student_of)
    at = [(rows[:, None], piece.token[:, None]), (rows[:, None], labels), (student_of[:, None], keep)]
    work = Work(
        scale=student.head.scale,
        softcap=student.head.softcap,
        rate=1 / loss_temperature,
        policy_rate=1 / temperature,
        initial=initial and initial.values,
        views=tuple(views[role].values for role in ROLES[type(method.target)]) if len(student_of) else (),
        target=method.target,
        divergence=method.divergence if method.distill_coef and type(method.divergence) in SUMMED and len(student_of) else None,
        student=student_of,
        at=torch.cat([torch.stack([row.expand_as(token), token]).flatten(1) for row, token in at], dim=1),
    )
    (lse, policy_lse, entropy, reference_kl, _), of_pairs, logits = Sweep.apply(student.values, work)  # pyright: ignore[reportGeneralTypeIssues]
    own, of_labels, kept = (z.view_as(token) for z, (_, token) in zip(logits.split([token.numel() for _, token in at]), at, strict=True))
    logp = own[:, 0] / loss_temperature - lse
    label_kl = label_divergence(of_labels / loss_temperature - lse[:, None], piece.label_share[:, : labels.shape[1]])
    unique = [logp, own[:, 0] / temperature - policy_lse, label_kl, entropy, reference_kl]
    kept = kept / loss_temperature - lse[student_of, None]
    return torch.stack(unique), _pairs(method, loss_temperature, views, of_pairs, piece.token[student_of], keep, logp[student_of], kept)


def _of_student(divergence: TopK | TopKTail | TeacherTopK) -> bool:
    return isinstance(divergence, TopKTail) or (isinstance(divergence, TopK) and divergence.of_student)


def _keep(method: Method, student: Product, views: Mapping[str, Product], student_of: Int[Tensor, " pairs"]) -> Int[Tensor, "pairs k"]:
    """The tokens that a divergence over a few of them is about; none where it is over all."""
    divergence = method.divergence
    if not isinstance(divergence, OF_FEW) or not method.distill_coef or not len(student_of):
        return student_of.new_empty(len(student_of), 0)
    if _of_student(divergence):
        return student.values.topk(divergence.k).indices[student_of]
    return views["teacher"].values.topk(divergence.k).indices


def _pairs(
    method: Method,
    temperature: float,
    views: Mapping[str, Product],
    of_pairs: Float[Tensor, "5 pairs"],
    token: Int[Tensor, " pairs"],
    keep: Int[Tensor, "pairs k"],
    logp: Float[Tensor, " pairs"],
    kept: Float[Tensor, "pairs k"],
) -> Float[Tensor, "3 pairs"]:
    """(target_logp, target_entropy, divergence) from what the sweep found and the student's log-probs of single tokens."""
    if not len(token):
        return of_pairs[:3]
    centre, shift, entropy = of_pairs[:3].detach()
    at = {role: view.at(torch.cat([token[:, None], keep], dim=1)) / temperature for role, view in views.items()}
    of_target = _at(method.target, at, centre[:, None]) - shift[:, None]
    divergence = of_pairs[3]
    if isinstance(method.divergence, Welsch) and method.distill_coef:
        divergence = method.divergence(logp[:, None], of_target[:, :1], torch.zeros_like(token))
    elif isinstance(method.divergence, OF_FEW) and method.distill_coef:
        divergence = method.divergence.among(kept, of_target[:, 1:], token)
    return torch.stack([of_target[:, 0], entropy, divergence])


def _at(target: object, views: Mapping[str, Float[Tensor, "pairs k"]], centre: Float[Tensor, "pairs 1"]) -> Float[Tensor, "pairs k"]:
    """A target's log-probs of single tokens, up to a constant a pair."""
    if isinstance(target, PMI):
        return views["base"] + target.bounded(views["teacher"] - views["reference"] - centre) / target.beta
    if isinstance(target, TrustRegion):
        return (1 - target.mix) * views["teacher"] + target.mix * views["live"]
    return views["teacher"]
