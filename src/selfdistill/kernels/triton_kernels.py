"""Head products to sums over the vocabulary and back, as Triton programs: one program a row, which it reads tile by tile.

`normalise` reads the student once, `compare` each target twice (PMI: three times) and the student once more, `differentiate` both once,
and writes d loss / d product where the product was. What is kept between them is a few numbers a row, in fp32 whatever the products
are. A row's own program adds up what its teachers ask of it, in their order, so results repeat to the last bit.
"""

from typing import no_type_check

import triton
import triton.language as tl

# values of KIND: 1 a teacher's own distribution, 2 PMI, 3 trust region; of DIVERGENCE: 0 none, 1 forward KL, 2 reverse KL, 3 JSD


@triton.jit
@no_type_check
def tanh(x: tl.tensor) -> tl.tensor:
    """To 1e-7 absolute: both uses multiply it by a bound on logits."""
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
@no_type_check
def logits(row: tl.tensor, at: tl.tensor, vocab: tl.tensor, SCALE: tl.constexpr, CAP: tl.constexpr) -> tl.tensor:
    """A tile of a row's logits; 0 beyond the vocabulary."""
    z = tl.load(row + at, mask=at < vocab, other=0.0).to(tl.float32) * SCALE
    if CAP != 0.0:
        z = CAP * tanh(z / CAP)
    return z


@triton.jit
@no_type_check
def target(
    a: tl.tensor, b: tl.tensor, c: tl.tensor, at: tl.tensor, vocab: tl.tensor, centre: tl.tensor,
    SCALE: tl.constexpr, CAP: tl.constexpr, RATE: tl.constexpr, KIND: tl.constexpr, STRETCH: tl.constexpr, BOUND: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A tile of a target's log-probs up to a constant a row."""
    u = logits(a, at, vocab, SCALE, CAP) * RATE
    if KIND == 2:
        gain = u - logits(b, at, vocab, SCALE, CAP) * RATE - centre
        if BOUND is not None:
            gain = BOUND * tanh(gain / BOUND)
        u = logits(c, at, vocab, SCALE, CAP) * RATE + gain / STRETCH
    if KIND == 3:
        u = (1 - STRETCH) * u + STRETCH * RATE * logits(b, at, vocab, SCALE, CAP)
    return u


@triton.jit
@no_type_check
def entries(
    s: tl.tensor, t: tl.tensor,
    DIVERGENCE: tl.constexpr, BETA: tl.constexpr, LOG_BETA: tl.constexpr, LOG_REST: tl.constexpr, CLIP: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A divergence's entries at log-probs s and t and their derivatives by s: 0 where the weight is 0, clipped each from above."""
    p, q = tl.exp(s), tl.exp(t)
    if DIVERGENCE == 1:
        entry = tl.where(q > 0, q * (t - s), 0.0)
        slope = -q
    elif DIVERGENCE == 2:
        entry = tl.where(p > 0, p * (s - t), 0.0)
        slope = entry + p
    else:
        x, y = t + LOG_BETA, s + LOG_REST
        mixture = tl.maximum(x, y) + tl.log(1 + tl.exp(-tl.abs(x - y)))
        # all other terms of the derivative cancel with the mixture's own
        slope = (1 - BETA) * tl.where(p > 0, p * (s - mixture), 0.0)
        entry = slope + BETA * tl.where(q > 0, q * (t - mixture), 0.0)
    if CLIP is not None:
        slope = tl.where(entry <= CLIP, slope, 0.0)
        entry = tl.minimum(entry, CLIP)
    return entry, slope


@triton.jit
@no_type_check
def fold(top: tl.tensor, mass: tl.tensor, moment: tl.tensor, x: tl.tensor, value: tl.tensor) -> tl.tensor:
    """One more tile into a row's largest x, and by lane into sum exp(x - top) and sum exp(x - top) value."""
    above = tl.maximum(top, tl.max(x, 0))
    weight, fade = tl.exp(x - above), tl.exp(top - above)
    return above, mass * fade + weight, moment * fade + tl.where(weight > 0, weight * value, 0.0)


@triton.jit
@no_type_check
def normalise(
    student: tl.tensor, student_stride: tl.tensor, initial: tl.tensor, initial_stride: tl.tensor, found: tl.tensor, vocab: tl.tensor,
    SCALE: tl.constexpr, CAP: tl.constexpr, RATE: tl.constexpr, POLICY_RATE: tl.constexpr, INITIAL: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Into found [5 rows]: log sum exp at both temperatures, entropy, KL to pi_0 and pi_0's log sum exp."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    student, initial, found = student + row * student_stride, initial + row * initial_stride, found + row
    mass, policy_mass, initial_mass = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
    moment, policy_moment, unused = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
    top, policy_top, initial_top = float("-inf"), float("-inf"), float("-inf")
    for start in range(0, vocab, TILE):
        at = start + tl.arange(0, TILE)
        z = logits(student, at, vocab, SCALE, CAP)
        top, mass, moment = fold(top, mass, moment, tl.where(at < vocab, z * RATE, float("-inf")), z * RATE)
        if INITIAL:
            i = logits(initial, at, vocab, SCALE, CAP) * POLICY_RATE
            gain, p = z * POLICY_RATE - i, tl.where(at < vocab, z * POLICY_RATE, float("-inf"))
            policy_top, policy_mass, policy_moment = fold(policy_top, policy_mass, policy_moment, p, gain)
            initial_top, initial_mass, unused = fold(initial_top, initial_mass, unused, tl.where(at < vocab, i, float("-inf")), i)
        elif RATE != POLICY_RATE:
            policy_top, policy_mass, unused = fold(policy_top, policy_mass, unused, tl.where(at < vocab, z * POLICY_RATE, float("-inf")), z)
    total = tl.sum(mass, 0)
    lse = top + tl.log(total)
    tl.store(found, lse)
    tl.store(found + 2 * rows, lse - tl.sum(moment, 0) / total)
    if INITIAL or RATE != POLICY_RATE:
        total = tl.sum(policy_mass, 0)
        lse = policy_top + tl.log(total)
    tl.store(found + rows, lse)
    if INITIAL:
        shift = tl.log(tl.sum(initial_mass, 0))
        # differences before sums: both normalisers are large beside a small KL
        tl.store(found + 3 * rows, tl.sum(policy_moment, 0) / total - ((policy_top - initial_top) + (tl.log(total) - shift)))
        tl.store(found + 4 * rows, initial_top + shift)


@triton.jit
@no_type_check
def compare(
    a: tl.tensor, stride_a: tl.tensor, b: tl.tensor, stride_b: tl.tensor, c: tl.tensor, stride_c: tl.tensor,
    student: tl.tensor, student_stride: tl.tensor, row_of: tl.tensor, lse_of: tl.tensor, found: tl.tensor, vocab: tl.tensor,
    SCALE: tl.constexpr, CAP: tl.constexpr, RATE: tl.constexpr, KIND: tl.constexpr, STRETCH: tl.constexpr, BOUND: tl.constexpr,
    DIVERGENCE: tl.constexpr, BETA: tl.constexpr, LOG_BETA: tl.constexpr, LOG_REST: tl.constexpr, CLIP: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Into found [5 pairs]: the target's centre, log sum exp and entropy; the divergence and sum_v dD / d log S(v)."""
    pair, pairs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    a, b, c, found = a + pair * stride_a, b + pair * stride_b, c + pair * stride_c, found + pair
    first, second, top, centre = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32), float("-inf"), 0.0
    if KIND == 2:
        for start in range(0, vocab, TILE):
            at = start + tl.arange(0, TILE)
            first += (logits(a, at, vocab, SCALE, CAP) - logits(b, at, vocab, SCALE, CAP)) * RATE
        centre = tl.sum(first, 0) / vocab
        first = tl.zeros((TILE,), tl.float32)
    for start in range(0, vocab, TILE):
        at = start + tl.arange(0, TILE)
        u = target(a, b, c, at, vocab, centre, SCALE, CAP, RATE, KIND, STRETCH, BOUND)
        top, first, second = fold(top, first, second, tl.where(at < vocab, u, float("-inf")), u)
    total = tl.sum(first, 0)
    lse = top + tl.log(total)
    tl.store(found, centre)
    tl.store(found + pairs, lse)
    tl.store(found + 2 * pairs, lse - tl.sum(second, 0) / total)
    if DIVERGENCE:
        row = tl.load(row_of + pair).to(tl.int64)
        student_lse = tl.load(lse_of + row)
        first, second = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        for start in range(0, vocab, TILE):
            at = start + tl.arange(0, TILE)
            s = logits(student + row * student_stride, at, vocab, SCALE, CAP) * RATE - student_lse
            t = target(a, b, c, at, vocab, centre, SCALE, CAP, RATE, KIND, STRETCH, BOUND) - lse
            entry, slope = entries(s, t, DIVERGENCE, BETA, LOG_BETA, LOG_REST, CLIP)
            first += tl.where(at < vocab, entry, 0.0)
            second += tl.where(at < vocab, slope, 0.0)
        tl.store(found + 3 * pairs, tl.sum(first, 0))
        tl.store(found + 4 * pairs, tl.sum(second, 0))


@triton.jit
@no_type_check
def sum_of_slopes(slopes: tl.tensor, weights: tl.tensor, first: tl.tensor, last: tl.tensor) -> tl.tensor:
    """sum over a row's teachers of weight times sum_v dD / d log S(v)."""
    total = 0.0
    for pair in range(first, last):
        total += tl.load(slopes + pair) * tl.load(weights + pair)
    return total


@triton.jit
@no_type_check
def differentiate(
    a: tl.tensor, stride_a: tl.tensor, b: tl.tensor, stride_b: tl.tensor, c: tl.tensor, stride_c: tl.tensor,
    student: tl.tensor, student_stride: tl.tensor, initial: tl.tensor, initial_stride: tl.tensor, vocab: tl.tensor, pairs: tl.tensor,
    of_rows: tl.tensor, of_pairs: tl.tensor, first_pair: tl.tensor,
    to_lse: tl.tensor, to_policy_lse: tl.tensor, to_reference: tl.tensor, to_divergence: tl.tensor,
    first_entry: tl.tensor, entry_at: tl.tensor, to_entry: tl.tensor,
    SCALE: tl.constexpr, CAP: tl.constexpr, RATE: tl.constexpr, POLICY_RATE: tl.constexpr, POLICY: tl.constexpr, INITIAL: tl.constexpr,
    KIND: tl.constexpr, STRETCH: tl.constexpr, BOUND: tl.constexpr,
    DIVERGENCE: tl.constexpr, BETA: tl.constexpr, LOG_BETA: tl.constexpr, LOG_REST: tl.constexpr, CLIP: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """d loss / d product in the product's place, from d loss / d what the other two found and d loss / d single logits."""
    row, rows, tiles = tl.program_id(0).to(tl.int64), tl.num_programs(0), tl.cdiv(vocab, TILE)
    student, initial, of_rows = student + row * student_stride, initial + row * initial_stride, of_rows + row
    lse, policy_lse, weight, first, last = tl.load(of_rows), tl.load(of_rows + rows), tl.load(to_lse + row), 0, 0
    if DIVERGENCE:
        first, last = tl.load(first_pair + row), tl.load(first_pair + row + 1)
        weight -= sum_of_slopes(of_pairs + 4 * pairs, to_divergence, first, last)
    for tile in range(0, tiles):
        at = tile * TILE + tl.arange(0, TILE)
        z = logits(student, at, vocab, SCALE, CAP)
        s = z * RATE - lse
        slope = weight * tl.exp(s)
        if DIVERGENCE:
            for pair in range(first, last):
                centre, shift = tl.load(of_pairs + pair), tl.load(of_pairs + pairs + pair)
                t = target(a + pair * stride_a, b + pair * stride_b, c + pair * stride_c, at, vocab, centre, SCALE, CAP, RATE, KIND, STRETCH, BOUND) - shift
                _entry, gradient = entries(s, t, DIVERGENCE, BETA, LOG_BETA, LOG_REST, CLIP)
                slope += tl.load(to_divergence + pair) * gradient
        slope *= RATE
        if POLICY:
            p, asked = z * POLICY_RATE - policy_lse, tl.load(to_policy_lse + row)
            if INITIAL:
                gain = p - logits(initial, at, vocab, SCALE, CAP) * POLICY_RATE + tl.load(of_rows + 4 * rows) - tl.load(of_rows + 3 * rows)
                asked += tl.load(to_reference + row) * gain
            slope += POLICY_RATE * tl.exp(p) * asked
        for entry in range(tl.load(first_entry + row * tiles + tile), tl.load(first_entry + row * tiles + tile + 1)):
            slope += tl.where(at == tl.load(entry_at + entry), tl.load(to_entry + entry), 0.0)
        if CAP != 0.0:
            slope *= 1 - (z / CAP) * (z / CAP)
        tl.store(student + at, slope * SCALE, mask=at < vocab)
